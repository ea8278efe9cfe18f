//! Conversion of ConfigMaps into documents.

use super::client::KubeOptions;
use super::follow::{Set, Trouble};
use super::limit::{MAPS, MAPS_BYTES};
use super::view::{MapDocuments, MapRef, Part, Shared};
use crate::config::{Diagnostic, Document, Keys};
pub use crate::config::{LABEL, NAT_RULES_MAP};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Limit of keys that a warning names.
const NAMED: usize = 5;

/// Selection of the ConfigMaps of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// ip-masq-agent's ConfigMap, by name.
    Main,
    /// ConfigMaps with netdp's label.
    Labelled,
    /// k8s-custom-iptables' ConfigMap, by name.
    NatRules,
}

impl Which {
    const fn part(self) -> Part {
        match self {
            Self::Main => Part::Main,
            Self::Labelled => Part::Labelled,
            Self::NatRules => Part::NatRules,
        }
    }

    /// Names the selection for messages.
    fn name(self, main: &str) -> &str {
        match self {
            Self::Main => main,
            Self::Labelled => LABEL,
            Self::NatRules => NAT_RULES_MAP,
        }
    }
}

/// Store of the ConfigMaps of one watch.
pub(super) struct Maps {
    which: Which,
    main: String,
    shared: Arc<Shared>,
    maps: Listed,
}

impl Maps {
    pub(super) fn new(which: Which, options: &KubeOptions, shared: Arc<Shared>) -> Self {
        Self {
            which,
            main: options.config_map.clone(),
            shared,
            maps: BTreeMap::new(),
        }
    }

    /// Returns the documents of a ConfigMap that this watch is responsible for.
    fn documents_of(&self, map: &ConfigMap) -> Option<(String, Arc<MapDocuments>)> {
        let name = map.name_any();
        let counts = match self.which {
            Which::Main => name == self.main,
            Which::NatRules => name == NAT_RULES_MAP,
            // The other watches are responsible for these.
            Which::Labelled => name != self.main && name != NAT_RULES_MAP,
        };
        // That watch selects by the label.
        let is_labelled = self.which == Which::Labelled || map.labels().contains_key(LABEL);
        let keys = Keys::of(&name, &self.main, is_labelled);
        counts.then(|| (name, Arc::new(documents(map, keys))))
    }

    /// Checks that the ConfigMaps are within the limits.
    fn check(&self, maps: &Listed) -> Result<(), Trouble> {
        let problem = if maps.len() > MAPS {
            format!(
                "more than {MAPS} ConfigMaps have the label {LABEL}: the previous configuration \
                 stays in force; remove it from some"
            )
        } else if maps.values().map(|map| map.bytes()).sum::<usize>() > MAPS_BYTES {
            format!(
                "the ConfigMaps {} hold more than {} MiB: the previous configuration stays in \
                 force; make them smaller",
                self.which.name(&self.main),
                MAPS_BYTES >> 20
            )
        } else {
            return Ok(());
        };
        Err(Trouble::new(problem))
    }

    fn publish(&self) {
        let maps = self.maps.values().cloned().collect();
        self.shared.set_maps(self.which.part(), maps);
    }
}

/// Documents by ConfigMap name.
type Listed = BTreeMap<String, Arc<MapDocuments>>;

impl Set<ConfigMap> for Maps {
    type Listed = Listed;

    fn fields(&self) -> Option<String> {
        match self.which {
            Which::Main => Some(format!("metadata.name={}", self.main)),
            Which::NatRules => Some(format!("metadata.name={NAT_RULES_MAP}")),
            Which::Labelled => None,
        }
    }

    fn labels(&self) -> Option<String> {
        (self.which == Which::Labelled).then(|| LABEL.to_owned())
    }

    fn gather(&self, page: Vec<ConfigMap>, listed: &mut Listed) -> Result<(), Trouble> {
        listed.extend(page.iter().filter_map(|map| self.documents_of(map)));
        self.check(listed)
    }

    async fn replace(&mut self, all: Listed) -> Result<(), Trouble> {
        if !self.maps.keys().all(|name| all.contains_key(name)) {
            self.shared.same_cluster().await?;
        }
        self.maps = all;
        self.publish();
        Ok(())
    }

    fn apply(&mut self, object: ConfigMap) -> Result<(), Trouble> {
        let Some((name, documents)) = self.documents_of(&object) else {
            return Ok(());
        };
        let mut maps = self.maps.clone();
        maps.insert(name, documents);
        self.check(&maps)?;
        self.maps = maps;
        self.publish();
        Ok(())
    }

    fn remove(&mut self, object: &ConfigMap) {
        self.maps.remove(&object.name_any());
        self.publish();
    }

