//! A packet as bytes, rewritten as the programs rewrite it.

use super::packet::sum_of;
use netdp_common::direction::{Direction, End};
use netdp_common::env::Env;
use netdp_common::layout::{Addr, DropReason, Endpoint, Family, Tuple, proto};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::checksum::{self, ChecksumDelta, Sum};
use netdp_common::packet::{Bytes, ETHERNET, FastPacket, KEEP_IP_ID, L4, MAX_OFFSET, Packet};
use netdp_common::skb::{Deliver, ErrorPart, FragmentQueue, Linear, Rewrite};
use netdp_common::slot::Slot;
use netdp_common::verdict::{Failed, Outcome};
use std::cell::{Cell, RefCell};

/// An endpoint that was written into the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rewritten {
    /// The end of the packet.
    pub end: End,
    /// The current tuple. The L4 id is 0 where the packet has none.
    pub to: Endpoint,
    /// The part of an ICMP error; `None` for other packets.
    pub part: Option<ErrorPart>,
}

/// The bytes of a packet at a hook, all of them linear.
pub(super) struct ByteSkb {
    bytes: RefCell<Vec<u8>>,
    ethertype: u16,
    hash: Cell<u32>,
    rewritten: Cell<Option<Rewritten>>,
    queued: Cell<bool>,
}

impl ByteSkb {
    /// Returns a packet, whose bytes begin with the link header if the device has one.
    pub(super) fn new(bytes: Vec<u8>, ethertype: u16) -> Self {
        Self {
            bytes: RefCell::new(bytes),
            ethertype,
            hash: Cell::new(0),
            rewritten: Cell::new(None),
            queued: Cell::new(false),
        }
    }

    /// Returns what was written.
    pub(super) const fn rewritten(&self) -> Option<Rewritten> {
        self.rewritten.get()
    }

    /// Reports whether it waits for the first fragment of its datagram.
    pub(super) const fn is_queued(&self) -> bool {
        self.queued.get()
    }

    /// Returns the bytes as they are now.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_inner()
    }

    fn note(&self, end: End, to: Endpoint, part: Option<ErrorPart>) {
        self.rewritten.set(Some(Rewritten { end, to, part }));
    }
}

impl Bytes for ByteSkb {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.bytes.borrow()[..].words(offset)
    }

    fn sum(&self, offset: usize, len: u32) -> Option<u32> {
        self.bytes.borrow()[..].sum(offset, len)
    }
}

impl Linear for ByteSkb {
    #[expect(clippy::cast_possible_truncation, reason = "packets are shorter")]
    fn packet_len(&self) -> u32 {
        self.bytes.borrow().len() as u32
    }

    fn linear_len(&self) -> u32 {
        self.packet_len()
    }

    fn pull(&self, _: u32) {}

    fn ethertype(&self) -> u16 {
        self.ethertype
    }

    fn has_offloaded_tag(&self) -> bool {
        false
    }

    fn has_hash(&self) -> bool {
        self.hash.get() != 0
    }

    fn set_hash(&self, hash: u32) {
        self.hash.set(hash);
    }
}

impl Rewrite for ByteSkb {
    fn rewrite_in_place(&self, fast: &FastPacket, slot: Slot, direction: Direction) -> bool {
        let mut pkt = Packet::EMPTY;
        fast.fill(ETHERNET, &mut pkt);
        pkt.new = Endpoint {
            addr: slot.addr(),
            id: slot.id().into(),
        };
        self.rewrite_by_helpers(&pkt, direction.translated_end())
            .is_ok()
    }

    fn rewrite(&self, pkt: &Packet, end: End, _: Direction) -> Result<(), Failed> {
        self.rewrite_by_helpers(pkt, end)
    }

    fn rewrite_by_helpers(&self, pkt: &Packet, end: End) -> Result<(), Failed> {
        let id = match pkt.l4 {
            L4::LaterFragment => 0,
            _ => pkt.new.id,
        };
        self.note(end, Endpoint { id, ..pkt.new }, None);
        replace_end(&mut self.bytes.borrow_mut(), pkt, end).ok_or(Failed)
    }

    fn rewrite_error(&self, scratch: &Scratch, end: End, part: ErrorPart) -> Result<(), Failed> {
        self.note(end, scratch.pkt.new, Some(part));
        replace_error(&mut self.bytes.borrow_mut(), scratch, end, part).ok_or(Failed)
    }

    fn has_hops(&self, pkt: &Packet) -> bool {
        let at = pkt.l3_offset as usize
            + match pkt.family {
                Family::V4 => 8,
                Family::V6 => 7,
            };
        self.bytes.borrow().get(at).is_some_and(|hops| *hops > 1)
    }
}

impl FragmentQueue for ByteSkb {
    /// Queues the fragment: how much room the queue has depends on the other packets in it.
    fn queue_fragment(&self, _: &Tuple) -> bool {
        self.queued.set(true);
        true
    }

    fn release_fragments(&self, _: &Tuple) -> bool {
        true
    }
}

impl Deliver for ByteSkb {
    fn send_to_pod(&self, _: &Packet) -> Result<Outcome, Failed> {
        Ok(Outcome::Redirect)
    }

    fn report_drop<E: Env>(&self, _: &E, _: DropReason, _: Direction) -> bool {
        false
    }

    fn log_refusal<E: Env>(&self, _: &E, _: &Packet, _: DropReason) {}

    fn answer_refusal<E: Env>(&self, _: &E, _: &Packet) -> Outcome {
        Outcome::Redirect
    }
}

/// Returns the offset of an address in the IP header.
const fn addr_offset(family: Family, end: End) -> usize {
    match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    }
}

