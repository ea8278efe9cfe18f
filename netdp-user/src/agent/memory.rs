//! State that outlives an agent, for the next one and for `netdp detach`: a small file of its own, which
//! nothing but this module reads or writes. The status report is for people and scripts alone; only that
//! of a version that had no such file is read, once.

use crate::datapath::Placed;
use crate::iptables::ChainReport;
use crate::report::{self, UplinkReport};
use crate::state_dir::StateDir;
use crate::uplinks::{FormerFamilies, MissingAddress};
use anyhow::{Context as _, Result, ensure};
use netdp_common::layout::Family;
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
    pub had: FormerFamilies,
    /// Missing addresses that were reported.
    pub no_address: Vec<MissingAddress>,
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

/// A status report as versions left it that had no memory of its own, as far as this one needs it.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Earlier {
    config: PolicyCount,
    uplinks: Vec<UplinkReport>,
    no_address: Vec<MissingAddress>,
    chains: Vec<ChainReport>,
    placed: Vec<Placed>,
    ready_file: Option<PathBuf>,
}

impl From<Earlier> for Memory {
    fn from(earlier: Earlier) -> Self {
        Self {
            policy: earlier.config,
            had: to_be_missed(FormerFamilies::new(), &earlier.uplinks, &earlier.no_address),
            no_address: earlier.no_address,
            chains: earlier.chains,
            placed: earlier.placed,
            ready_file: earlier.ready_file,
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
    /// Reads what an earlier agent left, and writes it down where that was in its status report: there it
    /// is about to be overwritten. What cannot be read is reported and counts as nothing.
    pub(crate) fn recall(state_dir: &StateDir) -> Self {
        match Self::read(state_dir) {
            Ok(Some(memory)) => {
                if !state_dir.file(FILE).exists()
                    && let Err(err) = memory.save(state_dir)
                {
                    log::warn!("{err:#}");
                }
                memory
            }
            Ok(None) => {
                log::info!(
                    "{}: no state of an earlier agent",
                    state_dir.file(FILE).display()
                );
                Self::default()
            }
            Err(err) => {
                log::warn!(
                    "{err:#}: the state of an earlier agent is lost (number of policies that have \
                     been in force, uplinks that had an address)"
                );
                Self::default()
            }
        }
    }

    /// Reads what an earlier agent left, in its status report where it had no other file; `None` if there
    /// is neither.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or parsed, or has another version.
    pub(crate) fn read(state_dir: &StateDir) -> Result<Option<Self>> {
        let (name, memory) = if let Some(bytes) = state_dir.read_optional(FILE)? {
            (FILE, parse(&bytes))
        } else if let Some(bytes) = state_dir.read_optional(report::FILE)? {
            let earlier = serde_json::from_slice::<Earlier>(&bytes);
            (report::FILE, earlier.map(Self::from).map_err(Into::into))
        } else {
            return Ok(None);
        };
        memory
            .with_context(|| format!("reading {}", state_dir.file(name).display()))
            .map(Some)
    }

    /// Adds the chains that are about to be written to those that are there, where they are not among
    /// them.
    pub(super) fn expect_chains(&mut self, planned: &[ChainReport]) {
        for chain in planned {
            let is_it = |it: &ChainReport| {
                (&it.family, &it.backend, &it.chain)
                    == (&chain.family, &chain.backend, &chain.chain)
            };
            if !self.chains.iter().any(is_it) {
                self.chains.push(chain.clone());
            }
        }
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
        "its version is {version}; this netdp reads version {VERSION}"
    );
    Ok(serde_json::from_slice::<Versioned<Memory>>(bytes)?.memory)
}

/// Returns the families whose loss the next agent has to notice: those that uplinks had before or
/// have now, and those that are reported lost.
pub(super) fn to_be_missed(
    mut had: FormerFamilies,
    uplinks: &[UplinkReport],
    no_address: &[MissingAddress],
) -> FormerFamilies {
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
    use super::super::report::tests::chain;
    use super::{FILE, Memory, PolicyCount, to_be_missed};
    use crate::report::UplinkReport;
    use crate::state_dir::StateDir;
    use crate::uplinks::{FormerFamilies, MissingAddress};
    use netdp_common::layout::Family;

    fn lost(uplink: &str) -> MissingAddress {
        MissingAddress {
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
    fn chains_that_are_about_to_be_written_join_those_that_were() {
        let mut memory = memory();
        let before = chain(Some("locked"));
        let mut other = chain(None);
        other.chain = "OTHER".into();
        memory.chains = vec![before.clone()];
        memory.expect_chains(&[chain(None), other.clone()]);
        assert_eq!(memory.chains, [before, other]);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        for (text, words) in [
            ("", "EOF"),
            ("{\"version\": 1, \"had\": 3}", "invalid type"),
            ("{\"policy\": {}}", "missing field `version`"),
            ("{\"version\": 2, \"had\": 3}", "its version is 2"),
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

    /// As 0.1.0 wrote it, but for lists that nothing is read of.
    const EARLIER: &str = r#"{
        "version": "0.1.0", "mode": "ebpf", "no_ebpf": null, "kernel": null,
        "config": {
            "source": "files", "files": ["/etc/config/ip-masq-agent"], "hash": "0123456789abcdef",
            "generation": 7, "applied_at": 1700000000,
            "rules": [{"prefix": "10.0.0.0/8", "action": "bypass", "origin": "built in"}],
            "warnings": [], "rejected": []
        },
        "uplinks": [{
            "name": "eth1", "ifindex": 3, "attached": "tcx", "v4": null, "v6": "fd00::1", "up": true
        }],
        "waiting_for": [], "no_uplink": null,
        "no_address": [{
            "uplink": "eth0", "family": "V4", "lost": true, "routed": false, "severe": true
        }],
        "chains": [{
            "family": "IPv4", "backend": "nft", "chain": "IP-MASQ-AGENT", "rules": 3, "error": null
        }],
        "placed": [{
            "ifindex": 3, "interface": "eth1", "hook": "egress", "mechanism": "tcx", "program": 12
        }],
        "ready_file": "/run/netdp/ready", "repairs": 2
    }"#;

    #[test]
    fn what_an_earlier_version_left_in_its_report_is_recalled_once() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        let report = dir.path().join("status.json");
        std::fs::write(&report, EARLIER).unwrap();
        let left = Memory::read(&state_dir).unwrap().unwrap();
        assert_eq!(left.policy, memory().policy);
        assert_eq!(left.had["eth0"], [Family::V4].into());
        assert_eq!(left.had["eth1"], [Family::V6].into());
        assert_eq!(left.no_address, [lost("eth0")]);
        assert_eq!(left.chains, [chain(None)]);
        assert_eq!(left.placed.len(), 1);
        assert_eq!(left.placed[0].program, 12);
        assert_eq!(left.ready_file, memory().ready_file);
        // `netdp detach` changes nothing by reading; an agent overwrites the report.
        assert!(!dir.path().join(FILE).exists());
        assert_eq!(Memory::recall(&state_dir), left);
        std::fs::write(&report, "{}").unwrap();
        assert_eq!(Memory::recall(&state_dir), left);
    }

    #[test]
    fn a_report_of_an_earlier_version_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("status.json"), "{\"chains\": 3}").unwrap();
        let err = format!("{:#}", Memory::read(&state_dir).unwrap_err());
        assert!(
            err.contains("status.json") && err.contains("invalid type"),
            "{err}"
        );
        assert_eq!(Memory::recall(&state_dir), Memory::default());
        assert!(!dir.path().join(FILE).exists());
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
        let before = FormerFamilies::from([("eth1".into(), [Family::V4].into())]);
        let had = to_be_missed(before, &[eth1], &[lost("eth0"), never]);
        assert_eq!(had["eth0"], [Family::V4].into());
        assert_eq!(had["eth1"], [Family::V4, Family::V6].into());
    }
}
