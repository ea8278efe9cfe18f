//! The translators: netdp, and those that it is compared with.

use super::bed::{Family, NON_MASQUERADE, Options, Subject, V4, V6};
use anyhow::Result;
use std::fs;
use std::path::Path;
use testbed::{Agent, AgentOptions, Netns};

impl Subject {
    /// Configures the translator on the node; `dir` is for its files.
    pub fn install(self, node: &Netns, dir: &Path, options: &Options) -> Result<Option<Agent>> {
        let file = |name: &str, text: &str| -> Result<String> {
            let path = dir.join(name);
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        match self {
            Self::Netdp | Self::NetdpIptables => {
                let config = format!("nonMasqueradeCIDRs: [{}]\n", NON_MASQUERADE.join(", "));
                let mode = match self {
                    Self::NetdpIptables => "iptables",
                    _ => "ebpf",
                };
                return start(node, &file("config", &config)?, mode, options).map(Some);
            }
            Self::Nft => {
                node.run(&["nft", "-f", &file("nft", &nft(options))?])?;
            }
            Self::IpMasqAgent => {
                for (tool, family) in [("iptables-restore", V4), ("ip6tables-restore", V6)] {
                    node.run(&[
                        tool,
                        "--wait",
                        "60",
                        &file(tool, &ip_masq_agent(family, options))?,
                    ])?;
                }
            }
            Self::Nobody => {}
        }
        Ok(None)
    }
}

fn start(node: &Netns, config: &str, mode: &str, options: &Options) -> Result<Agent> {
    let mut agent = AgentOptions::new(env!("CARGO_BIN_EXE_netdp"))
        .config(config.as_ref())
        .uplink(options.medium.uplink())
        .uplink("up1")
        .arg("--mode")
        .arg(mode)
        .arg("--enable-ipv6");
    if !options.to_ports.is_empty() {
        agent = agent.arg("--to-ports").arg(options.to_ports);
    }
    for &argument in options.netdp {
        agent = agent.arg(argument);
    }
    Agent::start(node, agent)
}

fn nft(options: &Options) -> String {
    let mut rules = String::new();
    for net in NON_MASQUERADE {
        let family = if net.contains(':') { "ip6" } else { "ip" };
        rules += &format!("{family} daddr {net} return; ");
    }
    if !options.to_ports.is_empty() {
        rules += &format!(
            "meta l4proto {{tcp, udp}} masquerade to :{}; ",
            options.to_ports
        );
    }
    format!(
        "table inet wire {{ chain post {{ type nat hook postrouting priority srcnat; \
         oifname != {{ \"up0\", \"up1\" }} return; {rules} masquerade; }}\n}}\n"
    )
}

/// Returns the chains that ip-masq-agent writes with `--random-fully`, its default.
fn ip_masq_agent(family: Family, options: &Options) -> String {
    let mut rules = String::from(
        "*nat\n:IP-MASQ-AGENT - [0:0]\n-A POSTROUTING -m addrtype ! --dst-type LOCAL -j IP-MASQ-AGENT\n",
    );
    rules += match family {
        V4 => "-A IP-MASQ-AGENT -d 169.254.0.0/16 -j RETURN\n",
        V6 => "-A IP-MASQ-AGENT -d fe80::/10 -j RETURN\n",
    };
    for net in NON_MASQUERADE {
        if net.contains(':') == (family == V6) {
            rules += &format!("-A IP-MASQ-AGENT -d {net} -j RETURN\n");
        }
    }
    if !options.to_ports.is_empty() {
        for proto in ["tcp", "udp", "sctp"] {
            rules += &format!(
                "-A IP-MASQ-AGENT -p {proto} -j MASQUERADE --to-ports {} --random-fully\n",
                options.to_ports
            );
        }
    }
    rules + "-A IP-MASQ-AGENT -j MASQUERADE --random-fully\nCOMMIT\n"
}
