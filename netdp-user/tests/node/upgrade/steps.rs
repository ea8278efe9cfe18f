//! An agent that is killed in the middle of an upgrade: before each kind of system call by which it
//! changes anything.

use super::{End, Node, Version, files, layout_of};
use crate::common::filters;
use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;

/// System calls by which an agent changes something.
const CALLS: [&str; 3] = ["bpf", "rename", "sendto"];

/// Parts of their text, as strace writes it, that show that something outside the process changes.
const CHANGES: [&str; 9] = [
    "BPF_OBJ_PIN",
    "BPF_MAP_UPDATE_ELEM",
    "BPF_MAP_UPDATE_BATCH",
    "BPF_MAP_DELETE_ELEM",
    "BPF_LINK_UPDATE",
    "BPF_LINK_DETACH",
    "RTM_NEWTFILTER",
    // The same, where strace does not know the socket's protocol.
    "nlmsg_type=0x2c",
    "rename(",
];

/// Changes by which programs are replaced.
const REPLACEMENTS: [&str; 3] = ["BPF_LINK_UPDATE", "RTM_NEWTFILTER", "nlmsg_type=0x2c"];

/// A system call of the agent's first thread, before which it is killed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    call: &'static str,
    /// Number of the call among those of its name, from 1 on.
    number: usize,
    change: &'static str,
    /// Kind of the link whose pin the call names; only such calls are numbered then.
    link: Option<&'static str>,
}

/// The look for the egress link, between the replacement of the two programs. Calls of bpf(2) are not
/// numbered there as in the record, because less is left to do.
const BETWEEN: Step = Step {
    call: "statx",
    number: 1,
    change: "BPF_LINK_UPDATE",
    link: Some("egress_"),
};

/// Returns steps of an upgrade, from strace's record of a whole one: of changes of one kind in
/// succession the first and the last.
fn steps(trace: &str) -> Vec<Step> {
    let Some((first, _)) = trace.split_once(' ') else {
        return Vec::new();
    };
    let mut numbers = BTreeMap::<&str, usize>::new();
    let mut groups: Vec<Vec<Step>> = Vec::new();
    for line in trace.lines() {
        let call = line
            .strip_prefix(first)
            .and_then(|text| text.trim_start().split_once('('))
            .and_then(|(name, _)| CALLS.into_iter().find(|call| *call == name));
        let Some(call) = call else {
            continue;
        };
        let number = numbers.entry(call).or_default();
        *number += 1;
        let Some(change) = CHANGES.into_iter().find(|change| line.contains(change)) else {
            continue;
        };
        let step = Step {
            call,
            number: *number,
            change,
            link: None,
        };
        match groups.last_mut() {
            Some(group) if group.iter().all(|it| it.change == change) => group.push(step),
            _ => groups.push(vec![step]),
        }
    }
    let ends = groups.into_iter().flat_map(|mut group| {
        group.drain(1..group.len().max(2) - 1);
        group
    });
    ends.collect()
}

/// Returns the ids of the programs on the uplink: ingress, egress.
fn programs(node: &Node) -> Result<[u32; 2]> {
    if node.mechanism == "tcx" {
        let query = |hook| -> Result<u32> {
            let asked = (node.bed.node).enter(|| SchedClassifier::query_tcx("eth0", hook))?;
            let (_, programs) = asked.context("asking for TCX programs")?;
            let [program] = programs.as_slice() else {
                anyhow::bail!("{} programs on a hook", programs.len());
            };
            Ok(program.id())
        };
        return Ok([query(TcAttachType::Ingress)?, query(TcAttachType::Egress)?]);
    }
    let mut ids = [0; 2];
    for (id, filter) in ids.iter_mut().zip(filters(&node.bed.node, "eth0")?) {
        let (_, rest) = filter.split_once(" id ").context("a filter without id")?;
        *id = rest.split_whitespace().next().context("no id")?.parse()?;
    }
    Ok(ids)
}

/// Runs a whole upgrade, and returns its steps.
fn record(mechanism: &'static str) -> Result<Vec<Step>> {
    let mut node = Node::start(mechanism)?;
    let trace = node.agent.state_dir().with_file_name("trace");
    node.end(End::Killed)?;
    node.select(Version::New)?;
    let path = trace.display().to_string();
    let calls = format!("trace={}", CALLS.join(","));
    let runner = ["strace", "-D", "-f", "-s", "256", "-o", &path, "-e", &calls];
    node.agent.options().set_runner(&runner);
    node.agent.restart()?;
    node.check_upgraded()?;
    let trace = std::fs::read_to_string(&trace).context("reading strace's record")?;
    Ok(steps(&trace))
}

/// States in which a killed agent has left the node.
#[derive(Debug, Default)]
struct Left {
    /// All programs are the old ones.
    old: usize,
    /// One is a new one.
    mixed: usize,
    /// Both are new ones.
    new: usize,
}

