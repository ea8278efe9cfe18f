//! Redirects to another interface.

use aya_ebpf::bindings::TC_ACT_REDIRECT;
use aya_ebpf::helpers::bpf_redirect_neigh;
use netdp_common::verdict::Outcome;

/// Sends the packet by the interface with this index; the kernel looks up the next hop itself.
#[inline(always)]
pub fn redirect(ifindex: u32) -> Outcome {
    // SAFETY: a helper with plain arguments.
    let action = unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) };
    if action as i32 == TC_ACT_REDIRECT {
        Outcome::Redirect
    } else {
        Outcome::Drop
    }
}
