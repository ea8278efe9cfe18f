//! Processes for which bpf(2) fails, as on a kernel without it or an older one.

use nix::errno::Errno;
use std::io::Error;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Offset of the lower half of the first argument in `seccomp_data` on a little-endian machine.
const FIRST_ARGUMENT: u32 = 16;

/// Makes bpf(2) fail with this error for the command's process and its children, by a seccomp
/// filter (seccomp(2)) as container runtimes use. `commands` are those that fail (`enum bpf_cmd`,
/// include/uapi/linux/bpf.h); if empty, all do.
pub(super) fn fail_bpf(command: &mut Command, error: Errno, commands: &[u8]) {
    let filter = filter(error, commands);
    // SAFETY: between fork and exec the closure makes two system calls; it takes no lock and
    // allocates nothing.
    unsafe {
        command.pre_exec(move || install(&filter));
    }
}

fn filter(error: Errno, commands: &[u8]) -> Vec<libc::sock_filter> {
    let instruction = |code: u32, k, jt, jf| {
        // The opcodes fit into 16 bits: linux/bpf_common.h.
        let code = code.to_le_bytes();
        let code = u16::from_le_bytes([code[0], code[1]]);
        libc::sock_filter { code, jt, jf, k }
    };
    let number = u32::try_from(libc::SYS_bpf).unwrap_or(u32::MAX);
    // The error number is in the lower half (SECCOMP_RET_DATA).
    let fail = libc::SECCOMP_RET_ERRNO | (error as i32).cast_unsigned();
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut filter = vec![
        // `seccomp_data` begins with the system call number.
        instruction(load, 0, 0, 0),
        instruction(jump, number, 1, 0),
        instruction(end, libc::SECCOMP_RET_ALLOW, 0, 0),
        instruction(load, FIRST_ARGUMENT, 0, 0),
    ];
    for command in commands {
        filter.push(instruction(jump, u32::from(*command), 0, 1));
        filter.push(instruction(end, fail, 0, 0));
    }
    let others = if commands.is_empty() {
        fail
    } else {
        libc::SECCOMP_RET_ALLOW
    };
    filter.push(instruction(end, others, 0, 0));
    filter
}

fn install(filter: &[libc::sock_filter]) -> std::io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(Error::other)?,
        // The kernel only reads it.
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the arguments are integers and a pointer to a filter program that outlives the call.
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
