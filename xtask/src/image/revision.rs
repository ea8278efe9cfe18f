//! Revision of the sources, which a program names that is built for use.

use crate::shell;
use std::path::Path;
use std::process::Command;

/// Name of the environment variable from which a build takes its revision.
pub const VARIABLE: &str = "NETDP_REVISION";

/// What follows the commit where files differ from it.
const CHANGED: &str = "-dirty";

/// Returns the commit that is checked out in a directory, in 12 digits, and whether files differ from
/// it; `None` if git knows of none, as where the sources came as an archive.
pub fn revision(directory: &Path) -> Option<String> {
    let commit = git(directory, &["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(directory, &["status", "--porcelain"])?;
    let suffix = if changed.is_empty() { "" } else { CHANGED };
    Some(format!("{commit}{suffix}"))
}

fn git(directory: &Path, arguments: &[&str]) -> Option<String> {
    let out = Command::new("git")
        .current_dir(directory)
        .args(arguments)
        .output()
        .ok()?;
    if !out.status.success() {
        let error = String::from_utf8_lossy(&out.stderr);
        shell::progress(&format!(
            "no revision: git {}: {}",
            arguments[0],
            error.trim()
        ));
        return None;
    }
    Some(String::from_utf8(out.stdout).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{git, revision};
    use std::fs;

    #[test]
    fn a_revision_is_a_commit_and_says_where_files_differ() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        assert_eq!(revision(at), None);
        let identity = ["-c", "user.name=netdp", "-c", "user.email=netdp@localhost"];
        let commit = [&identity[..], &["commit", "--quiet", "--message=one"]].concat();
        let file = at.join("file");
        fs::write(&file, "one").unwrap();
        for arguments in [&["init", "--quiet"][..], &["add", "file"], &commit] {
            git(at, arguments).unwrap();
        }
        let one = revision(at).unwrap();
        assert!(one.len() == 12 && one.chars().all(|it| it.is_ascii_hexdigit()));
        fs::write(&file, "two").unwrap();
        assert_eq!(revision(at).unwrap(), format!("{one}-dirty"));
    }
}
