//! The agent's own directories and files, which no other user may read, write, lock or replace.

use anyhow::{Context as _, Result, bail, ensure};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Read as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;

const DIRECTORY: u32 = 0o700;
const FILE: u32 = 0o600;

/// Reports whether a user is trusted: root, or the user of this process.
pub fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// Creates a directory that only its owner can access, or makes an existing one so. `flag` is the
/// flag that selects another directory.
///
/// # Errors
/// Returns an error if the directory cannot be created, or other users could replace its content.
pub fn directory(path: &Path, flag: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .with_context(|| {
                format!(
                    "creating {}, the parent directory of {}; choose another place with {flag}",
                    parent.display(),
                    path.display()
                )
            })?;
    }
    match DirBuilder::new().mode(DIRECTORY).create(path) {
        Err(err) if err.kind() != ErrorKind::AlreadyExists => {
            return Err(err).with_context(|| {
                format!("creating {}; choose another with {flag}", path.display())
            });
        }
        _ => {}
    }
    let own = fs::symlink_metadata(path).with_context(|| format!("checking {}", path.display()))?;
    let ourselves = nix::unistd::geteuid();
    // Not root: later checks report in more detail what else is missing.
    if !ourselves.is_root() && own.uid() == 0 {
        return Ok(());
    }
    if own.is_dir() && own.uid() == ourselves.as_raw() && own.mode() & 0o022 != 0 {
        log::warn!(
            "{} is writable by others (mode {:04o}): restricting it to the agent",
            path.display(),
            own.mode() & 0o7777
        );
        fs::set_permissions(path, Permissions::from_mode(DIRECTORY))
            .with_context(|| format!("removing others' rights from {}", path.display()))?;
    }
    check(path, flag)?;
    let mode = fs::metadata(path)?.mode() & 0o7777;
    if mode & 0o777 != DIRECTORY {
        fs::set_permissions(path, Permissions::from_mode(DIRECTORY)).with_context(|| {
            format!(
                "removing others' rights from {} (mode {mode:04o})",
                path.display()
            )
        })?;
    }
    Ok(())
}

/// Checks that only root and this process's user can replace a directory or its content.
///
/// # Errors
/// Returns an error that names the offending directory, its owner, and the remedy.
pub fn check(path: &Path, flag: &str) -> Result<()> {
    let absolute = std::path::absolute(path)?;
    for link in absolute.ancestors() {
        let own =
            fs::symlink_metadata(link).with_context(|| format!("checking {}", link.display()))?;
        if own.file_type().is_symlink() {
            ensure!(
                is_trusted(own.uid()),
                "{} is a symbolic link of uid {}, who could point it elsewhere: remove it, or choose \
                 another place with {flag}",
                link.display(),
                own.uid()
            );
        }
    }
    let real = fs::canonicalize(&absolute)?;
    let own = fs::symlink_metadata(&real)?;
    ensure!(
        own.is_dir(),
        "{} is not a directory; choose another with {flag}",
        path.display()
    );
    if !is_trusted(own.uid()) || own.mode() & 0o022 != 0 {
        refuse(&real, &own, flag)?;
    }
    for above in absolute
        .ancestors()
        .chain(real.ancestors())
        .filter(|dir| *dir != absolute && *dir != real)
    {
        let metadata =
            fs::metadata(above).with_context(|| format!("checking {}", above.display()))?;
        let (mode, sticky) = (metadata.mode(), metadata.mode() & 0o1000 != 0);
        let group = mode & 0o020 != 0 && metadata.gid() != 0;
        if !is_trusted(metadata.uid()) || (!sticky && (mode & 0o002 != 0 || group)) {
            refuse(above, &metadata, flag)
                .with_context(|| format!("{} can be replaced by others", path.display()))?;
        }
    }
    Ok(())
}

fn refuse(path: &Path, metadata: &Metadata, flag: &str) -> Result<()> {
    let dir = path.display();
    bail!(
        "{dir} is owned by uid {}, gid {}, with mode {:04o}: others could stop or mislead the \
         agent. Restrict it to root (chown root: {dir}; chmod go-w {dir}), or choose another place \
         with {flag}",
        metadata.uid(),
        metadata.gid(),
        metadata.mode() & 0o7777
    )
}

/// Opens a regular file for reading. Never blocks on a FIFO or a device, and follows no symbolic
/// link.
///
/// # Errors
/// Returns an error if there is no file, or it is not a regular one.
pub fn open(path: &Path) -> std::io::Result<File> {
    regular(OpenOptions::new().read(true), path)
}

/// Reads a regular file.
///
/// # Errors
/// Returns an error as [`open`] does.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Creates a new file that replaces any existing one.
///
/// # Errors
/// Returns an error if the file system refuses.
pub fn create(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    // The umask may have removed permissions of the owner.
    file.set_permissions(Permissions::from_mode(FILE))?;
    Ok(file)
}

/// Opens a regular file for reading and writing, creates it if necessary, and revokes other users'
/// permissions.
///
/// # Errors
/// Returns an error if it is not a regular file, or belongs to another user.
pub fn open_own(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE);
    let file = regular(&mut options, path)?;
    let metadata = file.metadata()?;
    if !is_trusted(metadata.uid()) {
        let text = format!("it is owned by uid {}: remove it", metadata.uid());
        return Err(Error::new(ErrorKind::PermissionDenied, text));
    }
    if metadata.mode() & 0o777 != FILE {
        file.set_permissions(Permissions::from_mode(FILE))?;
    }
    Ok(file)
}

/// Revokes other users' permissions on the regular files in a directory.
///
/// # Errors
/// Returns an error that names the file whose permissions cannot be changed.
pub fn tighten(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let path = entry?.path();
        let Ok(file) = open(&path) else {
            continue;
        };
        let metadata = file.metadata()?;
        if metadata.mode() & 0o077 != 0 && is_trusted(metadata.uid()) {
            file.set_permissions(Permissions::from_mode(FILE))
                .with_context(|| format!("removing others' rights from {}", path.display()))?;
        }
    }
    Ok(())
}

fn regular(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    let file = options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|err| match err.raw_os_error() {
            Some(libc::ELOOP) => {
                Error::other("it is a symbolic link, not a regular file: remove it")
            }
            _ => err,
        })?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(Error::other("it is not a regular file: remove it"))
}
