//! Explanation of the fate of a packet: the datapath's own decision ([`pipeline::run`]) over the
//! live maps, which stay as they are, with every question that it asks.

pub(crate) mod answer;
mod env;
pub mod packet;
mod question;
mod skb;
mod sockets;

pub use env::LiveMaps;
pub use packet::PacketBytes;
pub use question::{NotAsked, PortTried, Question, Tried};
pub use skb::Rewritten;

use crate::routes::RouteQueries;
use anyhow::{Context as _, Result};
use env::{Facts, LiveEnv};
use netdp_common::direction::Direction;
use netdp_common::env::Config as _;
use netdp_common::layout::{Addr, Counters, DropReason, Mapping, PolicyValue, Tuple, Uplink};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::{Packet, Parsed, parse};
use netdp_common::pipeline;
use netdp_common::verdict::Outcome;
use skb::ByteSkb;
use sockets::Sockets;
use std::cell::RefCell;
use std::path::Path;

/// The place of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// The direction of the hook.
    pub direction: Direction,
    /// Index of the interface of the hook.
    pub ifindex: u32,
    /// Index of the interface by which the packet came to the node; 0 if the node itself sends it.
    pub came_by: u32,
    /// True if a socket of the node sends it.
    pub by_socket: bool,
}

/// The decision about a packet.
#[derive(Debug, Clone)]
pub struct Explained {
    /// The verdict on the packet.
    pub verdict: Verdict,
    /// Its tuple, if it has addresses.
    pub tuple: Option<Tuple>,
    /// The questions with their answers, in order.
    pub questions: Vec<Question>,
    /// The interface's entry; `None` if it has no programs.
    pub uplink: Option<Uplink>,
    /// The time of the decision, in ticks.
    pub now: u32,
    /// The packet as it goes on, with its link header.
    pub bytes: Vec<u8>,
}

/// Verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on as it is.
    Unmodified(Why),
    /// It goes on with another end.
    Rewritten(Rewritten),
    /// It waits for the first fragment of its datagram.
    Held,
    /// It is dropped. A refusal is also answered with an ICMP error.
    Dropped(DropReason),
}

/// The reason for which a packet goes on as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The interface has no programs.
    NoPrograms,
    /// No decision was made: not IP, a VLAN device's, out of scope, or a guest on the link sent it.
    OutOfScope,
    /// The policy bypasses its destination, or an earlier one did and the connection goes on.
    Bypassed,
    /// It is the node's own.
    Own,
    /// It is the reply of a flow that keeps the pod's address.
    Reply,
    /// It can't be translated, and `--untranslatable` lets it pass.
    LetOut,
    /// It arrives, and belongs to no mapping.
    Arrives,
}

impl Explained {
    /// Returns the policy's entry for the destination, if the policy was asked and has one.
    #[must_use]
    pub fn policy(&self) -> Option<PolicyValue> {
        self.questions.iter().find_map(|question| match question {
            Question::Policy { value, .. } => *value,
            _ => None,
        })
    }

    /// Returns the mapping that the packet belongs to.
    #[must_use]
    pub fn mapping(&self) -> Option<Mapping> {
        let own = self.tuple?;
        self.questions.iter().find_map(|question| match question {
            Question::Mapping { tuple, found } if *tuple == own => *found,
            Question::Owner { wire, found } if *wire == own => *found,
            _ => None,
        })
    }

    /// Returns the ports that were tried for a new mapping, in order.
    #[must_use]
    pub fn ports_tried(&self) -> Vec<PortTried> {
        question::ports_tried(&self.questions, self.now)
    }

    /// Returns what could not be asked.
    pub fn not_asked(&self) -> impl Iterator<Item = NotAsked> {
        self.questions.iter().filter_map(|question| match question {
            Question::NotAsked(what) => Some(*what),
            _ => None,
        })
    }
}

/// The kernel's tables, each an error if it can't be asked.
struct Kernel {
    routes: Result<RouteQueries>,
    sockets: Result<Sockets>,
}

/// The datapath of this node.
pub struct Explainer {
    maps: LiveMaps,
    kernel: RefCell<Kernel>,
}

