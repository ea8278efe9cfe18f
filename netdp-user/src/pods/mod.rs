//! Pods by address and time: which pod a mapping's source address belonged to when the mapping began.
//!
//! [`cache`] reads what container runtimes leave of each pod's network, [`api`] takes what the
//! Kubernetes API says instead, [`index`] knows who had an
//! address when, [`recorder`] is the agent's thread that sees pods end.

mod api;
mod cache;
mod index;
mod recorder;

use crate::state_dir::StateDir;
use crate::time::{now_milliseconds, pretty};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub(crate) use api::ApiClaims;
pub(crate) use index::{Claim, Index, Owner};
pub(crate) use recorder::Recorder;

/// Directory in which container runtimes let libcni cache results.
pub(crate) const DIRECTORY: &str = "/var/lib/cni/results";

/// The index's name in the state directory.
pub(crate) const FILE: &str = "pods.json";

/// Source of the names of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PodNames {
    /// libcni's cache of results, where there is one.
    Auto,
    /// That cache; the log says if it can't be read.
    Cni,
    /// The Kubernetes API, which has to allow reading all pods.
    Api,
    /// Nowhere: pods are shown by address.
    Off,
}

/// Options of the names of pods.
#[derive(Debug, Clone)]
pub struct PodNameOptions {
    /// Source of the names.
    pub source: PodNames,
    /// libcni's cache of results.
    pub cni_dir: PathBuf,
}

/// The saved index.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    /// Version of this format.
    schema: u32,
    /// All claims.
    claims: Vec<Claim>,
    /// True if the API has told them: the cache knows less.
    #[serde(default)]
    from_api: bool,
}

impl Saved {
    const SCHEMA: u32 = 1;
}

/// Reads what an agent saved last; `None` if there is nothing that can be understood.
fn read_saved(state_dir: &StateDir) -> Option<Saved> {
    let saved = state_dir.read_json::<Saved>(FILE).ok();
    saved.filter(|saved| saved.schema == Saved::SCHEMA)
}

/// Reads the index that an agent saved last; an empty one if there is none that can be understood.
fn saved(state_dir: &StateDir) -> Index {
    let saved = read_saved(state_dir).into_iter();
    saved.flat_map(|saved| saved.claims).collect()
}

/// The names of pods, as a command knows them.
#[derive(Debug, Default)]
pub(crate) struct Names {
    index: Index,
    /// The time at which they were read, in milliseconds since 1970.
    now: u64,
}

impl Names {
    /// Reads what an agent has saved, and the cache of the pods that are there now. Without either,
    /// there are no names.
    pub(crate) fn load(cni_dir: &Path, state_dir: &StateDir) -> Self {
        let now = now_milliseconds();
        let saved = read_saved(state_dir);
        let from_api = saved.as_ref().is_some_and(|saved| saved.from_api);
        let mut index: Index = (saved.into_iter()).flat_map(|saved| saved.claims).collect();
        if !from_api && let Ok(found) = cache::read(cni_dir) {
            index.refresh(found, now, u64::MAX);
        }
        Self { index, now }
    }

    /// Returns the owner that an address had at a time, in milliseconds since 1970.
    pub(crate) fn owner(&self, address: IpAddr, time: u64) -> Option<Owner<'_>> {
        self.index.owner(address, time)
    }

    /// Returns the owner that an address has now.
    pub(crate) fn owner_now(&self, address: IpAddr) -> Option<Owner<'_>> {
        let owner = self.index.owner(address, self.now);
        owner.filter(|owner| owner.claim.until.is_none())
    }

    /// Returns names that were read at a time, in milliseconds since 1970.
    #[cfg(test)]
    pub(crate) fn of(claims: impl IntoIterator<Item = Claim>, now: u64) -> Self {
        let index = claims.into_iter().collect();
        Self { index, now }
    }

    /// Returns all that is known of pods and their addresses.
    pub(crate) fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.index.iter()
    }

    /// Describes an owner: `shop/cart-5d9`, `shop/cart-5d9 (gone 3m0s)`; a name that another pod
    /// disputes ends in `?`.
    pub(crate) fn describe(&self, owner: Owner<'_>) -> String {
        let claim = owner.claim;
        let mut text = format!("{}/{}", claim.namespace, claim.name);
        if !owner.is_sure {
            text.push('?');
        }
        if let Some(until) = claim.until {
            let seconds = self.now.saturating_sub(until) / 1000;
            text += &format!(" (gone {})", pretty(seconds));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cached(name: &str, address: &str) -> String {
        serde_json::json!({
            "kind": "cniCacheV1",
            "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name]],
            "result": { "ips": [{ "address": address }] },
        })
        .to_string()
    }

    #[test]
    fn names_come_from_the_cache_and_from_what_was_saved() {
        let (cni, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = StateDir::open(state.path()).unwrap();
        std::fs::write(cni.path().join("a"), cached("cart", "10.0.0.2/24")).unwrap();
        let gone = Claim {
            address: "10.0.0.3".parse().unwrap(),
            namespace: "shop".into(),
            name: "gone".into(),
            uid: None,
            from: 1_000,
            until: Some(now_milliseconds() - 180_000),
        };
        let saved = Saved {
            schema: Saved::SCHEMA,
            claims: vec![gone],
            from_api: false,
        };
        state.write_json(FILE, &saved).unwrap();
        let names = Names::load(cni.path(), &state);
        let told = |address: &str, ago| {
            let owner = names.owner(address.parse().unwrap(), names.now - ago);
            owner.map(|owner| names.describe(owner))
        };
        assert_eq!(told("10.0.0.2", 0).as_deref(), Some("shop/cart"));
        assert_eq!(told("10.0.0.2", 600_000), None, "it was not there yet");
        assert_eq!(told("10.0.0.3", 0), None, "nobody has it now");
        let before = told("10.0.0.3", 200_000).unwrap();
        assert!(before.starts_with("shop/gone (gone 3m"), "{before}");
        assert_eq!(told("10.0.0.4", 0), None);
    }

    #[test]
    fn without_cache_and_state_there_are_no_names() {
        let none = Path::new("/nonexistent");
        let names = Names::load(none, &StateDir::at(none));
        assert!(names.owner("10.0.0.2".parse().unwrap(), 0).is_none());
    }

    #[test]
    fn a_saved_index_of_another_schema_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let later = serde_json::json!({ "schema": 2, "claims": [] });
        state.write_json(FILE, &later).unwrap();
        assert_eq!(saved(&state).iter().count(), 0);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(saved(&state).iter().count(), 0);
    }
}