    fn state(&mut self, trouble: Option<&Trouble>) {
        self.shared.set_state(self.which.part(), trouble);
    }
}

/// Returns the documents of a ConfigMap, one for each relevant key.
fn documents(map: &ConfigMap, keys: Keys) -> MapDocuments {
    let namespace = map.namespace().unwrap_or_default();
    let name = map.name_any();
    let mut values: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for (key, text) in map.data.iter().flatten() {
        values.insert(key, text.as_bytes());
    }
    for (key, bytes) in map.binary_data.iter().flatten() {
        values.insert(key, &bytes.0);
    }
    let mut found = MapDocuments {
        map: MapRef {
            uid: map.uid().unwrap_or_default(),
            resource_version: map.resource_version().unwrap_or_default(),
            namespace,
            name,
        },
        documents: Vec::new(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let prefix = found.map.prefix();
    if let Some(key) = keys.usual()
        && !values.keys().any(|key| keys.count(key))
    {
        let others: Vec<_> = values.keys().copied().take(NAMED).collect();
        let message = match others.as_slice() {
            [] => format!("the ConfigMap has no key {key:?}: it configures nothing"),
            others => format!(
                "the ConfigMap has no key {key:?}, only {}: it configures nothing",
                others.join(", ")
            ),
        };
        found
            .warnings
            .push(Diagnostic::whole_file(&format!("{prefix}{key}"), message));
    }
    values.retain(|key, _| keys.count(key));
    for (key, bytes) in values {
        match Document::from_bytes(format!("{prefix}{key}"), bytes.to_vec()) {
            Ok(document) => found.documents.push(document),
            Err(error) => found.errors.push(error),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{ConfigMap, Keys, LABEL, documents};
    use crate::config::{Options, load};
    use k8s_openapi::ByteString;
    use kube::ResourceExt as _;
    use std::collections::BTreeMap;

    /// Keys, each with a network of its own.
    const KEYS: [(&str, &str); 6] = [
        ("config", "nonMasqueradeCIDRs: [10.1.0.0/16]"),
        ("ip-masq-agent", "nonMasqueradeCIDRs: [10.2.0.0/16]"),
        (
            "ip-masq-agent-reconciled",
            "nonMasqueradeCIDRs: [10.3.0.0/16]",
        ),
        ("nat.rules", "198.51.100.0/24"),
        ("more.rules", "203.0.113.0/24"),
        ("any", "nonMasqueradeCIDRs: [10.4.0.0/16]"),
    ];

    fn map(name: &str, labelled: bool, binary: bool) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        if labelled {
            map.labels_mut().insert(LABEL.into(), String::new());
        }
        let text = |(key, text): (&str, &str)| (key.to_owned(), text.to_owned());
        let bytes = |(key, text): (&str, &str)| (key.to_owned(), ByteString(text.into()));
        if binary {
            map.binary_data = Some(KEYS.into_iter().map(bytes).collect());
        } else {
            map.data = Some(KEYS.into_iter().map(text).collect::<BTreeMap<_, _>>());
        }
        map
    }

    /// Checks that a manifest is read like the ConfigMap from the API, whatever its name and label,
    /// as text or base64.
    #[test]
    fn manifests_and_the_api_take_the_same_keys() {
        for (name, labelled, wanted) in [
            (
                "ip-masq-agent",
                false,
                "10.1.0.0/16 10.2.0.0/16 10.3.0.0/16",
            ),
            ("k8s-custom-iptables", false, "198.51.100.0/24"),
            (
                "others",
                true,
                "10.1.0.0/16 10.2.0.0/16 10.3.0.0/16 10.4.0.0/16 198.51.100.0/24 203.0.113.0/24",
            ),
        ] {
            for binary in [false, true] {
                let map = map(name, labelled, binary);
                let keys = Keys::of(name, "ip-masq-agent", labelled);
                let api = documents(&map, keys).documents;
                let text = serde_json::to_string(&map).unwrap();
                let manifest = crate::config::Document::from_bytes("m".into(), text.into());
                let rules = |documents: &[crate::config::Document]| {
                    let loaded = load(documents, &Options::default()).unwrap();
                    let prefixes = loaded.config.rules.iter().map(|rule| rule.prefix);
                    let mut given: Vec<String> = prefixes
                        .map(|prefix| prefix.to_string())
                        .filter(|prefix| KEYS.iter().any(|(_, text)| text.contains(prefix)))
                        .collect();
                    given.sort();
                    given.join(" ")
                };
                assert_eq!(rules(&api), wanted, "{name} over the API, {binary}");
                assert_eq!(rules(&[manifest.unwrap()]), wanted, "{name}, {binary}");
            }
        }
    }
}
