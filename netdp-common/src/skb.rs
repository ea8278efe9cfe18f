//! A packet in the kernel, as the [pipeline](crate::pipeline) reads, rewrites and sends it.
//!
//! `netdp-ebpf` implements it over `struct __sk_buff` and the kernel's helpers, the tests over a
//! vector of bytes.

use crate::direction::{Direction, End};
use crate::env::Env;
use crate::layout::{DropReason, Tuple};
use crate::nat::scratch::Scratch;
use crate::packet::{Bytes, FastPacket, Packet};
use crate::slot::Slot;
use crate::verdict::{Failed, Outcome};

/// The bytes of the packet in its linear area, and what the kernel knows about it.
pub trait Linear: Bytes {
    /// Returns the length of the packet, in bytes.
    fn packet_len(&self) -> u32;
    /// Returns the length of the linear area, in bytes.
    fn linear_len(&self) -> u32;
    /// Makes the first `len` bytes linear; if that fails, they are missing as before.
    fn pull(&self, len: u32);
    /// Returns the EtherType, or that of the first in-band tag, host byte order.
    fn ethertype(&self) -> u16;
    /// Reports whether the device has taken a VLAN tag off.
    fn has_offloaded_tag(&self) -> bool;
    /// Reports whether the packet has a hash.
    fn has_hash(&self) -> bool;
    /// Sets the hash that selects the queue.
    fn set_hash(&self, hash: u32);
}

/// The parts of an ICMP error that are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorPart {
    /// The outer header and the packet inside.
    Whole,
    /// The packet inside.
    Inner,
}

/// Rewriting of one end of the packet, with every checksum that covers it.
pub trait Rewrite {
    /// Rewrites a fast-path packet, whose IP header is at [`ETHERNET`](crate::packet::ETHERNET),
    /// without the kernel's helpers; returns `false` if its checksum may be partial, and has
    /// written nothing then.
    fn rewrite_in_place(&self, fast: &FastPacket, slot: Slot, direction: Direction) -> bool;
    /// Replaces one end by `pkt.new`. `hook`: where the program runs.
    ///
    /// # Errors
    /// Returns an error if the kernel failed to rewrite the packet.
    fn rewrite(&self, pkt: &Packet, end: End, hook: Direction) -> Result<(), Failed>;
    /// Replaces one end by `pkt.new`, with the kernel's helpers.
    ///
    /// # Errors
    /// As [`Self::rewrite`].
    fn rewrite_by_helpers(&self, pkt: &Packet, end: End) -> Result<(), Failed>;
    /// Replaces one end of an ICMP error by `scratch.pkt.new`, and the opposite end of the packet
    /// inside.
    ///
    /// # Errors
    /// As [`Self::rewrite`].
    fn rewrite_error(&self, scratch: &Scratch, end: End, part: ErrorPart) -> Result<(), Failed>;
    /// Reports whether the packet has at least one more hop left.
    fn has_hops(&self, pkt: &Packet) -> bool;
}

/// The queue of fragments that arrive before the first one of their datagram.
pub trait FragmentQueue {
    /// Queues the packet; returns `false` if there is no room.
    fn queue_fragment(&self, datagram: &Tuple) -> bool;
    /// Reinjects the queued fragments of the datagram whose first fragment this packet is; returns
    /// `false` if the packet could not be restored.
    fn release_fragments(&self, datagram: &Tuple) -> bool;
}

/// The ways of a packet other than to pass it and to drop it.
pub trait Deliver {
    /// Sends a packet to the pod at `pkt.new`, with one hop less.
    ///
    /// # Errors
    /// Returns an error if there is no route to the pod, or the kernel failed to rewrite the
    /// packet.
    fn send_to_pod(&self, pkt: &Packet) -> Result<Outcome, Failed>;
    /// Reports a dropped packet to those who listen ([`crate::layout::Settings::events`]). Returns
    /// `false` if it was left out, which is counted.
    fn report_drop<E: Env>(&self, env: &E, reason: DropReason, direction: Direction) -> bool;
    /// Logs a refused packet.
    fn log_refusal<E: Env>(&self, env: &E, pkt: &Packet, reason: DropReason);
    /// Turns a refused packet into an ICMP error about itself, and sends that back.
    fn answer_refusal<E: Env>(&self, env: &E, pkt: &Packet) -> Outcome;
}

/// The whole packet.
pub trait Skb: Linear + Rewrite + FragmentQueue + Deliver {}

impl<T: Linear + Rewrite + FragmentQueue + Deliver> Skb for T {}