impl Explainer {
    /// Opens the datapath pinned below `bpffs`, in this network namespace.
    ///
    /// # Errors
    /// Returns an error that names the directory if none is pinned there, or it is of another
    /// layout.
    pub fn open(bpffs: &Path) -> Result<Self> {
        Ok(Self {
            maps: LiveMaps::open(bpffs)?,
            kernel: RefCell::new(Kernel {
                routes: RouteQueries::open(),
                sockets: Sockets::open(),
            }),
        })
    }

    /// Decides from now on by another policy than the one in force: `policy` returns the entry of
    /// the longest prefix that covers an address. Mappings and everything else stay.
    pub fn set_policy(&mut self, policy: impl Fn(&Addr) -> Option<PolicyValue> + 'static) {
        self.maps.set_policy(Box::new(policy));
    }

    /// Returns the datapath's time, in ticks.
    ///
    /// # Errors
    /// Returns an error if the settings or the clock can't be read.
    pub fn now(&self) -> Result<u32> {
        env::now(&self.maps)
    }

    /// Decides about a packet as the programs would, and changes nothing.
    ///
    /// # Errors
    /// Returns an error if a map or the kernel's tables can't be read.
    pub fn decide(&self, packet: &PacketBytes, at: At) -> Result<Explained> {
        let l2_len = match self.maps.uplink(at.ifindex)? {
            Some(uplink) => uplink.l2_len,
            None => 0,
        };
        let own = || {
            let mut kernel = self.kernel.borrow_mut();
            let routes = kernel.routes.as_mut().ok()?;
            let address = routes.hardware_address(at.ifindex).ok()??;
            <[u8; 6]>::try_from(address).ok()
        };
        let frame = packet.on_link(l2_len, own);
        let facts = Facts {
            len: u32::try_from(frame.bytes.len()).context("the packet is too long")?,
            mac: frame.source,
            tos: packet.tos(),
        };
        let Some(env) = LiveEnv::new(&self.maps, &self.kernel, at, &facts)? else {
            let mut parsed = Packet::EMPTY;
            let is_ip = parse(packet.ip(), packet.ethertype(), 0, &mut parsed) == Parsed::Ip;
            return Ok(Explained {
                verdict: Verdict::Unmodified(Why::NoPrograms),
                tuple: is_ip.then_some(parsed.tuple),
                questions: Vec::new(),
                uplink: None,
                now: 0,
                bytes: frame.bytes,
            });
        };
        let skb = ByteSkb::new(frame.bytes, frame.ethertype);
        let mut scratch = Box::new(Scratch::EMPTY);
        let outcome = pipeline::run(&skb, &env, &mut scratch, at.direction);
        let (uplink, now) = (*env.uplink(), env.time());
        let (counters, questions) = env.finish()?;
        let tuple = (scratch.pkt.tuple != Packet::EMPTY.tuple).then_some(scratch.pkt.tuple);
        let verdict = match (outcome, skb.rewritten()) {
            (Outcome::Pass, Some(rewritten)) => Verdict::Rewritten(rewritten),
            (Outcome::Pass, None) => Verdict::Unmodified(why(&counters, at.direction)),
            _ if skb.is_queued() => Verdict::Held,
            _ => Verdict::Dropped(reason(&counters).context("a drop without a reason")?),
        };
        Ok(Explained {
            verdict,
            tuple,
            questions,
            uplink: Some(uplink),
            now,
            bytes: skb.into_bytes(),
        })
    }
}

/// Returns why a packet passes, by what was counted.
const fn why(counters: &Counters, direction: Direction) -> Why {
    if let Direction::Ingress = direction {
        return Why::Arrives;
    }
    if !counters.egress_bypassed.is_zero() {
        Why::Bypassed
    } else if !counters.egress_host.is_zero() {
        Why::Own
    } else if !counters.egress_replies.is_zero() {
        Why::Reply
    } else if !counters.egress_let_out.is_zero() {
        Why::LetOut
    } else {
        Why::OutOfScope
    }
}

/// Returns the reason of the drop that was counted.
fn reason(counters: &Counters) -> Option<DropReason> {
    let mut all = DropReason::ALL.iter().copied();
    all.find(|reason| counters.drops.get(*reason) != 0)
}
