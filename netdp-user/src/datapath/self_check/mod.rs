//! Test runs of the programs over packets of our own (`BPF_PROG_TEST_RUN`), which check that the
//! loaded programs do what the configuration says.
//!
//! The packets are pings from addresses that are assigned to no host (192.0.0.8, RFC 7600; 100::1
//! of the discard-only prefix, RFC 6666). The mapping that one of them creates is removed at once;
//! both packets are counted like any others, except that they are no hits of rules.

mod packet;

use super::{Datapath, Hook, HookState};
use crate::config::{Config, RuleAction};
use crate::uplinks::{LinkLayer, Uplink};
use anyhow::{Context as _, Result, ensure};
use aya::programs::{TestRun as _, TestRunOptions};
use netdp_common::layout;
use netdp_common::layout::Addr;
use netdp_common::layout::Family;
use netdp_common::layout::Traffic;
use netdp_common::layout::Tuple;
use netdp_common::layout::proto;
use packet::{ID, ping, ping_from};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT` too: on to the next program.
const NEXT: u32 = u32::MAX;

/// Offset of `ifindex` in `struct __sk_buff` (include/uapi/linux/bpf.h).
const IFINDEX_AT: usize = 40;

/// Reports whether an address is the source of test packets.
pub(crate) fn is_test(addr: &Addr) -> bool {
    [Family::V4, Family::V6]
        .into_iter()
        .any(|family| *addr == Addr::from(pod(family)))
}

/// Returns the source address of a test packet.
const fn pod(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 0, 8)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)),
    }
}

impl Datapath {
    /// Sends two packets of each family through the program of an uplink: one that `config`
    /// bypasses, and one that it masquerades. An uplink without an Ethernet header can't be tested.
    ///
    /// # Errors
    /// Returns an error that names the wrong result and the uplink.
    pub fn self_check(
        &mut self,
        config: &Config,
        uplink: &Uplink,
        local: &BTreeSet<IpAddr>,
        families: &[Family],
    ) -> Result<()> {
        if uplink.link_layer != LinkLayer::Ethernet {
            return Ok(());
        }
        for &family in families {
            let has_address = match family {
                Family::V4 => uplink.v4.is_some(),
                Family::V6 => uplink.v6.is_some(),
            };
            if let Some(to) = destination(config, RuleAction::Bypass, family, local) {
                self.check_bypassed(uplink, to)?;
            }
            if let Some(to) = destination(config, RuleAction::Masquerade, family, local)
                && has_address
                && self.maps.action(&Addr::from(to))? == layout::Action::Masquerade
            {
                self.check_masqueraded(uplink, to, local)?;
            }
        }
        Ok(())
    }

    /// Checks that the programs are where they were attached.
    ///
    /// # Errors
    /// Returns an error for the first that is not.
    pub fn check_hooks(&self) -> Result<()> {
        for placed in self.placed() {
            ensure!(
                placed.check()? != HookState::Missing,
                "self-check: {placed}"
            );
        }
        Ok(())
    }

    fn check_bypassed(&mut self, uplink: &Uplink, to: IpAddr) -> Result<()> {
        let from = pod(Family::of(to));
        let sent = ping(from, to);
        let (pod, peer) = (Addr::from(from), Addr::from(to));
        let before = self.maps.pair_hits(&pod, &peer)?;
        let (verdict, seen) = self.send(uplink, &sent)?;
        let mut counted = Traffic::default();
        for (pair, hits) in self.maps.pair_hits(&pod, &peer)? {
            counted.add(&hits);
            if let Some(earlier) = before.get(&pair) {
                counted.subtract(earlier);
            }
        }
        self.maps.add_own(&peer, counted, 0)?;
        ensure!(
            verdict == NEXT && seen == sent,
            "self-check on {}: a packet to {to}, which the configuration bypasses, was not passed \
             unmodified (verdict {verdict:#x})",
            uplink.name
        );
        Ok(())
    }

    fn check_masqueraded(
        &mut self,
        uplink: &Uplink,
        to: IpAddr,
        local: &BTreeSet<IpAddr>,
    ) -> Result<()> {
        let outcome = self.send(uplink, &ping(pod(Family::of(to)), to));
        if self.remove_test_mapping(to) {
            self.maps.add_own(&Addr::from(to), Traffic::default(), 1)?;
        }
        let (verdict, seen) = outcome?;
        let source = ping_from(&seen, to);
        ensure!(
            verdict == NEXT && source.is_some_and(|source| local.contains(&source)),
            "self-check on {}: a packet to {to}, which the configuration masquerades, was not \
             translated as expected (verdict {verdict:#x}, {})",
            uplink.name,
            source.map_or_else(|| "damaged".into(), |source| format!("from {source}"))
        );
        Ok(())
    }

    fn send(&mut self, uplink: &Uplink, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 64];
        let mut context = [0; IFINDEX_AT + 4];
        context[IFINDEX_AT..].copy_from_slice(&uplink.ifindex.to_ne_bytes());
        let ran = self
            .program(Hook::Egress)?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("self-check on {}: running the program", uplink.name))?;
        out.truncate(ran.data_size_out as usize);
        Ok((ran.return_value, out))
    }

    /// Removes the mapping that a test has created, if any, and reports whether there was one.
    fn remove_test_mapping(&mut self, to: IpAddr) -> bool {
        let family = Family::of(to);
        let number = match family {
            Family::V4 => proto::ICMP,
            Family::V6 => proto::ICMPV6,
        };
        let tuple = Tuple::new(Addr::from(pod(family)), Addr::from(to), ID, 0, number);
        let maps = &mut self.maps;
        let Ok(half) = maps.snat.get(&tuple, 0) else {
            return false;
        };
        // A missing entry is fine.
        let _ = maps.rev_snat.remove(&tuple.reply_to(half.addr, half.id));
        let _ = maps.snat.remove(&tuple);
        true
    }
}

/// Returns a destination that the configuration treats in this way. Documentation ranges (RFC 5737,
/// RFC 3849) come first: no host uses them.
fn destination(
    config: &Config,
    action: RuleAction,
    family: Family,
    local: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let documentation: [IpAddr; 4] = [
        Ipv4Addr::new(192, 0, 2, 1).into(),
        Ipv4Addr::new(198, 51, 100, 1).into(),
        Ipv4Addr::new(203, 0, 113, 1).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    ];
    let ruled = config.rules.iter().filter(|rule| rule.action == action);
    documentation
        .into_iter()
        .chain(ruled.filter_map(|rule| rule.prefix.hosts().next()))
        // Enough to find one that no longer prefix covers.
        .take(64)
        .filter(|ip| Family::of(*ip) == family && !local.contains(ip))
        .filter(|ip| !ip.is_multicast() && !ip.is_unspecified() && !ip.is_loopback())
        .find(|ip| config.decide(*ip).action == action)
}
