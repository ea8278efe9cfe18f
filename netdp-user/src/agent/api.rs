//! The Kubernetes API as a source of the configuration.

use super::Agent;
use super::in_force::Source;
use crate::codes::Code;
use crate::config::{Diagnostic, Document, Rejected};
use crate::control::Control;
use crate::sources::file;
use crate::sources::kube::View;
use crate::state_dir::StateDir;
use crate::upstream::{custom_iptables, masq_agent};
use std::path::Path;
use std::time::Duration;

/// Time that the first configuration waits for the API if no agent before received its documents:
/// long enough for a healthy API, short enough for pods to tolerate.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// State of the API as a source.
#[derive(Debug, Default)]
pub(super) struct ApiState {
    on: bool,
    view: View,
    /// Documents that an earlier agent received, until this one has received its own.
    recalled: Option<Vec<Document>>,
    /// Number of documents of the last read that come from the API.
    documents: usize,
    /// Files that were ignored in favour of the API, as logged.
    ignored_files: Vec<String>,
}

impl ApiState {
    pub(super) fn new(on: bool, state_dir: &StateDir) -> Self {
        Self {
            on,
            recalled: on.then(|| state_dir.last_api()).flatten(),
            ..Self::default()
        }
    }

    /// Returns the sources of the configuration in force, which has `all` documents, in words.
    pub(super) fn describe_sources(&self, all: usize) -> String {
        match (self.on, all, self.documents) {
            (false, 0, _) => "defaults (no file)".into(),
            (true, 0, _) => "defaults (no ConfigMap, no file)".into(),
            (_, _, 0) => "files".into(),
            (_, all, api) if all == api => "the Kubernetes API".into(),
            _ => "files and the Kubernetes API".into(),
        }
    }

    /// Returns why the policy in force may not be the desired one, if so.
    pub(super) fn unready(&self, required: bool, files: usize) -> Option<String> {
        let known = self.view.config_maps.is_some() || self.recalled.is_some();
        // In a cluster that grants the agent no permissions, files are the only source.
        let enough = !required && (self.view.refused || files > 0);
        if !self.on || known || enough {
            return None;
        }
        let problem = self.view.problem.as_deref().unwrap_or("no answer yet");
        Some(format!(
            "no configuration from the Kubernetes API yet: {problem}"
        ))
    }

    /// Returns the state of the API for `netdp status`.
    pub(super) fn state(&self) -> Option<String> {
        let kept = match (&self.view.config_maps, &self.recalled) {
            (Some(_), _) => "the configuration received last stays in force",
            (None, Some(_)) => "the configuration that an earlier agent received is in force",
            (None, None) => "no configuration received yet",
        };
        self.on
            .then(|| match (&self.view.problem, &self.view.config_maps) {
                (None, Some(_)) => "followed".into(),
                (None, None) => format!("no answer yet; {kept}"),
                (Some(problem), _) => {
                    format!("not followed: {problem}; {kept} {}", Code::ApiSilent)
                }
            })
    }

    /// Reports whether the API takes precedence over this file.
    pub(super) fn takes_precedence_over(&self, file: &String) -> bool {
        self.ignored_files.contains(file)
    }

    /// Returns the view as last taken over.
    pub(super) const fn view(&self) -> &View {
        &self.view
    }

    /// Returns the ConfigMaps of the view, for Events.
    pub(super) fn maps(&self) -> Vec<crate::sources::kube::ConfigMapRef> {
        let maps = self.view.config_maps.iter().flatten();
        maps.map(|map| map.config_map.clone()).collect()
    }
}

/// Waits until the view of the API changes; forever if the API is not followed.
pub(super) async fn changed(control: &mut Option<Control>) {
    match control {
        Some(control) => control.changed().await,
        None => std::future::pending().await,
    }
}

impl Agent {
    /// Waits up to [`FIRST_ANSWER`] for the API before the first configuration, unless documents of
    /// an earlier agent are available.
    pub(super) async fn await_api(&mut self) {
        if !self.api.on || self.api.recalled.is_some() {
            return;
        }
        log::info!("querying the Kubernetes API for the configuration");
        let answered = async {
            loop {
                changed(&mut self.control).await;
                self.sync_api();
                let view = &self.api.view;
                let node = self.options.kube.as_ref().is_none_or(|kube| {
                    kube.node_name.is_none() || view.node.is_some() || view.problem.is_some()
                });
                if view.refused || (view.config_maps.is_some() && node) {
                    break;
                }
            }
        };
        if tokio::time::timeout(FIRST_ANSWER, answered).await.is_err() {
            log::warn!(
                "the Kubernetes API did not answer within {FIRST_ANSWER:?}: starting without it; \
                 its configuration is applied once it answers"
            );
        }
    }

