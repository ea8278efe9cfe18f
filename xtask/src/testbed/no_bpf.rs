//! Processes for which bpf(2) fails, as on a kernel that has none.

use nix::errno::Errno;
use std::io::Error;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Has every bpf(2) of the command's process, and of those that it starts, fail
/// with this error: a seccomp filter (seccomp(2)), as container runtimes use.
pub(super) fn fail_bpf(command: &mut Command, error: Errno) {
    // SAFETY: between fork and exec the closure makes two system calls; it takes
    // no lock and allocates nothing.
    unsafe {
        command.pre_exec(move || install(error));
    }
}

fn install(error: Errno) -> std::io::Result<()> {
    let instruction = |code: u32, k, jt, jf| {
        // The opcodes fit: linux/bpf_common.h.
        let code = code.to_le_bytes();
        let code = u16::from_le_bytes([code[0], code[1]]);
        libc::sock_filter { code, jt, jf, k }
    };
    let number = u32::try_from(libc::SYS_bpf).map_err(Error::other)?;
    // Failing is with the error in the lower half (SECCOMP_RET_DATA).
    let fail = libc::SECCOMP_RET_ERRNO | (error as i32).cast_unsigned();
    let mut filter = [
        // The number of the system call comes first in `seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number, 0, 1),
        instruction(libc::BPF_RET | libc::BPF_K, fail, 0, 0),
        instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the arguments are numbers, and a program that lives through the call.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            ) == 0
    };
    if done {
        Ok(())
    } else {
        Err(Error::last_os_error())
    }
}
