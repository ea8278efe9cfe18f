//! TCX links (Linux 6.6) by bpf(2). aya gives no link's descriptor away, without which a link can't
//! be held and pinned, and offers no `BPF_LINK_DETACH`: a link that only loses its pin is freed some
//! time later.

use super::links::Hook;
use aya::programs::loaded_programs;
use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `enum bpf_cmd` in include/uapi/linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
const INGRESS: u32 = 46;
const EGRESS: u32 = 47;

/// Before, and after, all others that are there by then.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

/// Programs that fit on a hook (`BPF_MPROG_MAX` of kernel/bpf/mprog.c).
const MOST: u32 = 64;

/// The member of `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: i32,
    file_flags: u32,
}

/// That for `BPF_LINK_CREATE` of a TCX link.
#[repr(C)]
struct Create {
    prog_fd: i32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// That for `BPF_LINK_UPDATE`.
#[repr(C)]
struct Update {
    link_fd: i32,
    new_prog_fd: i32,
    flags: u32,
    old_prog_fd: u32,
}

/// That for `BPF_LINK_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// That for `BPF_PROG_QUERY`.
#[repr(C)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// A program's place on a hook: as long as this, or a pin, is there.
#[derive(Debug)]
pub struct TcxLink(OwnedFd);

impl TcxLink {
    /// Attaches a program. At an uplink it comes before all others, both ways: what another one
    /// returns keeps no packet from it (docs/adr/0035). Towards pods it comes after them, which may
    /// refuse what a pod sends.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> Result<Self> {
        let mut create = Create {
            prog_fd: program.as_raw_fd(),
            target_ifindex: ifindex,
            attach_type: attach_type(hook),
            flags: match hook {
                Hook::Egress | Hook::Ingress => BPF_F_BEFORE,
                Hook::Pod => BPF_F_AFTER,
            },
            relative_fd: 0,
            padding: 0,
            expected_revision: 0,
        };
        // SAFETY: the attribute is what the command takes and has no pointer.
        unsafe { descriptor(BPF_LINK_CREATE, &mut create) }.map(Self)
    }

    /// Opens a pinned link.
    ///
    /// # Errors
    /// There is no pin, or the kernel refused.
    pub fn open(pin: &Path) -> Result<Self> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut get = Object {
            pathname: path.as_ptr() as u64,
            bpf_fd: 0,
            file_flags: 0,
        };
        // SAFETY: the path ends with NUL and lives through the call.
        unsafe { descriptor(BPF_OBJ_GET, &mut get) }.map(Self)
    }

    /// Opens a link by its id, pinned or not.
    ///
    /// # Errors
    /// There is none by now, or the kernel refused: this needs `CAP_SYS_ADMIN`.
    pub fn by_id(id: u32) -> Result<Self> {
        let mut get = ById {
            id,
            next_id: 0,
            open_flags: 0,
        };
        // SAFETY: the attribute is what the command takes and has no pointer.
        unsafe { descriptor(BPF_LINK_GET_FD_BY_ID, &mut get) }.map(Self)
    }

    /// Puts another program in the place of the link's: no packet meets neither.
    ///
    /// # Errors
    /// The link is dead, or is no link.
    pub fn update(&self, program: BorrowedFd<'_>) -> Result<()> {
        let mut update = Update {
            link_fd: self.0.as_raw_fd(),
            new_prog_fd: program.as_raw_fd(),
            flags: 0,
            old_prog_fd: 0,
        };
        // SAFETY: the attribute is what the command takes and has no pointer.
        unsafe { bpf(BPF_LINK_UPDATE, &mut update) }.map(drop)
    }

    /// Pins it.
    ///
    /// # Errors
    /// Something is there already, or the file system refused.
    pub fn pin(&self, pin: &Path) -> Result<()> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut object = Object {
            pathname: path.as_ptr() as u64,
            bpf_fd: self.0.as_raw_fd(),
            file_flags: 0,
        };
        // SAFETY: the path ends with NUL and lives through the call.
        unsafe { bpf(BPF_OBJ_PIN, &mut object) }.map(drop)
    }

    /// Takes the program off: when this returns, no packet meets it any more. Pins stay.
    ///
    /// # Errors
    /// It is no link, or the kernel refused.
    pub fn detach(&self) -> Result<()> {
        // SAFETY: the attribute is one word, the link's descriptor.
        unsafe { bpf(BPF_LINK_DETACH, &mut self.0.as_raw_fd()) }.map(drop)
    }
}

/// Whether the kernel has TCX: asked once, by a question that only such a kernel knows. EINVAL is what
/// those before Linux 6.6 answer, and those without `CONFIG_NET_XGRESS`; of an attempt to attach it
/// could mean anything.
///
/// # Errors
/// The kernel refuses for another reason.
pub fn is_known() -> Result<bool> {
    /// Every namespace has its loopback device there (`LOOPBACK_IFINDEX`, include/net/flow.h).
    const LOOPBACK: u32 = 1;
    match on_hook(LOOPBACK, Hook::Ingress) {
        Ok(_) => Ok(true),
        Err(err) => match err.raw_os_error() {
            Some(libc::EINVAL | libc::EOPNOTSUPP) => Ok(false),
            Some(libc::ENODEV) => Ok(true),
            _ => Err(err),
        },
    }
}

/// A program on a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnHook {
    /// Its id.
    pub program: u32,
    /// The id of the link that holds it; 0 where it was attached without one.
    pub link: u32,
}

/// The programs on a hook, in the order in which they run.
///
/// # Errors
/// There is no such interface (`ENODEV`), or the kernel has no TCX.
pub fn on_hook(ifindex: u32, hook: Hook) -> Result<Vec<OnHook>> {
    let mut programs = [0_u32; MOST as usize];
    let mut links = [0_u32; MOST as usize];
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type: attach_type(hook),
        query_flags: 0,
        attach_flags: 0,
        prog_ids: programs.as_mut_ptr() as u64,
        count: MOST,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: links.as_mut_ptr() as u64,
        link_attach_flags: 0,
        revision: 0,
    };
    // SAFETY: the attribute is what the command takes; the kernel writes no more ids than `count`
    // into the arrays, which outlive the call.
    match unsafe { bpf(BPF_PROG_QUERY, &mut query) } {
        Ok(_) => {
            let pairs = programs.into_iter().zip(links);
            let found = pairs.map(|(program, link)| OnHook { program, link });
            Ok(found.take(query.count as usize).collect())
        }
        // The first kernels with TCX say so of a hook that nobody has used.
        Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}

/// The name of a program by its id; `None` where the kernel does not tell it: that needs
/// `CAP_SYS_ADMIN`.
pub fn name(program: u32) -> Option<String> {
    let found = loaded_programs().flatten().find(|it| it.id() == program)?;
    found.name_as_str().map(str::to_owned)
}

const fn attach_type(hook: Hook) -> u32 {
    match hook {
        Hook::Egress => EGRESS,
        Hook::Ingress | Hook::Pod => INGRESS,
    }
}

/// # Safety
/// As [`bpf`], and the command must give a descriptor.
unsafe fn descriptor<T>(command: libc::c_int, attr: &mut T) -> Result<OwnedFd> {
    // SAFETY: the caller's.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `attr` must be what the command takes, pointers in it included.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<i32> {
    // SAFETY: the size is that of the attribute; the rest is the caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    match i32::try_from(result) {
        Ok(value @ 0..) => Ok(value),
        _ => Err(Error::last_os_error()),
    }
}
