//! Policies of any size in the format of each variant.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Network that all policies bypass: the generator's packets to it are not masqueraded. It is in
/// the middle of the list.
pub const NEAR: &str = "10.200.0.0/16";

/// Maximum number of CIDRs in one configuration file of netdp.
const FILE: usize = 40_000;

/// Returns `count` non-masquerade CIDRs.
pub fn cidrs(count: u32) -> Vec<String> {
    let mut all: Vec<String> = (0..count.saturating_sub(1))
        .map(|n| format!("{}/24", Ipv4Addr::from((20 << 24) + (n << 8))))
        .collect();
    all.insert(all.len() / 2, NEAR.into());
    all
}

/// Returns the content of netdp's configuration files.
pub fn netdp(count: u32) -> Vec<String> {
    let files = cidrs(count);
    files
        .chunks(FILE)
        .map(|part| {
            let mut text = format!("cidrLimit: {FILE}\nnonMasqueradeCIDRs:\n");
            for cidr in part {
                let _ = writeln!(text, "- {cidr}");
            }
            text
        })
        .collect()
}

/// Returns ip-masq-agent's chain (cmd/ip-masq-agent/ip-masq-agent.go, v2.5.0) for
/// `iptables-restore`.
pub fn masq_agent(count: u32) -> String {
    let mut text = String::from("*nat\n:IP-MASQ - [0:0]\n");
    text += "-A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs \
             all non-LOCAL destination traffic to our custom IP-MASQ chain\" -m addrtype ! \
             --dst-type LOCAL -j IP-MASQ\n";
    for cidr in cidrs(count) {
        let _ = writeln!(
            text,
            "-A IP-MASQ -d {cidr} -m comment --comment \"ip-masq-agent: local traffic is not \
             subject to MASQUERADE\" -j RETURN"
        );
    }
    text += "-A IP-MASQ -m comment --comment \"ip-masq-agent: outbound traffic is subject to \
             MASQUERADE (must be last in chain)\" -j MASQUERADE\nCOMMIT\n";
    text
}

/// Returns the same policy as one nftables set, for `nft -f -`.
pub fn nft_set(count: u32) -> String {
    format!(
        "table ip bench_masq {{\n set near {{ type ipv4_addr; flags interval; elements = {{ {} }} }}\n \
         chain post {{ type nat hook postrouting priority 100; fib daddr type local return; \
         ip daddr @near return; masquerade; }}\n}}\n",
        cidrs(count).join(", ")
    )
}

/// First CIDR of [`cidrs`].
const FIRST: &str = "20.0.0.0/24";

/// Returns a policy in any format with its first network replaced; all that follow stay.
pub fn another(policy: &str, turn: u32) -> String {
    policy.replacen(FIRST, &format!("192.0.2.{}/32", turn % 250), 1)
}

/// Rule that enables conntrack in the kernel without any forwarded packet traversing it: only the
/// cost of tracking is measured.
pub const TRACK: &str = "table ip bench_track {\n chain input { type filter hook input \
                         priority 0; ct state invalid drop; }\n}\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_all_cidrs() {
        for count in [1, 12, 100_000] {
            assert_eq!(cidrs(count).len(), count as usize);
            let lines: usize = netdp(count)
                .iter()
                .map(|file| file.lines().filter(|line| line.starts_with("- ")).count())
                .sum();
            assert_eq!(lines, count as usize);
            assert_eq!(
                masq_agent(count).matches("-j RETURN").count(),
                count as usize
            );
            assert_eq!(nft_set(count).matches('/').count(), count as usize);
        }
    }

    #[test]
    fn every_form_has_a_first_network_to_change() {
        for policy in [netdp(3).concat(), masq_agent(3), nft_set(3)] {
            assert_eq!(policy.matches(FIRST).count(), 1);
            assert!(another(&policy, 7).contains("192.0.2.7/32"));
        }
    }
}