    /// Takes over the current view of the API. Returns whether what the configuration is made of
    /// (ConfigMaps and networks), and whether the Node differs.
    pub(super) fn sync_api(&mut self) -> (bool, bool) {
        let Some(control) = &mut self.control else {
            return (false, false);
        };
        let view = control.view();
        let maps = view.config_maps != self.api.view.config_maps;
        let node = view.node != self.api.view.node;
        self.api.view = view;
        if self.api.view.config_maps.is_some() {
            self.api.recalled = None;
        }
        if let Some(facts) = self.api.view.node.as_ref().filter(|_| node) {
            if self.options.node_addrs.is_empty() {
                self.selection.node_addrs.clone_from(&facts.addresses);
            }
            let pods = &mut self.options.cluster_cidrs.pod_cidrs;
            pods.extend(facts.pod_cidrs.iter().copied());
            pods.sort_unstable();
            pods.dedup();
        }
        let networks = self.sync_networks();
        (maps || networks, node)
    }

    /// Handles a change of the view of the API.
    pub(super) fn api_changed(&mut self) {
        let before = self.api.state();
        let (config, node) = self.sync_api();
        if config || node || self.in_force.source != Source::Sources {
            self.reload();
        }
        if node {
            self.reconcile();
        }
        if before != self.api.state() {
            self.save_report();
        }
        self.publish_status();
    }

    /// Adds the API's documents to those of files, and removes files that are volumes of the same
    /// ConfigMaps: the kubelet updates them a minute later, and until then they would contradict
    /// the API. Returns warnings.
    ///
    /// # Errors
    /// Returns an error if a ConfigMap has a key whose content is not text.
    pub(super) fn add_api_documents(
        &mut self,
        documents: &mut Vec<Document>,
    ) -> Result<Vec<Diagnostic>, Rejected> {
        let Some(kube) = &self.options.kube else {
            return Ok(Vec::new());
        };
        let maps = self.api.view.config_maps.as_deref().unwrap_or_default();
        let has_documents = |name: &str| {
            maps.iter()
                .any(|map| map.config_map.name == name && !map.documents.is_empty())
        };
        let (main, nat) = (
            has_documents(&kube.config_map),
            has_documents(custom_iptables::NAME),
        );
        let mut ignored_files = Vec::new();
        documents.retain(|document| {
            let path = Path::new(&document.name);
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let same = (main && (name == masq_agent::KEY || name == kube.config_map.as_str()))
                || (nat && name == custom_iptables::KEY);
            let is_duplicate = same && file::is_in_volume(path);
            if is_duplicate {
                ignored_files.push(document.name.clone());
            }
            !is_duplicate
        });
        for name in &ignored_files {
            if !self.api.ignored_files.contains(name) {
                log::info!(
                    "ignoring {name}: it is a volume of a ConfigMap that is read through the API"
                );
            }
        }
        self.api.ignored_files = ignored_files;
        let errors: Vec<_> = maps.iter().flat_map(|map| map.errors.clone()).collect();
        if !errors.is_empty() {
            return Err(Rejected { errors });
        }
        let files = documents.len();
        documents.extend(self.api.recalled.iter().flatten().cloned());
        documents.extend(maps.iter().flat_map(|map| map.documents.iter().cloned()));
        self.api.documents = documents.len() - files;
        Ok(maps.iter().flat_map(|map| map.warnings.clone()).collect())
    }

    /// Saves the API's documents for the next agent, after a configuration was accepted.
    pub(super) fn save_api_documents(&self) {
        let Some(maps) = &self.api.view.config_maps else {
            return;
        };
        let documents: Vec<_> = maps.iter().flat_map(|map| map.documents.clone()).collect();
        if let Err(err) = self.state_dir.save_last_api(&documents) {
            log::warn!("{err:#}");
        }
    }

    /// Returns the number of documents that are files.
    pub(super) fn file_documents(&self) -> usize {
        self.in_force.files.len().saturating_sub(self.api.documents)
    }
}

#[cfg(test)]
mod tests {
    use super::ApiState;
    use crate::sources::kube::View;

    #[test]
    fn an_api_that_is_not_followed_has_a_code() {
        let mut api = ApiState {
            on: true,
            ..ApiState::default()
        };
        assert!(!api.state().unwrap().contains("NDP"));
        api.view = View {
            problem: Some("connection refused".into()),
            ..View::default()
        };
        let told = api.state().unwrap();
        assert_eq!(
            told,
            "not followed: connection refused; no configuration received yet NDP703"
        );
    }
}
