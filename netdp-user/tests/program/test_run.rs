//! Test runs of programs with `BPF_PROG_TEST_RUN`.

use aya::programs::SchedClassifier;
use std::os::fd::{AsFd as _, AsRawFd as _};

/// Verdict of a program on a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// Passed to the next program, with these bytes.
    Next(Vec<u8>),
    /// Dropped (`TC_ACT_SHOT`).
    Shot,
    /// Redirected to another device, with these bytes.
    Redirected(Vec<u8>),
}

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE` of include/uapi/linux/bpf.h (Linux 6.12).
pub const CHECKSUM_COMPLETE: u32 = 1 << 2;

/// Reports whether the kernel has `BPF_F_IPV6` (Linux 6.16), without which no program can keep the
/// complete checksum of an IPv6 packet right. Older kernels are not tested for it.
pub fn kernel_keeps_complete_checksums() -> bool {
    let release =
        std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's version");
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
    (number(), number()) >= (Some(6), Some(16))
}

/// The `test` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Indexes of `ingress_ifindex` and `ifindex` in the words of `struct __sk_buff`.
const INGRESS_IFINDEX: usize = 9;
const IFINDEX: usize = 10;

/// The interfaces of a packet, by index.
#[derive(Clone, Copy)]
pub struct On {
    /// The one on which the program runs.
    pub ifindex: u32,
    /// The one by which the packet came to the node; 0 if the node sends it.
    pub came_by: u32,
}

/// Runs the program with `BPF_PROG_TEST_RUN` on these interfaces of the namespace. Directly, because
/// aya's function has no flags.
pub fn test_run(program: &SchedClassifier, frame: &[u8], flags: u32, on: On) -> Seen {
    /// `enum bpf_cmd` in include/uapi/linux/bpf.h.
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    let mut out = vec![0; frame.len() + 64];
    // `struct __sk_buff` of include/uapi/linux/bpf.h: only fields that may be set can be non-zero.
    let mut context = [0_u32; 48];
    context[IFINDEX] = on.ifindex;
    context[INGRESS_IFINDEX] = on.came_by;
    let fd = program.fd().expect("a loaded program").as_fd().as_raw_fd();
    let mut attr = Attr {
        prog_fd: u32::try_from(fd).expect("a file descriptor"),
        data_size_in: u32::try_from(frame.len()).expect("a short frame"),
        data_size_out: u32::try_from(out.len()).expect("a short frame"),
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        ctx_in: context.as_ptr() as u64,
        ctx_size_in: u32::try_from(size_of_val(&context)).expect("a short context"),
        flags,
        ..Attr::default()
    };
    // SAFETY: the pointers are to live buffers of the given sizes.
    let status = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut attr,
            size_of::<Attr>(),
        )
    };
    assert_eq!(
        status,
        0,
        "test run with flags {flags}: {} (EBADMSG: the complete checksum came out wrong) of {frame:02x?}",
        std::io::Error::last_os_error()
    );
    out.truncate(attr.data_size_out as usize);
    /// `TC_ACT_UNSPEC`, equal to `TCX_NEXT`.
    const NEXT: u32 = u32::MAX;
    match attr.retval {
        NEXT => Seen::Next(out),
        2 => Seen::Shot,
        // `TC_ACT_REDIRECT`.
        7 => Seen::Redirected(out),
        other => panic!("the program returned {other}"),
    }
}
