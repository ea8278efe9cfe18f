//! `iptables -t nat -S` after netdp prints the same as after ip-masq-agent: every case of its tests
//! (cmd/ip-masq-agent/ip-masq-agent_test.go at e3000864), in both families, with both backends.

use crate::common::NETDP;
use anyhow::{Result, ensure};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume};

const JUMP: &str = r#"-A POSTROUTING -m comment --comment "ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain" -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT"#;
const RETURN: &str =
    r#"-m comment --comment "ip-masq-agent: local traffic is not subject to MASQUERADE" -j RETURN"#;
const MASQUERADE: &str = r#"-m comment --comment "ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)""#;

const RANDOM: [(&str, &str); 3] = [
    ("", " --random-fully"),
    ("--random-fully=true", " --random-fully"),
    ("--random-fully=false", ""),
];

/// `--to-ports`, and for each of the resulting rules the ports and, except for the last, the
/// probability.
const PORTS: [(&str, &[(&str, &str)]); 5] = [
    ("", &[]),
    ("1024-29999", &[("1024-29999", "")]),
    (
        "1024-29999,32768-65535",
        &[("1024-29999", "0.46929256292"), ("32768-65535", "")],
    ),
    (
        "1024-29999,32768-49151,61000-65535",
        &[
            ("1024-29999", "0.58072791388"),
            ("32768-49151", "0.78317399602"),
            ("61000-65535", ""),
        ],
    ),
    ("1024,65535", &[("1024", "0.50000000000"), ("65535", "")]),
];

const RESERVED: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];

/// Configuration, a flag, and the destinations of the RETURN rules in both families.
const POLICIES: [(&str, &str, &[&str], &[&str]); 9] = [
    (
        "nonMasqueradeCIDRs: []",
        "",
        &["169.254.0.0/16"],
        &["fe80::/10"],
    ),
    (
        "",
        "",
        &["169.254.0.0/16", RESERVED[0], RESERVED[1], RESERVED[2]],
        &["fe80::/10"],
    ),
    (
        "",
        "--nomasq-all-reserved-ranges",
        &[
            "169.254.0.0/16",
            RESERVED[0],
            RESERVED[1],
            RESERVED[2],
            RESERVED[3],
            RESERVED[4],
            RESERVED[5],
            RESERVED[6],
            RESERVED[7],
            RESERVED[8],
            RESERVED[9],
            RESERVED[10],
        ],
        &["fe80::/10"],
    ),
    (
        "nonMasqueradeCIDRs: [192.168.0.0/16, 'fc00::/7', 10.0.0.0/8]",
        "",
        &["169.254.0.0/16", "192.168.0.0/16", "10.0.0.0/8"],
        &["fe80::/10", "fc00::/7"],
    ),
    (
        "masqLinkLocal: true",
        "",
        &[RESERVED[0], RESERVED[1], RESERVED[2]],
        &["fe80::/10"],
    ),
    (
        "masqLinkLocalIPv6: true",
        "",
        &["169.254.0.0/16", RESERVED[0], RESERVED[1], RESERVED[2]],
        &[],
    ),
    (
        "nonMasqueradeCIDRs: [192.0.2.7/32, '2001:db8::7/128']",
        "",
        &["169.254.0.0/16", "192.0.2.7/32"],
        &["fe80::/10", "2001:db8::7/128"],
    ),
    // Rules without -d.
    (
        "nonMasqueradeCIDRs: [0.0.0.0/0, '::/0']",
        "",
        &["169.254.0.0/16", ""],
        &["fe80::/10", ""],
    ),
    (
        "{\"nonMasqueradeCIDRs\": [\"10.0.0.0/8\"], \"masqLinkLocal\": true, \"masqLinkLocalIPv6\": true}",
        "",
        &["10.0.0.0/8"],
        &[],
    ),
];

fn golden(returns: &[&str], ports: &[(&str, &str)], random: &str) -> String {
    let mut lines = vec![JUMP.to_owned()];
    for prefix in returns {
        let destination = if prefix.is_empty() {
            String::new()
        } else {
            format!("-d {prefix} ")
        };
        lines.push(format!("-A IP-MASQ-AGENT {destination}{RETURN}"));
    }
    for protocol in ["tcp", "udp", "sctp"] {
        for (range, chance) in ports {
            let chance = if chance.is_empty() {
                String::new()
            } else {
                format!(" -m statistic --mode random --probability {chance}")
            };
            lines.push(format!(
                "-A IP-MASQ-AGENT -p {protocol} {MASQUERADE}{chance} -j MASQUERADE --to-ports {range}{random}"
            ));
        }
    }
    lines.push(format!(
        "-A IP-MASQ-AGENT {MASQUERADE} -j MASQUERADE{random}"
    ));
    lines.join("\n")
}

/// Returns the rules of the nat table that an agent with these flags wrote.
fn written(bed: &Bed, backend: &str, config: &str, flags: &[&str]) -> Result<[String; 2]> {
    let config = ConfigVolume::new(config)?;
    let mut options = AgentOptions::new(NETDP)
        .config(config.path())
        .arg("--mode=iptables")
        .arg("--enable-ipv6");
    for flag in flags.iter().filter(|flag| !flag.is_empty()) {
        options = options.arg(*flag);
    }
    let mut agent = Agent::start(&bed.node, options)?;
    let rules = |family: &str| -> Result<String> {
        let program = format!("{family}-{backend}");
        let all = bed
            .node
            .run(&[&program, "--wait", "60", "-t", "nat", "-S"])?;
        let rules: Vec<_> = all.lines().filter(|line| line.starts_with("-A ")).collect();
        Ok(rules.join("\n"))
    };
    let both = [rules("iptables")?, rules("ip6tables")?];
    agent.stop()?;
    agent.netdp(&["detach"])?;
    ensure!(rules("iptables")?.is_empty() && rules("ip6tables")?.is_empty());
    Ok(both)
}

fn bed(backend: &str) -> Result<Bed> {
    let bed = Bed::dual_stack()?;
    bed.kubelet_chain(backend, "KUBE-KUBELET-CANARY")?;
    Ok(bed)
}

fn check_policies(backend: &str) -> Result<()> {
    let bed = bed(backend)?;
    for (config, flag, v4, v6) in POLICIES {
        let found = written(&bed, backend, config, &[flag])?;
        let random = " --random-fully";
        let wanted = [golden(v4, &[], random), golden(v6, &[], random)];
        assert_eq!(found, wanted, "{backend} {config} {flag}");
    }
    Ok(())
}

fn check_ports(backend: &str) -> Result<()> {
    let bed = bed(backend)?;
    for (flag, random) in RANDOM {
        for (ranges, rules) in PORTS {
            let to_ports = format!("--to-ports={ranges}");
            let config = "nonMasqueradeCIDRs: []";
            let found = written(&bed, backend, config, &[flag, &to_ports])?;
            let wanted = [
                golden(&["169.254.0.0/16"], rules, random),
                golden(&["fe80::/10"], rules, random),
            ];
            assert_eq!(found, wanted, "{backend} {flag} {to_ports}");
        }
    }
    Ok(())
}

#[test]
fn policies_by_nft() -> Result<()> {
    check_policies("nft")
}

#[test]
fn policies_by_legacy() -> Result<()> {
    check_policies("legacy")
}

#[test]
fn ports_by_nft() -> Result<()> {
    check_ports("nft")
}

#[test]
fn ports_by_legacy() -> Result<()> {
    check_ports("legacy")
}
