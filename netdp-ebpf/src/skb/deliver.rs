//! The ways of a packet other than to pass it and to drop it.

use super::{Skb, helpers};
use crate::redirect::redirect;
use crate::{drop_log, events, fib, icmp_unreachable};
use netdp_common::direction::Direction;
use netdp_common::env::Env;
use netdp_common::layout::DropReason;
use netdp_common::packet::Packet;
use netdp_common::skb::Deliver;
use netdp_common::verdict::{Failed, Outcome};

impl Deliver for Skb {
    #[inline(always)]
    fn send_to_pod(&self, pkt: &Packet) -> Result<Outcome, Failed> {
        let ifindex = fib::interface(self, &pkt.new.addr, pkt.family).ok_or(Failed)?;
        helpers::decrement_hops(self, pkt).map_err(|_| Failed)?;
        Ok(redirect(ifindex))
    }

    #[inline(always)]
    fn report_drop<E: Env>(&self, env: &E, reason: DropReason, direction: Direction) -> bool {
        events::dropped(self, env, reason, direction)
    }

    #[inline(always)]
    fn log_refusal<E: Env>(&self, env: &E, pkt: &Packet, reason: DropReason) {
        drop_log::log(self, env, pkt, reason);
    }

    #[inline(always)]
    fn answer_refusal<E: Env>(&self, env: &E, pkt: &Packet) -> Outcome {
        icmp_unreachable::send(self, env, pkt)
    }
}
