//! Conversion of ConfigMaps into documents.

use super::api_error::ApiError;
use super::client::KubeOptions;
use super::limit::{MAX_CONFIG_MAP_BYTES, MAX_CONFIG_MAPS};
use super::reflector::ObjectStore;
use super::view::{ConfigMapDocuments, ConfigMapRef, Shared};
use super::watch_id::{ConfigMapSelection, WatchId};
use crate::codes::Code;
use crate::config::{Diagnostic, Document, Keys, LABEL};
use crate::upstream::custom_iptables;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt as _;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Limit of keys that a warning names.
const NAMED: usize = 5;

/// Store of the ConfigMaps of one watch.
pub(super) struct ConfigMapStore {
    selection: ConfigMapSelection,
    main: String,
    shared: Arc<Shared>,
    documents: DocumentsByName,
}

impl ConfigMapStore {
    pub(super) fn new(
        selection: ConfigMapSelection,
        options: &KubeOptions,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            selection,
            main: options.config_map.clone(),
            shared,
            documents: BTreeMap::new(),
        }
    }

    /// Returns the documents of a ConfigMap that this watch is responsible for.
    fn documents_of(&self, map: &ConfigMap) -> Option<(String, Arc<ConfigMapDocuments>)> {
        let name = map.name_any();
        let counts = match self.selection {
            ConfigMapSelection::Main => name == self.main,
            ConfigMapSelection::NatRules => name == custom_iptables::NAME,
            // The other watches are responsible for these.
            ConfigMapSelection::Labelled => name != self.main && name != custom_iptables::NAME,
        };
        // That watch selects by the label.
        let is_labelled =
            self.selection == ConfigMapSelection::Labelled || map.labels().contains_key(LABEL);
        let keys = Keys::of(&name, &self.main, is_labelled);
        counts.then(|| (name, Arc::new(documents(map, keys))))
    }

    /// Checks that the ConfigMaps are within the limits.
    fn check(&self, maps: &DocumentsByName) -> Result<(), ApiError> {
        let problem = if maps.len() > MAX_CONFIG_MAPS {
            format!(
                "more than {MAX_CONFIG_MAPS} ConfigMaps have the label {LABEL}: the previous configuration \
                 stays in force; remove it from some"
            )
        } else if maps.values().map(|map| map.bytes()).sum::<usize>() > MAX_CONFIG_MAP_BYTES {
            format!(
                "the ConfigMaps {} hold more than {} MiB: the previous configuration stays in \
                 force; make them smaller",
                self.selection.name(&self.main),
                MAX_CONFIG_MAP_BYTES >> 20
            )
        } else {
            return Ok(());
        };
        Err(ApiError::new(problem))
    }

    fn publish(&self) {
        let maps = self.documents.values().cloned().collect();
        self.shared.set_config_maps(self.selection, maps);
    }
}

/// Documents by ConfigMap name.
type DocumentsByName = BTreeMap<String, Arc<ConfigMapDocuments>>;

impl ObjectStore<ConfigMap> for ConfigMapStore {
    type Listed = DocumentsByName;

    fn fields(&self) -> Option<String> {
        match self.selection {
            ConfigMapSelection::Main => Some(format!("metadata.name={}", self.main)),
            ConfigMapSelection::NatRules => {
                Some(format!("metadata.name={}", custom_iptables::NAME))
            }
            ConfigMapSelection::Labelled => None,
        }
    }

    fn labels(&self) -> Option<String> {
        (self.selection == ConfigMapSelection::Labelled).then(|| LABEL.to_owned())
    }

    fn add_page(&self, page: Vec<ConfigMap>, listed: &mut DocumentsByName) -> Result<(), ApiError> {
        listed.extend(page.iter().filter_map(|map| self.documents_of(map)));
        self.check(listed)
    }

    async fn replace(&mut self, all: DocumentsByName) -> Result<(), ApiError> {
        if !self.documents.keys().all(|name| all.contains_key(name)) {
            self.shared.check_same_cluster().await?;
        }
        self.documents = all;
        self.publish();
        Ok(())
    }

    fn apply(&mut self, object: ConfigMap) -> Result<(), ApiError> {
        let Some((name, documents)) = self.documents_of(&object) else {
            return Ok(());
        };
        let mut maps = self.documents.clone();
        maps.insert(name, documents);
        self.check(&maps)?;
        self.documents = maps;
        self.publish();
        Ok(())
    }

    fn remove(&mut self, object: &ConfigMap) {
        self.documents.remove(&object.name_any());
        self.publish();
    }

    fn set_error(&mut self, error: Option<&ApiError>) {
        self.shared
            .set_error(WatchId::ConfigMaps(self.selection), error);
    }
}

/// Returns the documents of a ConfigMap, one for each relevant key.
fn documents(map: &ConfigMap, keys: Keys) -> ConfigMapDocuments {
    let namespace = map.namespace().unwrap_or_default();
    let name = map.name_any();
    let mut values: BTreeMap<&str, &[u8]> = BTreeMap::new();
    for (key, text) in map.data.iter().flatten() {
        values.insert(key, text.as_bytes());
    }
    for (key, bytes) in map.binary_data.iter().flatten() {
        values.insert(key, &bytes.0);
    }
    let mut found = ConfigMapDocuments {
        config_map: ConfigMapRef {
            uid: map.uid().unwrap_or_default(),
            resource_version: map.resource_version().unwrap_or_default(),
            namespace,
            name,
        },
        documents: Vec::new(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let prefix = found.config_map.prefix();
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
        let warning = Diagnostic::whole_file(&format!("{prefix}{key}"), message);
        found.warnings.push(warning.with_code(Code::NoConfigKey));
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

    #[test]
    fn a_config_map_without_its_key_has_a_code() {
        let mut map = map("ip-masq-agent", false, false);
        map.data = Some(BTreeMap::from([("agent-config".into(), String::new())]));
        let keys = Keys::of("ip-masq-agent", "ip-masq-agent", false);
        let warnings = documents(&map, keys).warnings;
        let [warning] = warnings.as_slice() else {
            panic!("{warnings:?}");
        };
        let told = warning.to_string();
        assert!(
            told.ends_with("only agent-config: it configures nothing NDP102"),
            "{told}"
        );
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
