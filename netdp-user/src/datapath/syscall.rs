//! Calls of bpf(2), for commands that aya does not offer.

use std::io::{Error, Result};
use std::os::fd::{FromRawFd as _, OwnedFd};

/// Calls `bpf(2)` and returns its result.
///
/// # Errors
/// Returns the error of the kernel.
///
/// # Safety
/// `attr` must be the attribute of the command, and the pointers in it valid.
pub unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<i32> {
    // SAFETY: the size is that of the attribute; the rest is the caller's promise.
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

/// Calls [`bpf`] and takes ownership of the descriptor that it returns.
///
/// # Errors
/// Returns the error of the kernel.
///
/// # Safety
/// As for [`bpf`]; the command must return a new descriptor.
pub unsafe fn descriptor<T>(command: libc::c_int, attr: &mut T) -> Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just returned this descriptor, which nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
