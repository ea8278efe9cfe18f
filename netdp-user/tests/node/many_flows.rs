//! A node with very many rules and tracked connections: the takeover still works.

use crate::common::{NETDP, SOON, same_family, status};
use anyhow::{Result, ensure};
use netdp_user::nf_conntrack::{Conntrack, Flow, NfTcpState, NfTuple};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use testbed::{Agent, AgentOptions, Bed, WorkDir, ensure_tracked, wait_for};

/// Number of rules, and of connections per family.
const RULES: u32 = 100_000;
const FLOWS: u32 = 50_000;

/// Returns the `n`th destination of a family, which no rule covers.
fn far(n: u32, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(n)).into()
    } else {
        Ipv4Addr::from(0xcb00_0000 + n).into()
    }
}

/// Returns answered connections: netfilter translates every other one, the rest is untranslated.
fn flows(bed: &Bed) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for v6 in [false, true] {
        let like = far(0, v6);
        let pod = same_family(&bed.pods[0].addresses, like)?;
        let node = same_family(&bed.uplinks[0].addresses, like)?;
        flows.extend((0..FLOWS).map(|n| {
            let out = |source| NfTuple {
                source,
                destination: far(n, v6),
                source_id: 40_000,
                destination_id: 443,
            };
            Flow {
                protocol: 6,
                original: out(pod),
                reply: out(if n % 2 == 0 { node } else { pod }).reversed(),
                answered: true,
                timeout: 600,
                tcp: Some(NfTcpState::Established),
                picked_up: true,
            }
        }));
    }
    Ok(flows)
}

/// Writes as many rules as fit into three documents; they cover pods and none of the destinations.
fn rules(dir: &WorkDir) -> Result<()> {
    let line = |n: u32| format!("- {}/32\n", Ipv4Addr::from(0x0b00_0000 + n * 2));
    for (name, first) in [("a", 0), ("b", RULES / 3), ("c", 2 * (RULES / 3))] {
        let mut text =
            format!("cidrLimit: {RULES}\nnonMasqueradeCIDRs:\n- 172.16.0.0/12\n- fd00::/8\n");
        for n in first..first + RULES / 3 {
            write!(text, "{}", line(n))?;
        }
        fs::write(dir.path().join(name), text)?;
    }
    Ok(())
}

/// The records of all connections are in the maps before the agent reports that it is ready, and
/// that is soon.
#[test]
fn a_hundred_thousand_rules_meet_a_hundred_thousand_flows() -> Result<()> {
    let bed = Bed::dual_stack()?;
    bed.kubelet_chain("nft", "IP-MASQ-AGENT")?;
    let dir = WorkDir::new("rules")?;
    rules(&dir)?;
    ensure_tracked(&bed.node, 2 * FLOWS as usize)?;
    let flows = flows(&bed)?;
    bed.node.enter(|| {
        let mut conntrack = Conntrack::open()?;
        flows.iter().try_for_each(|flow| conntrack.create(flow))
    })??;
    let agent = AgentOptions::new(NETDP)
        .config(dir.path())
        .arg("--enable-ipv6");
    let agent = Agent::start(&bed.node, agent)?;
    let log = agent.log();
    for words in [
        // Both families, every other connection.
        format!("{FLOWS} untranslated connections stay untranslated"),
        format!("{FLOWS} connections translated by netfilter stay with it"),
    ] {
        ensure!(log.contains(&words), "{words}: {log}");
    }
    wait_for(SOON, "the status to know the rules", || {
        status(&agent).is_ok_and(|it| {
            let rules = it["report"]["config"]["rules"].as_array().map(Vec::len);
            rules.is_some_and(|rules| rules > 99_000)
        })
    })
}
