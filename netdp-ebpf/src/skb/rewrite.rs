//! Rewriting: in place where that is safe, otherwise by the kernel's helpers.

use super::{Skb, helpers, write};
use netdp_common::direction::{Direction, End};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::{FastPacket, Packet};
use netdp_common::skb::{ErrorPart, Rewrite};
use netdp_common::slot::Slot;
use netdp_common::verdict::Failed;

impl Rewrite for Skb {
    #[inline(always)]
    fn rewrite_in_place(&self, fast: &FastPacket, slot: Slot, direction: Direction) -> bool {
        write::rewrite_fast(self, fast, slot, direction)
    }

    #[inline(always)]
    fn rewrite(&self, pkt: &Packet, end: End, hook: Direction) -> Result<(), Failed> {
        if write::rewrite_whole(self, pkt, end, hook) {
            return Ok(());
        }
        self.rewrite_by_helpers(pkt, end)
    }

    #[inline(always)]
    fn rewrite_by_helpers(&self, pkt: &Packet, end: End) -> Result<(), Failed> {
        match helpers::rewrite(self, pkt, end) {
            true => Ok(()),
            false => Err(Failed),
        }
    }

    #[inline(always)]
    fn rewrite_error(&self, scratch: &Scratch, end: End, part: ErrorPart) -> Result<(), Failed> {
        match helpers::rewrite_error(self, scratch, end, part) {
            0 => Ok(()),
            _ => Err(Failed),
        }
    }

    #[inline(always)]
    fn has_hops(&self, pkt: &Packet) -> bool {
        helpers::has_hops(self, pkt)
    }
}
