//! docs/inspect.md shows commands and their output: this runs every `bpftool` line of it against a
//! live agent and checks for the documented fields. docs/operations.md must explain every drop
//! reason.

use netdp_common::layout::{DropReason, pins};
use socket2::{Domain, Socket, Type};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testbed::{
    Agent, AgentOptions, Bed, ConfigVolume, EchoClient, EchoServer, UdpEchoServer, output, udp_ask,
};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/inspect.md");

const OPERATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");

const CONFIG: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.0.0.0/8
masqueradeCIDRs:
- 10.1.0.0/29
";

/// OSPF's IP protocol number.
const OSPF: i32 = 89;

const SOON: Duration = Duration::from_secs(30);

/// A documented command and the output block that follows it.
#[derive(Debug, PartialEq, Eq)]
struct Example {
    line: String,
    shown: String,
}

/// A fenced block: its info string and content.
struct Block {
    info: String,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for line in document.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => {
                open = Some(Block {
                    info: info.trim().to_owned(),
                    text: String::new(),
                });
            }
            (None, None) => {}
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    blocks
}

/// Returns the `bpftool` lines of the `sh` blocks. The following block belongs to the last one of a
/// block, unless it is `sh` too.
fn examples(document: &str) -> Vec<Example> {
    let blocks = blocks(document);
    let mut examples = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        if block.info != "sh" {
            continue;
        }
        let lines: Vec<&str> = block
            .text
            .lines()
            .filter(|line| line.starts_with("bpftool"))
            .collect();
        let shown = blocks
            .get(index + 1)
            .filter(|next| next.info != "sh")
            .map_or("", |next| &next.text);
        for (n, line) in lines.iter().enumerate() {
            let last = n + 1 == lines.len();
            examples.push(Example {
                line: (*line).to_owned(),
                shown: if last { shown } else { "" }.to_owned(),
            });
        }
    }
    examples
}

/// Returns the names of fields in bpftool's output: `"name":`.
fn fields(text: &str) -> BTreeSet<&str> {
    let mut fields = BTreeSet::new();
    let mut quoted = text.split('"');
    // The pieces alternate: outside, inside, outside, …
    while let (Some(_), Some(inside)) = (quoted.next(), quoted.next()) {
        let after = quoted.clone().next().unwrap_or_default();
        if after.trim_start().starts_with(':') {
            fields.insert(inside);
        }
    }
    fields
}

/// Sends traffic of every kind: mappings of three protocols, and an inbound flow.
fn make_traffic(bed: &Bed) -> anyhow::Result<Vec<EchoClient>> {
    let pod = &bed.pods[0];
    let server = bed.server(0, &["203.0.113.10/24"])?;
    let neighbour = bed.neighbour(0, &["10.1.0.3/16"])?;
    let _tcp = EchoServer::start(&server, (server.v4()?, 7))?;
    let _udp = UdpEchoServer::start(&server, (server.v4()?, 7))?;
    let _in_pod = EchoServer::start(pod, (pod.v4()?, 7))?;
    let mut out = EchoClient::connect(pod, (server.v4()?, 7), SOON)?;
    let seen = out.ask()?;
    assert_eq!(seen.ip(), bed.uplinks[0].v4()?, "not masqueraded");
    udp_ask(pod, 0, (server.v4()?, 7), SOON)?;
    pod.run(&["ping", "-c1", "-W30", "203.0.113.10"])?;
    // Bypassed.
    let near = bed.neighbour(0, &["10.1.0.20/16"])?;
    pod.run(&["ping", "-c1", "-W30", &near.v4()?.to_string()])?;
    // 10.1.0.0/29 is masqueraded, so that this flow needs a record.
    let mut inwards = EchoClient::connect(&neighbour, (pod.v4()?, 7), SOON)?;
    let seen = inwards.ask()?;
    assert_eq!(seen.ip(), neighbour.v4()?);
    Ok(vec![out, inwards])
}

#[test]
fn every_command_shows_the_fields_that_the_document_shows() {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let examples = examples(&document);
    for (map, _) in pins::ALL {
        let path = format!("$BPFFS/{map}");
        let about = |example: &Example| {
            let mut words = example.line.split_whitespace();
            words.any(|word| word == path) && !example.shown.is_empty()
        };
        assert!(
            examples.iter().any(about),
            "{DOCUMENT} does not show the map {map}"
        );
    }

    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(1, &["172.16.0.0/24"])
        .build()
        .unwrap();
    let config = ConfigVolume::new(CONFIG).unwrap();
    let _routing_daemon = bed
        .node
        .open(|| Socket::new(Domain::IPV4, Type::RAW, Some(OSPF.into())))
        .unwrap();
    let options = AgentOptions::new(env!("CARGO_BIN_EXE_netdp")).config(config.path());
    let agent = Agent::start(&bed.node, options).unwrap();
    let _connections = make_traffic(&bed).unwrap();

    for example in &examples {
        let printed = run(&agent.bpffs(), &example.line).unwrap();
        let real = fields(&printed);
        let missing: Vec<_> = fields(&example.shown)
            .into_iter()
            .filter(|field| !real.contains(field))
            .collect();
        assert!(
            missing.is_empty(),
            "`{}` does not print {missing:?}, but:\n{printed}",
            example.line
        );
    }
}

/// Runs a line as a reader would, with `BPFFS` set.
fn run(bpffs: &Path, line: &str) -> anyhow::Result<String> {
    // Without pipefail the exit status of bpftool in a pipeline would be lost.
    let script = format!("set -o pipefail; {line}");
    output(
        Command::new("bash")
            .args(["-c", &script])
            .env("BPFFS", bpffs),
    )
}

#[test]
fn every_drop_reason_is_explained() {
    let document = std::fs::read_to_string(OPERATIONS).unwrap();
    for reason in DropReason::ALL {
        let row = format!("| `{}` |", reason.name());
        assert!(
            document.lines().any(|line| line.starts_with(&row)),
            "{OPERATIONS} has no row {row}"
        );
    }
}

#[test]
fn commands_and_their_output_are_found() {
    let document = "text\n```sh\n# why\nbpftool a\nbpftool b $BPFFS/x\n```\nthen\n```json\n\
                    {\"k\": 1}\n```\n```sh\nnetdp status\n```\n```sh\nbpftool c\n```\n";
    let example = |line: &str, shown: &str| Example {
        line: line.to_owned(),
        shown: shown.to_owned(),
    };
    assert_eq!(
        examples(document),
        [
            example("bpftool a", ""),
            example("bpftool b $BPFFS/x", "{\"k\": 1}\n"),
            example("bpftool c", ""),
        ]
    );
}

#[test]
fn fields_are_names_before_a_colon() {
    let printed = r#"[{"key": 0, "value": {"a": "text", "list": ["x"]}}]"#;
    assert_eq!(
        fields(printed),
        BTreeSet::from(["a", "key", "list", "value"])
    );
}
