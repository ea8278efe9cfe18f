//! TCX links (Linux 6.6) by bpf(2). aya does not expose a link's descriptor, which is needed to
//! hold and pin it, and offers no `BPF_LINK_DETACH`: a link that only loses its pin is freed some
//! time later.

use super::hook::Hook;
use super::syscall::{bpf, descriptor};
use aya::programs::loaded_programs;
use std::ffi::CString;
use std::io::Result;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
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

/// Flags: before, and after, all others that are attached at that time.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

/// Capacity of a hook, in programs (`BPF_MPROG_MAX` of kernel/bpf/mprog.c).
const MOST: u32 = 64;

/// The member of `union bpf_attr` for `BPF_OBJ_PIN` and `BPF_OBJ_GET`.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: i32,
    file_flags: u32,
}

/// The member of `union bpf_attr` for `BPF_LINK_CREATE` of a TCX link.
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

/// The member of `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
struct Update {
    link_fd: i32,
    new_prog_fd: i32,
    flags: u32,
    old_prog_fd: u32,
}

/// The member of `union bpf_attr` for `BPF_LINK_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// The member of `union bpf_attr` for `BPF_PROG_QUERY`.
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

/// A program's place on a hook, which exists as long as this, or a pin.
#[derive(Debug)]
pub struct TcxLink(OwnedFd);

impl TcxLink {
    /// Attaches a program. At an uplink it precedes all others, in both directions, so that no
    /// return code of another program keeps packets from it (docs/adr/0035). Towards pods it comes
    /// after them: they may reject what a pod sends.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses.
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
        // SAFETY: the attribute is the one of this command and has no pointer.
        unsafe { descriptor(BPF_LINK_CREATE, &mut create) }.map(Self)
    }

    /// Opens a pinned link.
    ///
    /// # Errors
    /// Returns an error if there is no pin, or the kernel refuses.
    pub fn open(pin: &Path) -> Result<Self> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut get = Object {
            pathname: path.as_ptr() as u64,
            bpf_fd: 0,
            file_flags: 0,
        };
        // SAFETY: the path ends with NUL and outlives the call.
        unsafe { descriptor(BPF_OBJ_GET, &mut get) }.map(Self)
    }

    /// Opens a link by its id, pinned or not.
    ///
    /// # Errors
    /// Returns an error if there is none any more, or the kernel refuses: this needs
    /// `CAP_SYS_ADMIN`.
    pub fn by_id(id: u32) -> Result<Self> {
        let mut get = ById {
            id,
            next_id: 0,
            open_flags: 0,
        };
        // SAFETY: the attribute is the one of this command and has no pointer.
        unsafe { descriptor(BPF_LINK_GET_FD_BY_ID, &mut get) }.map(Self)
    }

    /// Replaces the program of the link atomically: every packet meets one of the two.
    ///
    /// # Errors
    /// Returns an error if the link is dead, or the descriptor is no link.
    pub fn update(&self, program: BorrowedFd<'_>) -> Result<()> {
        let mut update = Update {
            link_fd: self.0.as_raw_fd(),
            new_prog_fd: program.as_raw_fd(),
            flags: 0,
            old_prog_fd: 0,
        };
        // SAFETY: the attribute is the one of this command and has no pointer.
        unsafe { bpf(BPF_LINK_UPDATE, &mut update) }.map(drop)
    }

    /// Pins the link at `pin`.
    ///
    /// # Errors
    /// Returns an error if the path exists already, or the file system refuses.
    pub fn pin(&self, pin: &Path) -> Result<()> {
        let path = CString::new(pin.as_os_str().as_bytes())?;
        let mut object = Object {
            pathname: path.as_ptr() as u64,
            bpf_fd: self.0.as_raw_fd(),
            file_flags: 0,
        };
        // SAFETY: the path ends with NUL and outlives the call.
        unsafe { bpf(BPF_OBJ_PIN, &mut object) }.map(drop)
    }

    /// Detaches the program: once this returns, no packet meets it any more. Pins stay.
    ///
    /// # Errors
    /// Returns an error if the descriptor is no link, or the kernel refuses.
    pub fn detach(&self) -> Result<()> {
        // SAFETY: the attribute is one word, the link's descriptor.
        unsafe { bpf(BPF_LINK_DETACH, &mut self.0.as_raw_fd()) }.map(drop)
    }
}

/// Reports whether the kernel has TCX, by a query that only such a kernel supports; called once, at
/// the start. Kernels before Linux 6.6, and those without `CONFIG_NET_XGRESS`, return EINVAL; from
/// an attempt to attach, EINVAL could mean anything.
///
/// # Errors
/// Returns an error if the kernel refuses for another reason.
pub fn is_supported() -> Result<bool> {
    /// The index of the loopback device in every namespace (`LOOPBACK_IFINDEX`,
    /// include/net/flow.h).
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
    /// Id of the program in the kernel.
    pub program: u32,
    /// Id of the link that holds it; 0 if it was attached without one.
    pub link: u32,
}

/// Returns the programs on a hook, in the order in which they run.
///
/// # Errors
/// Returns an error if there is no such interface (`ENODEV`), or the kernel has no TCX.
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
    // SAFETY: the attribute is the one of this command; the kernel writes no more ids than `count`
    // into the arrays, which outlive the call.
    match unsafe { bpf(BPF_PROG_QUERY, &mut query) } {
        Ok(_) => {
            let pairs = programs.into_iter().zip(links);
            let found = pairs.map(|(program, link)| OnHook { program, link });
            Ok(found.take(query.count as usize).collect())
        }
        // The first kernels with TCX return this for a hook that was never used.
        Err(err) if err.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}

/// Returns the name of a program by its id; `None` if the kernel does not report it: that needs
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
