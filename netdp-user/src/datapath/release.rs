//! Taking a program off its hook at once: `BPF_LINK_DETACH` (Linux 5.9), which
//! aya does not offer. A link that only loses its pin is freed some time later.

use std::ffi::CString;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// `enum bpf_cmd` in include/uapi/linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// The member of `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
struct Get {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Detaches the link that is pinned at `pin`: when this returns, no packet
/// meets its program any more. The pin stays.
///
/// # Errors
/// There is no pin, it is no link, or the kernel refused.
pub fn detach(pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut get = Get {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: the path ends with NUL and lives through the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    // SAFETY: the kernel has just given us this descriptor.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the attribute is one word, the link's descriptor.
    unsafe { bpf(BPF_LINK_DETACH, &mut link.as_raw_fd()) }?;
    Ok(())
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
