//! An agent that is killed in the middle of an upgrade: before each kind of system call by which it
//! changes anything.

use super::{End, Node, Version, layout_of};
use crate::common::filters;
use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;

/// System calls by which an agent changes something.
const CALLS: &str = "bpf,rename,unlink,sendto";

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

/// Calls that an agent which goes on with an upgrade makes fewer than one that begins with it, at
/// most.
const FEWER: usize = 8;

/// A system call of the agent's first thread, before which it is killed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    call: String,
    /// Number of the call among those of its name, from 1 on.
    number: usize,
    change: &'static str,
}

/// Returns steps of an upgrade, from strace's record of a whole one: of changes of one kind in
/// succession the first and the last.
fn steps(trace: &str) -> Vec<Step> {
    let Some((first, _)) = trace.split_once(' ') else {
        return Vec::new();
    };
    let mut numbers = BTreeMap::<&str, usize>::new();
    let mut groups: Vec<Vec<Step>> = Vec::new();
    for line in trace.lines() {
        let Some((call, _)) = line
            .strip_prefix(first)
            .map(str::trim_start)
            .and_then(|text| text.split_once('('))
            .filter(|(call, _)| call.bytes().all(|byte| byte.is_ascii_lowercase()))
        else {
            continue;
        };
        let number = numbers.entry(call).or_default();
        *number += 1;
        let Some(change) = CHANGES.into_iter().find(|change| line.contains(change)) else {
            continue;
        };
        let step = Step {
            call: call.to_owned(),
            number: *number,
            change,
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
    let calls = format!("trace={CALLS}");
    let runner = ["strace", "-D", "-f", "-s", "256", "-o", &path, "-e", &calls];
    node.agent.options().set_runner(&runner);
    node.agent.restart()?;
    node.is_upgraded()?;
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
    let (mut left, mut refusals, mut layout) = (Left::default(), 0, 1);
    let mut before = programs(&node)?;
    for (index, step) in steps.iter().enumerate() {
        let replaces = REPLACEMENTS.contains(&step.change);
        // What was written before is not written again.
        let fewer = if layout == 2 && step.call == "bpf" {
            FEWER
        } else {
            0
        };
        for number in step.number.saturating_sub(fewer)..=step.number {
            let now = match node.kill_at(&step.call, number)? {
                Some(_) if replaces && left.mixed > 0 => break,
                Some(programs) => programs,
                // Less was left to do than in the record.
                None => break,
            };
            let replaced = now.iter().zip(before).filter(|(now, old)| **now != *old);
            let replaced = replaced.count();
            layout = layout_of(&node.agent)?;
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
                node.is_refused_to_the_old()?;
                assert_eq!(programs(&node)?, now, "the refused agent changed something");
            }
        }
    }
    ensure!(left.old > 0 && left.mixed > 0 && refusals > 1, "{left:?}");
    node.run(Version::New)?;
    node.goes_on("the end of the upgrade")?;
    node.is_upgraded()?;
    node.counts_on(counted)?;
    node.finish()
}

impl Node {
    /// Starts the new agent, and kills it before a system call of its first thread. Returns the
    /// programs on the hooks then, or `None` if it got ready before.
    fn kill_at(&mut self, call: &str, number: usize) -> Result<Option<[u32; 2]>> {
        self.select(Version::New)?;
        let inject = format!("inject={call}:signal=KILL:when={number}");
        let calls = format!("trace={call}");
        let runner = [
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
        self.agent.options().set_runner(&runner);
        let ended = self.agent.restart_and_wait()?;
        self.agent.options().set_runner(&[]);
        let Some(ended) = ended else {
            self.end(End::Killed)?;
            return Ok(None);
        };
        let killed = ended.signal() == Some(libc::SIGKILL);
        ensure!(killed, "{call} {number}: {ended}\n{}", self.agent.log());
        let after = format!("a kill at {call} {number}");
        self.goes_on(&after)?;
        programs(self).with_context(|| after).map(Some)
    }
}

#[test]
fn an_interrupted_upgrade_goes_on_with_tcx() -> Result<()> {
    let steps = record("tcx")?;
    ensure!(steps.len() > 12, "{steps:?}");
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
    let step = |call: &str, number, change| Step {
        call: call.to_owned(),
        number,
        change,
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
