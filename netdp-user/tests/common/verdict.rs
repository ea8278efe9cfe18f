//! Third-party programs that return a fixed verdict and do nothing else.

use anyhow::{Context as _, Result, bail};
use std::ffi::CString;
use std::io::Error;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use testbed::Netns;

/// `TC_ACT_OK`, equal to `TCX_PASS`: the packet continues and no further program runs.
pub const PASS: i32 = 0;
/// `TC_ACT_UNSPEC`, equal to `TCX_NEXT`.
pub const NEXT: i32 = -1;

/// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS` of `enum bpf_attach_type`.
pub const INGRESS: u32 = 46;
pub const EGRESS: u32 = 47;

/// A loaded program, by its file descriptor.
#[derive(Debug)]
pub struct FixedVerdict(OwnedFd);

/// One instruction (`struct bpf_insn`): operation, registers, offset, value.
const fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> u64 {
    let [o0, o1] = offset.to_ne_bytes();
    let [v0, v1, v2, v3] = value.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, v0, v1, v2, v3])
}

impl FixedVerdict {
    /// Loads a program that returns `action` for every packet.
    pub fn always(action: i32) -> Result<Self> {
        Self::load(&[
            // r0 = action; exit
            instruction(0xb7, 0, 0, action),
            instruction(0x95, 0, 0, 0),
        ])
    }

    /// Loads a program that returns "pass" for IP packets of one transport protocol and "next" for
    /// others.
    pub fn passes(protocol: u8, v6: bool) -> Result<Self> {
        let (ethertype, at) = if v6 { (0x86dd_u16, 20) } else { (0x0800, 23) };
        let ethertype = i32::from(ethertype.to_be());
        Self::load(&[
            // r6 = r1, required by BPF_LD_ABS; r0 = -1
            instruction(0xbf, 0x16, 0, 0),
            instruction(0xb7, 0, 0, NEXT),
            // r2 = skb->protocol; exit if it differs
            instruction(0x61, 0x62, 16, 0),
            instruction(0x55, 2, 5, ethertype),
            // r0 = the protocol byte; r2 = r0; r0 = -1; exit if r2 differs
            instruction(0x30, 0, 0, at),
            instruction(0xbf, 0x02, 0, 0),
            instruction(0xb7, 0, 0, NEXT),
            instruction(0x55, 2, 1, i32::from(protocol)),
            instruction(0xb7, 0, 0, PASS),
            instruction(0x95, 0, 0, 0),
        ])
    }

    fn load(instructions: &[u64]) -> Result<Self> {
        #[repr(C)]
        struct Load {
            kind: u32,
            count: u32,
            instructions: u64,
            license: u64,
            rest: [u64; 3],
            name: [u8; 16],
        }
        const BPF_PROG_LOAD: libc::c_int = 5;
        const SCHED_CLS: u32 = 3;
        let mut attr = Load {
            kind: SCHED_CLS,
            count: u32::try_from(instructions.len())?,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            rest: [0; 3],
            name: *b"stranger\0\0\0\0\0\0\0\0",
        };
        let fd = bpf(BPF_PROG_LOAD, &mut attr).context("loading a program")?;
        // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Attaches it with TCX, before or after all other programs.
    pub fn attach(&self, node: &Netns, device: &str, hook: u32, before: bool) -> Result<()> {
        self.tcx(node, device, hook, if before { 1 << 3 } else { 1 << 4 }, 8)
    }

    /// Detaches it from the hook.
    pub fn detach(&self, node: &Netns, device: &str, hook: u32) -> Result<()> {
        self.tcx(node, device, hook, 0, 9)
    }

    fn tcx(
        &self,
        node: &Netns,
        device: &str,
        hook: u32,
        flags: u32,
        command: libc::c_int,
    ) -> Result<()> {
        #[repr(C)]
        struct Attach {
            ifindex: u32,
            program: u32,
            kind: u32,
            flags: u32,
            replace: u32,
            relative: u32,
            revision: u64,
        }
        let program = u32::try_from(self.0.as_raw_fd())?;
        node.enter(|| {
            let mut attr = Attach {
                ifindex: nix::net::if_::if_nametoindex(device)?,
                program,
                kind: hook,
                flags,
                replace: 0,
                relative: 0,
                revision: 0,
            };
            bpf(command, &mut attr)
                .map(drop)
                .context("attaching a program")
        })?
    }

    /// Pins it for tc(8).
    pub fn pin(&self, at: &Path) -> Result<()> {
        #[repr(C)]
        struct Pin {
            path: u64,
            fd: u32,
            flags: u32,
        }
        let path = CString::new(at.as_os_str().as_encoded_bytes())?;
        let mut attr = Pin {
            path: path.as_ptr() as u64,
            fd: u32::try_from(self.0.as_raw_fd())?,
            flags: 0,
        };
        bpf(6, &mut attr).map(drop).context("pinning a program")
    }
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> Result<i32> {
    // SAFETY: each caller passes the attribute of its command; its pointers outlive the call.
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
        _ => bail!(Error::last_os_error()),
    }
}
