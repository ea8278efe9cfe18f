//! The packet: [`Skb`] wraps the context of a TC program, whose bytes are read and
//! written in place, or by the kernel's helpers.

mod deliver;
mod helpers;
pub mod read;
mod rewrite;
mod write;

use aya_ebpf::programs::TcContext;
use core::ops::Deref;

/// A packet at a TC hook.
#[repr(transparent)]
pub struct Skb(pub TcContext);

impl Deref for Skb {
    type Target = TcContext;

    #[inline(always)]
    fn deref(&self) -> &TcContext {
        &self.0
    }
}
