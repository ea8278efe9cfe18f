//! A packet in the fake's kernel. Rewriting is recorded, not done: that is the programs' own.

use super::state::Fake;
use netdp_common::direction::{Direction, End};
use netdp_common::env::Env;
use netdp_common::layout::{DropReason, Endpoint, Tuple};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::{Bytes, FastPacket, KEEP_IP_ID, L4, Packet};
use netdp_common::skb::{Deliver, ErrorPart, FragmentQueue, Linear, Rewrite};
use netdp_common::slot::Slot;
use netdp_common::verdict::{Failed, Outcome};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;

/// An endpoint that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub end: End,
    pub to: SocketAddr,
    /// The part of an ICMP error; `None` for other packets.
    pub part: Option<ErrorPart>,
}

/// A packet at a hook.
pub struct FakeSkb<'a> {
    pub fake: &'a Fake,
    /// All bytes, from the link header on.
    pub bytes: Vec<u8>,
    /// Length of the linear area, in bytes.
    pub linear: Cell<usize>,
    pub ethertype: u16,
    pub offloaded_tag: bool,
    /// Offset of the remaining hops.
    pub hops_at: usize,
    pub hash: Cell<u32>,
    pub queued: Cell<bool>,
    /// Rewrites, in order.
    pub written: RefCell<Vec<Written>>,
}

impl FakeSkb<'_> {
    fn write(&self, end: End, to: SocketAddr, part: Option<ErrorPart>, ip_id: u32) {
        self.fake.written_ip_id.set(ip_id);
        self.written.borrow_mut().push(Written { end, to, part });
    }

    /// Writes the endpoint as the kernel's helpers do, which may fail.
    fn try_write(&self, pkt: &Packet, end: End, part: Option<ErrorPart>) -> Result<(), Failed> {
        if self.fake.fail_rewrite.get() == Some(end) {
            return Err(Failed);
        }
        self.write(end, new_endpoint(pkt), part, pkt.new_ip_id);
        Ok(())
    }
}

/// Returns the endpoint that is written into the packet.
fn new_endpoint(pkt: &Packet) -> SocketAddr {
    // A fragment without L4 header has no place for it.
    let id = match pkt.l4 {
        L4::LaterFragment => 0,
        _ => pkt.new.id,
    };
    socket_addr(&Endpoint { id, ..pkt.new })
}

fn socket_addr(endpoint: &Endpoint) -> SocketAddr {
    let id = u16::try_from(endpoint.id).expect("16 bits");
    SocketAddr::new(endpoint.addr.into(), id)
}

impl Bytes for FakeSkb<'_> {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.bytes[..self.linear.get()].words(offset)
    }

    fn sum(&self, offset: usize, len: u32) -> Option<u32> {
        self.bytes[..].sum(offset, len)
    }
}

impl Linear for FakeSkb<'_> {
    fn packet_len(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a length")
    }

    fn linear_len(&self) -> u32 {
        u32::try_from(self.linear.get()).expect("a length")
    }

    fn pull(&self, len: u32) {
        self.linear.set(self.linear.get().max(len as usize));
    }

    fn ethertype(&self) -> u16 {
        self.ethertype
    }

    fn has_offloaded_tag(&self) -> bool {
        self.offloaded_tag
    }

    fn has_hash(&self) -> bool {
        self.hash.get() != 0
    }

    fn set_hash(&self, hash: u32) {
        self.hash.set(hash);
    }
}

impl Rewrite for FakeSkb<'_> {
    fn rewrite_in_place(&self, _: &FastPacket, slot: Slot, direction: Direction) -> bool {
        if self.fake.partial_checksums.get() {
            return false;
        }
        let endpoint = Endpoint {
            addr: slot.addr(),
            id: slot.id().into(),
        };
        let end = direction.translated_end();
        self.write(end, socket_addr(&endpoint), None, KEEP_IP_ID);
        true
    }

    fn rewrite(&self, pkt: &Packet, end: End, _: Direction) -> Result<(), Failed> {
        self.rewrite_by_helpers(pkt, end)
    }

    fn rewrite_by_helpers(&self, pkt: &Packet, end: End) -> Result<(), Failed> {
        self.try_write(pkt, end, None)
    }

    fn rewrite_error(&self, scratch: &Scratch, end: End, part: ErrorPart) -> Result<(), Failed> {
        self.try_write(&scratch.pkt, end, Some(part))
    }

    fn has_hops(&self, _: &Packet) -> bool {
        self.bytes[self.hops_at] > 1
    }
}

impl FragmentQueue for FakeSkb<'_> {
    fn queue_fragment(&self, datagram: &Tuple) -> bool {
        let hook = self.fake.before_queue.take();
        if let Some(hook) = hook {
            hook(self.fake);
        }
        let mut queue = self.fake.queue.borrow_mut();
        if queue.len() >= self.fake.queue_capacity {
            return false;
        }
        queue.push((*datagram, self.bytes.clone()));
        self.queued.set(true);
        true
    }

    fn release_fragments(&self, datagram: &Tuple) -> bool {
        let mut queue = self.fake.queue.borrow_mut();
        let released = queue.extract_if(.., |(of, _)| of == datagram);
        let mut reinjected = self.fake.reinjected.borrow_mut();
        reinjected.extend(released.map(|(_, bytes)| bytes));
        !self.fake.fail_release.get()
    }
}

impl Deliver for FakeSkb<'_> {
    fn send_to_pod(&self, _: &Packet) -> Result<Outcome, Failed> {
        if self.fake.fail_delivery.get() {
            return Err(Failed);
        }
        Ok(Outcome::Redirect)
    }

    fn report_drop<E: Env>(&self, _: &E, reason: DropReason, direction: Direction) -> bool {
        self.fake.reported.borrow_mut().push((reason, direction));
        true
    }

    fn log_refusal<E: Env>(&self, _: &E, pkt: &Packet, reason: DropReason) {
        self.fake.logged.borrow_mut().push((pkt.tuple, reason));
    }

    fn answer_refusal<E: Env>(&self, _: &E, _: &Packet) -> Outcome {
        self.fake.answered.set(self.fake.answered.get() + 1);
        Outcome::Redirect
    }
}
