//! State that outlives an agent, for the next one and for `netdp detach`: a small file of its own,
//! which only this module reads and writes. The status report is only for people and scripts.

use crate::datapath::Placed;
use crate::iptables::ChainReport;
use crate::report::UplinkReport;
use crate::state_dir::StateDir;
use crate::uplinks::{Family, Had, Lacking};
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// File name in the state directory.
pub(crate) const FILE: &str = "memory.json";

/// Version of the format. Grows with each change that an earlier version would misread; a new field
/// with a default is no such change.
const VERSION: u32 = 1;

/// Facts that an agent leaves behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    /// Hash, generation and time of the policy in force.
    pub policy: PolicyCount,
    /// The address families that each uplink has, or had, an address of.
    pub had: Had,
    /// Missing addresses that were reported.
    pub no_address: Vec<Lacking>,
    /// Chains that were written.
    pub chains: Vec<ChainReport>,
    /// Places where programs were attached.
    pub placed: Vec<Placed>,
    /// The file that exists while the node is ready.
    pub ready_file: Option<PathBuf>,
}

/// The policy in force as one of a sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PolicyCount {
    /// Hash of its rules.
    pub hash: String,
    /// Number of policies that have been in force on this node, including this one.
    pub generation: u64,
    /// Time at which it came into force, in seconds since 1970.
    pub applied_at: u64,
}

impl PolicyCount {
    /// Returns the count once a policy with this hash is in force: unchanged, or the next one.
    pub(super) fn followed_by(&self, hash: String, now: u64) -> Self {
        if hash == self.hash {
            return self.clone();
        }
        Self {
            hash,
            generation: self.generation + 1,
            applied_at: now,
        }
    }
}

/// Form of the file: a version and the content.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    memory: T,
}

#[derive(Deserialize)]
struct Empty {}

impl Memory {
    /// Reads the file of an earlier agent. An unreadable file is logged and treated as empty.
    pub(crate) fn recall(state_dir: &StateDir) -> Self {
        match Self::read(state_dir) {
            Ok(Some(memory)) => memory,
            Ok(None) => {
                log::info!(
                    "{}: no earlier agent has left anything",
                    state_dir.file(FILE).display()
                );
                Self::default()
            }
            Err(err) => {
                log::warn!(
                    "{err:#}: what an earlier agent knew is lost (how many policies have been in \
                     force, which uplinks had an address)"
                );
                Self::default()
            }
        }
    }

    /// Reads the file of an earlier agent; `None` if it does not exist.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or parsed, or has another version.
    pub(crate) fn read(state_dir: &StateDir) -> Result<Option<Self>> {
        let Some(bytes) = state_dir.read_if_there(FILE)? else {
            return Ok(None);
        };
        parse(&bytes)
            .with_context(|| format!("reading {}", state_dir.file(FILE).display()))
            .map(Some)
    }

    /// Writes the file for the next agent.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(crate) fn save(&self, state_dir: &StateDir) -> Result<()> {
        let version = VERSION;
        let memory = self;
        state_dir.write_json(FILE, &Versioned { version, memory })
    }
}

fn parse(bytes: &[u8]) -> Result<Memory> {
    // The version alone first: the content of another version may have any form.
    let Versioned { version, .. } = serde_json::from_slice::<Versioned<Empty>>(bytes)?;
    ensure!(
        version == VERSION,
        "it has version {version}, and this netdp reads {VERSION}"
    );
    Ok(serde_json::from_slice::<Versioned<Memory>>(bytes)?.memory)
}

/// Returns the families whose loss the next agent has to detect: those that uplinks have now, and
/// those that are reported lost.
pub(super) fn to_be_missed(uplinks: &[UplinkReport], no_address: &[Lacking]) -> Had {
    let mut had = Had::new();
    for uplink in uplinks {
        let families = had.entry(uplink.name.clone()).or_default();
        families.extend(uplink.v4.map(|_| Family::V4));
        families.extend(uplink.v6.map(|_| Family::V6));
    }
    for lost in no_address.iter().filter(|it| it.lost) {
        had.entry(lost.uplink.clone())
            .or_default()
            .insert(lost.family);
    }
    had
}

#[cfg(test)]
mod tests {
    use super::{FILE, Memory, PolicyCount, to_be_missed};
    use crate::report::UplinkReport;
    use crate::state_dir::StateDir;
    use crate::uplinks::{Family, Lacking};

    fn lost(uplink: &str) -> Lacking {
        Lacking {
            uplink: uplink.into(),
            family: Family::V4,
            lost: true,
            routed: false,
            severe: true,
        }
    }

    fn memory() -> Memory {
        Memory {
            policy: PolicyCount {
                hash: "0123456789abcdef".into(),
                generation: 7,
                applied_at: 1_700_000_000,
            },
            had: [("eth0".into(), [Family::V4].into())].into(),
            no_address: vec![lost("eth0")],
            ready_file: Some("/run/netdp/ready".into()),
            ..Memory::default()
        }
    }

    #[test]
    fn what_is_saved_is_recalled() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        assert_eq!(Memory::read(&state_dir).unwrap(), None);
        assert_eq!(Memory::recall(&state_dir), Memory::default());
        memory().save(&state_dir).unwrap();
        assert_eq!(Memory::recall(&state_dir), memory());
    }

    #[test]
    fn what_cannot_be_read_is_named_and_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        for (text, words) in [
            ("", "EOF"),
            ("{\"version\": 1, \"had\": 3}", "invalid type"),
            ("{\"policy\": {}}", "missing field `version`"),
            ("{\"version\": 2, \"had\": 3}", "it has version 2"),
            ("\u{0}\u{1}", "expected value"),
        ] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let err = format!("{:#}", Memory::read(&state_dir).unwrap_err());
            assert!(
                err.contains(words) && err.contains("memory.json"),
                "{text}: {err}"
            );
            assert_eq!(Memory::recall(&state_dir), Memory::default());
        }
    }

    #[test]
    fn fields_may_be_missing_and_others_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        let text = r#"{"version": 1, "policy": {"generation": 3}, "later": [1]}"#;
        std::fs::write(dir.path().join(FILE), text).unwrap();
        let read = Memory::read(&state_dir).unwrap().unwrap();
        let policy = PolicyCount {
            generation: 3,
            ..PolicyCount::default()
        };
        assert_eq!(
            read,
            Memory {
                policy,
                ..Memory::default()
            }
        );
    }

    #[test]
    fn a_policy_counts_once_however_often_it_is_put_in_force() {
        let first = PolicyCount::default().followed_by("a".into(), 10);
        assert_eq!((first.generation, first.applied_at), (1, 10));
        assert_eq!(first.followed_by("a".into(), 20), first);
        let second = first.followed_by("b".into(), 20);
        assert_eq!((second.generation, second.applied_at), (2, 20));
    }

    #[test]
    fn addresses_that_are_there_and_those_reported_lost_are_missed() {
        let eth1 = UplinkReport {
            name: "eth1".into(),
            ifindex: 3,
            attached: "tcx".into(),
            v4: None,
            v6: Some("fd00::1".parse().unwrap()),
            up: true,
        };
        let mut never = lost("eth1");
        never.lost = false;
        let had = to_be_missed(&[eth1], &[lost("eth0"), never]);
        assert_eq!(had["eth0"], [Family::V4].into());
        assert_eq!(had["eth1"], [Family::V6].into());
    }
}