/// Kills an upgrading agent before each of these steps. The next one, killed at a later step, goes
/// on from there; the last one finishes. In between the old agent is started again: it continues as
/// long as nothing of the new layout runs, and refuses afterwards.
fn interrupt(mechanism: &'static str, steps: &[Step]) -> Result<()> {
    let mut node = Node::start(mechanism)?;
    node.end(End::Killed)?;
    let counted = node.masqueraded()?;
    let (mut left, mut refusals) = (Left::default(), 0);
    let mut before = programs(&node)?;
    for (index, step) in steps.iter().enumerate() {
        let Some(now) = node.kill_at(step)? else {
            // Less was left to do than in the record.
            break;
        };
        let replaced = now.iter().zip(before).filter(|(now, old)| **now != *old);
        let replaced = replaced.count();
        let layout = layout_of(&node.agent)?;
        ensure!(
            replaced == 0 || layout == 2,
            "{step:?}: {replaced} programs of layout 2 run over maps of layout {layout}"
        );
        *match replaced {
            0 => &mut left.old,
            1 => &mut left.mixed,
            _ => &mut left.new,
        } += 1;
        // The record's numbers count from the old agent's state.
        let next = steps.get(index + 1);
        let next = next.is_some_and(|step| REPLACEMENTS.contains(&step.change));
        if layout == 1 && (index % 3 == 0 || next) {
            node.run(Version::Old)?;
            node.end(End::Killed)?;
            before = programs(&node)?;
        } else if layout == 2 && replaced >= refusals {
            refusals += 1;
            node.check_old_agent_refuses("--mode=ebpf")?;
            assert_eq!(programs(&node)?, now, "the refused agent changed something");
        }
    }
    ensure!(left.old > 0 && left.mixed > 0 && refusals > 1, "{left:?}");
    node.run(Version::New)?;
    node.goes_on("the end of the upgrade")?;
    node.check_upgraded()?;
    node.wait_for_more_counts(counted)?;
    node.finish()
}

impl Node {
    /// Starts the new agent, and kills it at a step. Returns the programs on the hooks then, or
    /// `None` if it got ready before.
    fn kill_at(&mut self, step: &Step) -> Result<Option<[u32; 2]>> {
        self.select(Version::New)?;
        let Step { call, number, .. } = step;
        let inject = format!("inject={call}:signal=KILL:when={number}");
        let calls = format!("trace={call}");
        let mut runner = vec![
            "strace",
            "-D",
            "-f",
            "-o",
            "/dev/null",
            "-e",
            &calls,
            "-e",
            &inject,
        ];
        let links = self.agent.bpffs().join("links");
        let pin = match step.link {
            Some(kind) => files(&links)?.into_iter().find(|it| it.starts_with(kind)),
            None => None,
        };
        let pin = pin.map(|file| links.join(file).display().to_string());
        if let Some(pin) = &pin {
            runner.extend(["-P", pin]);
        }
        self.agent.options().set_runner(&runner);
        let ended = self.agent.restart_and_wait()?;
        self.agent.options().set_runner(&[]);
        let Some(ended) = ended else {
            self.end(End::Killed)?;
            return Ok(None);
        };
        let killed = ended.signal() == Some(libc::SIGKILL);
        ensure!(killed, "{step:?}: {ended}\n{}", self.agent.log());
        let after = format!("a kill at {step:?}");
        self.goes_on(&after)?;
        programs(self).with_context(|| after).map(Some)
    }
}

#[test]
fn an_interrupted_upgrade_goes_on_with_tcx() -> Result<()> {
    let mut steps = record("tcx")?;
    ensure!(steps.len() > 12, "{steps:?}");
    let last = steps
        .iter_mut()
        .rfind(|step| REPLACEMENTS.contains(&step.change));
    *last.context("no program was replaced")? = BETWEEN;
    interrupt("tcx", &steps)
}

/// Up to the write of the layout nothing differs from TCX.
#[test]
fn an_interrupted_upgrade_goes_on_with_clsact() -> Result<()> {
    let mut steps = record("clsact")?;
    let replaces = |step: &Step| REPLACEMENTS.contains(&step.change);
    let first = steps.iter().position(replaces);
    let first = first.context("no filter was replaced")?;
    interrupt("clsact", &steps.split_off(first.saturating_sub(2)))
}

#[test]
fn steps_are_found_in_a_record() {
    let trace = "\
7  bpf(BPF_OBJ_GET, {}) = 3
7  bpf(BPF_MAP_UPDATE_ELEM, {}) = 0
8  bpf(BPF_LINK_UPDATE, {}) = 0
7  bpf(BPF_LINK_UPDATE, {} <unfinished ...>
7  <... bpf resumed>) = 0
7  rename(\"a\", \"b\") = 0
";
    let step = |call, number, change| Step {
        call,
        number,
        change,
        link: None,
    };
    let found = [
        step("bpf", 2, "BPF_MAP_UPDATE_ELEM"),
        step("bpf", 3, "BPF_LINK_UPDATE"),
        step("rename", 1, "rename("),
    ];
    assert_eq!(steps(trace), found);
    let many = "7  bpf(BPF_MAP_UPDATE_ELEM, {}) = 0\n".repeat(100);
    let numbers: Vec<_> = steps(&many).iter().map(|step| step.number).collect();
    assert_eq!(numbers, [1, 100]);
}
