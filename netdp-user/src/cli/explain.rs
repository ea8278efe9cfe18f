//! `netdp explain` and `netdp codes`.

use super::args::{CniDir, InstancePaths, Output};
use super::go_flags::parse_bool;
use super::output;
use crate::codes::{self, Code};
use crate::config::{self, ClusterCidrs, Config, Options};
use crate::events;
use crate::explain::answer::{self, Answer, Answers, Case, End, Given, Node, Outcome};
use crate::explain::packet::{self, PacketBytes};
use crate::monitor;
use crate::pods::Names;
use crate::rollback::Fallback;
use crate::sources::file;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

/// Exit status if the answer is not the expected one, and if it is unknown.
const NOT_EXPECTED: u8 = 1;
const UNKNOWN: u8 = 2;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if it was explained, and is as --expect says; 1 if it is not; \
2 if that is unknown.

Examples:
  netdp explain 10.2.0.17:443
  netdp explain --from 172.16.0.2:44216 10.2.0.17:443
  netdp explain --from 172.16.0.2 10.2.0.17:53 -p udp --expect node
  netdp explain --with new.yaml 10.2.0.17 --expect pod
  netdp explain --pcap capture.pcap:3
  netdp explain --event '#a1f3'"
)]
pub(super) struct Explain {
    /// Destination: an address or a host name, with a port (443 if none is given). Several are explained one by one.
    #[arg(value_name = "DST", value_parser = End::parse,
          required_unless_present_any = ["packet", "hex", "pcap", "event"])]
    to: Vec<End>,
    /// The pod: an address with or without a port, or namespace/pod. Without it, any pod. May be repeated, with the
    /// pod's address of the other family.
    #[arg(long, value_name = "POD", value_parser = End::parse)]
    from: Vec<End>,
    /// Name and address of the Service whose endpoints the destinations are, as kubectl netdp explain finds them. May
    /// be repeated, with the Service's address of the other family.
    #[arg(long, value_name = "NAME=ADDR:PORT", value_parser = Given::parse, requires = "to")]
    service: Vec<Given>,
    /// Protocol: tcp, udp, icmp, sctp or a number.
    #[arg(long, short, value_name = "PROTOCOL", default_value = "tcp",
          value_parser = answer::protocol)]
    protocol: u8,
    /// Exit with 0 only if the answer is this: an address that the destination sees, node (any address of the node), pod
    /// (the pod's), or drop.
    #[arg(long, value_name = "WHAT")]
    expect: Option<Expect>,
    /// Explain by the policy of this file or directory instead of the one in force; may be repeated.
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// Read --with as an agent with --nomasq-all-reserved-ranges does.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = false, default_missing_value = "true", action = clap::ArgAction::Set,
          value_parser = parse_bool)]
    nomasq_all_reserved_ranges: bool,
    /// Explain the packet that a line of `tcpdump -n` describes.
    #[arg(long, value_name = "LINE", conflicts_with_all = ["to", "from", "hex", "pcap"])]
    packet: Option<String>,
    /// Explain the packet with these bytes, from its Ethernet or IP header on.
    #[arg(long, value_name = "BYTES", conflicts_with_all = ["to", "from", "pcap"])]
    hex: Option<String>,
    /// Explain a packet of a capture, the first if no number is given.
    #[arg(long, value_name = "FILE[:N]", conflicts_with_all = ["to", "from"])]
    pcap: Option<String>,
    /// Explain the last packet that was refused or dropped under this number of `netdp monitor`, as
    /// '#a1f3'; the agent remembers 200 of them.
    #[arg(long, value_name = "ID", value_parser = events::parse_id,
          conflicts_with_all = ["to", "from", "packet", "hex", "pcap"])]
    event: Option<u16>,
    #[command(flatten)]
    pub(super) paths: InstancePaths,
    #[command(flatten)]
    pods: CniDir,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// The expected answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    /// The destination sees this address.
    Address(IpAddr),
    /// It sees an address of the node.
    Node,
    /// It sees the pod's own.
    Pod,
    /// It sees nothing.
    Drop,
}

impl FromStr for Expect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "node" => Ok(Self::Node),
            "pod" => Ok(Self::Pod),
            "drop" => Ok(Self::Drop),
            address => address
                .parse()
                .map(Self::Address)
                .map_err(|_| "neither an address nor node, pod or drop".to_owned()),
        }
    }
}

impl Expect {
    /// Reports whether an answer is the expected one; `None` if that is unknown.
    fn is_met(self, answer: &Answer) -> Option<bool> {
        if !answer.is_certain || matches!(answer.outcome, Outcome::Held) {
            return None;
        }
        Some(match self {
            Self::Address(address) => answer.seen_as == Some(address),
            Self::Node => matches!(
                answer.outcome,
                Outcome::Masqueraded | Outcome::TranslatedFirst | Outcome::Own
            ),
            Self::Pod => match answer.outcome {
                Outcome::Bypassed | Outcome::Reply => true,
                // The source may be the node's own.
                Outcome::NoUplink | Outcome::OutOfScope | Outcome::LetOut => answer.is_pods,
                // It may be another pod of the node, or the node itself.
                Outcome::Stays => return None,
                _ => false,
            },
            Self::Drop => matches!(
                answer.outcome,
                Outcome::Dropped | Outcome::Refused | Outcome::NoRoute
            ),
        })
    }
}

impl Explain {
    /// Runs the command; errors are printed, because their exit status is 2.
    pub(super) fn run(&self) -> ExitCode {
        output::or_trouble(self.answers())
    }