/// The places in an L4 header: checksum, and id of an end.
const fn l4_places(protocol: u32, end: End) -> Option<(usize, usize)> {
    let port = match end {
        End::Source => 0,
        End::Destination => 2,
    };
    match protocol {
        proto::TCP => Some((16, port)),
        proto::UDP | proto::UDP_LITE | proto::DCCP => Some((6, port)),
        proto::ICMP | proto::ICMPV6 => Some((2, 4)),
        _ => None,
    }
}

/// Replaces one end by `pkt.new`, with the checksums that cover it. `None` if the packet is shorter
/// than it was parsed.
fn replace_end(bytes: &mut [u8], pkt: &Packet, end: End) -> Option<()> {
    let (old_addr, old_id) = end.of(&pkt.tuple);
    let l3 = pkt.l3_offset as usize;
    let has_l4 = !matches!(pkt.l4, L4::LaterFragment | L4::Untranslatable(_));
    if let Some((sum_at, id_at)) = l4_places(pkt.tuple.proto, end).filter(|_| has_l4) {
        let (sum_at, id_at) = (
            pkt.l4_offset as usize + sum_at,
            pkt.l4_offset as usize + id_at,
        );
        let new_id = low16(pkt.new.id);
        let delta = ChecksumDelta {
            addr: match pkt.tuple.proto {
                proto::ICMP => 0,
                _ => checksum::addr_diff(old_addr, &pkt.new.addr, pkt.family),
            },
            id: checksum::diff(old_id.to_be().into(), new_id.to_be().into()),
        };
        let changes = delta.addr != 0 && *old_addr != pkt.new.addr || old_id != new_id;
        let may_lack = pkt.tuple.proto == proto::UDP;
        if changes && let Some(sum) = delta.field(get(bytes, sum_at)?, may_lack) {
            put(bytes, sum_at, &sum.to_ne_bytes())?;
        }
        if old_id != new_id {
            put(bytes, id_at, &new_id.to_be_bytes())?;
        }
    }
    if pkt.new_ip_id != KEEP_IP_ID {
        let (old, new) = (low16(pkt.fragment_id).to_be(), low16(pkt.new_ip_id).to_be());
        let sum = checksum::replace(get(bytes, l3 + 10)?, checksum::diff(old.into(), new.into()));
        put(bytes, l3 + 10, &sum.to_ne_bytes())?;
        put(bytes, l3 + 4, &new.to_ne_bytes())?;
    }
    replace_addr(bytes, l3, pkt.family, old_addr, &pkt.new.addr, end)
}

/// Replaces an address of an IP header, with the header's checksum.
fn replace_addr(
    bytes: &mut [u8],
    l3: usize,
    family: Family,
    old: &Addr,
    new: &Addr,
    end: End,
) -> Option<()> {
    let at = l3 + addr_offset(family, end);
    match family {
        Family::V4 => {
            let delta = checksum::addr_diff(old, new, family);
            let sum = checksum::replace(get(bytes, l3 + 10)?, delta);
            put(bytes, l3 + 10, &sum.to_ne_bytes())?;
            put(bytes, at, &new.v4_octets())
        }
        Family::V6 => put(bytes, at, new.octets()),
    }
}

/// Replaces one end of an ICMP error by `scratch.pkt.new`, and the opposite end of the packet
/// inside.
fn replace_error(bytes: &mut [u8], scratch: &Scratch, end: End, part: ErrorPart) -> Option<()> {
    let Scratch { pkt, inner, .. } = scratch;
    let l4 = pkt.l4_offset as usize;
    let before = sum_of(bytes.get(l4..)?);
    // The inner packet went the other way: its source is the outer packet's destination.
    let inner_end = end.opposite();
    let (old_addr, old_id) = inner_end.of(&inner.tuple);
    let new_id = low16(pkt.new.id);
    if inner.checksum_offset != 0 {
        let at = inner.checksum_offset as usize;
        let old = get(bytes, at)?;
        let mut delta = checksum::diff(old_id.to_be().into(), new_id.to_be().into());
        if inner.tuple.proto != proto::ICMP {
            delta += checksum::addr_diff(old_addr, &pkt.new.addr, pkt.family);
        }
        if old != 0 || inner.tuple.proto != proto::UDP {
            put(bytes, at, &checksum::replace(old, delta).to_ne_bytes())?;
        }
    }
    if let Some((_, id_at)) = l4_places(inner.tuple.proto, inner_end)
        && new_id != old_id
    {
        put(
            bytes,
            inner.l4_offset as usize + id_at,
            &new_id.to_be_bytes(),
        )?;
    }
    let inner_l3 = inner.l3_offset as usize;
    replace_addr(
        bytes,
        inner_l3,
        pkt.family,
        old_addr,
        &pkt.new.addr,
        inner_end,
    )?;
    let (old_outer, _) = end.of(&pkt.tuple);
    let mut delta = Sum::from(!checksum::fold(before)) + sum_of(bytes.get(l4..)?);
    if part == ErrorPart::Whole && pkt.family == Family::V6 {
        delta += checksum::addr_diff(old_outer, &pkt.new.addr, Family::V6);
    }
    let sum = checksum::replace(get(bytes, l4 + 2)?, delta);
    put(bytes, l4 + 2, &sum.to_ne_bytes())?;
    match part {
        ErrorPart::Inner => Some(()),
        ErrorPart::Whole => {
            let l3 = pkt.l3_offset as usize;
            replace_addr(bytes, l3, pkt.family, old_outer, &pkt.new.addr, end)
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "ids have 16 bits")]
const fn low16(id: u32) -> u16 {
    id as u16
}

/// Returns two bytes in memory order.
fn get(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) -> Option<()> {
    bytes.get_mut(at..at + new.len())?.copy_from_slice(new);
    Some(())
}