    fn answers(&self) -> Result<ExitCode> {
        let with = self.policy()?;
        let names = Names::load(&self.pods.cni_dir, &StateDir::at(&self.paths.state_dir));
        let mut node = Node::open(
            &self.paths.bpffs,
            &self.paths.state_dir,
            with.as_ref(),
            &names,
        )?;
        let cases = self.cases(&names)?;
        let answers = answer::explain_all(&mut node, &cases)?;
        let met = self.expect.map_or(Some(true), |expect| {
            let each = answers.iter().map(|answer| expect.is_met(answer));
            each.reduce(|all, one| match (all, one) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (None, _) | (_, None) => None,
                _ => Some(true),
            })?
        });
        let all = Answers::new(node.agent_running, node.rejected().to_vec(), answers);
        let text = match self.output {
            Output::Json => all.json()?,
            Output::Text => all.text()?,
        };
        output::write_out(&text, self.output == Output::Json)?;
        Ok(match met {
            Some(true) => ExitCode::SUCCESS,
            Some(false) => ExitCode::from(NOT_EXPECTED),
            None => ExitCode::from(UNKNOWN),
        })
    }

    fn cases(&self, names: &Names) -> Result<Vec<Case>> {
        if let Some(packet) = self.given_packet()? {
            return Ok(vec![Case::of_packet(packet, names)?]);
        }
        let mut cases = Case::of(&self.from, &self.to, self.protocol, names)?;
        Given::set(&self.service, &mut cases);
        Ok(cases)
    }

    fn given_packet(&self) -> Result<Option<PacketBytes>> {
        if let Some(line) = &self.packet {
            return packet::from_line(line)?.build().map(Some);
        }
        if let Some(bytes) = &self.hex {
            return packet::from_hex(bytes).map(Some);
        }
        if let Some(id) = self.event {
            return self.of_event(id).map(Some);
        }
        let Some(pcap) = &self.pcap else {
            return Ok(None);
        };
        let numbered = pcap.rsplit_once(':').and_then(|(path, number)| {
            let number = number.parse().ok()?;
            Some((path, number))
        });
        let (path, number) = numbered.unwrap_or((pcap, 1));
        let file = File::open(path).with_context(|| format!("opening {path}"))?;
        packet::from_pcap(file, number)
            .with_context(|| format!("packet {number} of {path}"))
            .map(Some)
    }

    /// Returns the packet of an event.
    fn of_event(&self, id: u16) -> Result<PacketBytes> {
        let dropped = monitor::recall(&self.paths.state_dir, id)?;
        let name = events::format_id(id);
        ensure!(
            !dropped.arriving,
            "the packet of {name} was arriving; packets that leave can be explained"
        );
        let mut bytes = dropped.packet;
        // Decisions do not depend on what was not reported, but on its length.
        bytes.resize(usize::try_from(dropped.length)?.max(bytes.len()), 0);
        if dropped.l2_len == 0 {
            return Ok(PacketBytes::ip_only(bytes));
        }
        PacketBytes::ethernet(bytes).with_context(|| format!("{name} has no Ethernet header"))
    }

    /// Reads the policy of `--with`.
    fn policy(&self) -> Result<Option<Config>> {
        if self.with.is_empty() {
            return Ok(None);
        }
        let mut documents = Vec::new();
        for path in &self.with {
            documents.extend(read(path)?);
        }
        let dir = StateDir::at(&self.paths.state_dir);
        let agents = Fallback::read(&dir).map(|fallback| fallback.config).ok();
        let agents = agents.unwrap_or_default();
        let options = Options {
            // IPv6 entries count if the datapath translates IPv6, which it knows itself.
            enable_ipv6: true,
            nomasq_all_reserved_ranges: self.nomasq_all_reserved_ranges
                || agents.nomasq_all_reserved_ranges,
            default_action: agents.default_action,
        };
        let mut cluster = ClusterCidrs::default();
        cluster.auto.add_saved(dir.last_networks());
        let loaded =
            config::load_for_cluster(&documents, &options, &cluster).map_err(|rejected| {
                let errors: Vec<_> = rejected.errors.iter().map(ToString::to_string).collect();
                anyhow::anyhow!("{}", errors.join("\n"))
            })?;
        Ok(Some(loaded.config))
    }
}

fn read(path: &Path) -> Result<Vec<config::Document>> {
    let paths = [path.to_owned()];
    if !file::missing(&paths).is_empty() {
        bail!("{} does not exist", path.display());
    }
    file::read(&paths).map_err(|rejected| {
        let errors: Vec<_> = rejected.errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", errors.join("\n"))
    })
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  netdp codes
  netdp codes NDP401
  netdp codes -o json")]
pub(super) struct Codes {
    /// The code to explain. Without it, all are listed.
    #[arg(value_name = "CODE")]
    code: Option<Code>,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Codes {
    /// Prints the section about a code, or the list of all.
    ///
    /// # Errors
    /// Returns an error if standard output can't be written.
    pub(super) fn run(&self) -> Result<()> {
        if self.output == Output::Json {
            let text = codes::json(self.code)?;
            return output::write_out(&text, true);
        }
        if let Some(code) = self.code {
            let text = format!("{code}: {}\n\n{}\n", code.text(), code.explanation());
            return output::write_out(&text, false);
        }
        let mut rows = output::table(&["CODE", "SEVERITY", "MEANING"]);
        for code in Code::ALL {
            rows.add_row([&code.to_string(), &code.severity().to_string(), code.text()]);
        }
        output::write_out(&format!("{rows}\n"), false)
    }
}

#[cfg(test)]
mod tests {
    use super::Expect;

    #[test]
    fn expectations_are_words_or_addresses() {
        assert_eq!("node".parse(), Ok(Expect::Node));
        let address = "10.1.0.10".parse().unwrap();
        assert_eq!("10.1.0.10".parse(), Ok(Expect::Address(address)));
        assert!("nobody".parse::<Expect>().is_err());
    }
}
