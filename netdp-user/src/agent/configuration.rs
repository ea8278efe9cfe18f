//! The configuration in force, and the log lines about it.

use super::Agent;
use super::in_force::{Deferred, InForce, Source};
use super::network::ApplyOutcome;
use super::reload::{Read, Reload, decide, lines, names};
use crate::codes::Code;
use crate::config::{self, Document};
use crate::policy::history::{History, Record};
use crate::sources::file;
use crate::sources::kube::ConfigMapRef;
use crate::time::now;
use std::time::Instant;

/// Limit of logged warnings about one configuration: a long list may have one for each entry.
const MAX_LOGGED: usize = 20;

impl Agent {
    /// Chooses the configuration at the start: the sources; if they are invalid, the policy of an
    /// earlier agent that is still in force; otherwise the defaults.
    pub(super) fn first_config(&mut self) {
        match self.read() {
            Ok((documents, loaded)) => self.accept(documents, loaded, Source::Sources),
            Err(rejected) => {
                self.log_errors(&rejected);
                let last_good = self
                    .state_dir
                    .last_good()
                    .filter(|_| self.engine.adopted())
                    .and_then(|documents| {
                        let loaded = self.load(&documents).ok()?;
                        Some((documents, loaded))
                    });
                let (documents, loaded, source) = match last_good {
                    Some((documents, loaded)) => (documents, loaded, Source::LastGood),
                    None => {
                        let config = config::defaults(&self.options.config_options);
                        let warnings = Vec::new();
                        let notes = Vec::new();
                        let loaded = config::Loaded {
                            config,
                            warnings,
                            notes,
                        };
                        (Vec::new(), loaded, Source::Defaults)
                    }
                };
                log::error!(
                    "invalid configuration: {} in force until it is fixed",
                    match source {
                        Source::LastGood => "the last good one stays",
                        _ => "the built-in defaults are",
                    }
                );
                self.accept(documents, loaded, source);
                self.tell_rejected(&rejected);
                self.in_force.rejected = lines(&rejected.errors);
            }
        }
    }

    pub(super) fn read(&mut self) -> Read {
        let mut documents = file::read(&self.options.config_paths)?;
        documents.extend(self.options.targets.clone());
        let warnings = self.add_api_documents(&mut documents)?;
        let mut loaded = self.load(&documents)?;
        loaded.warnings.extend(warnings);
        Ok((documents, loaded))
    }

    fn load(&self, documents: &[Document]) -> Result<config::Loaded, config::Rejected> {
        let options = &self.options;
        config::load_for_cluster(documents, &options.config_options, &options.cluster_cidrs)
    }

    /// Reads the sources again; an invalid configuration changes nothing.
    pub(super) fn reload(&mut self) {
        match decide(self.read(), &self.config, &self.in_force) {
            Reload::Unchanged | Reload::RejectedBefore => {}
            Reload::Networks(config) => {
                if self.followed.may_follow(Instant::now()) {
                    self.follow_networks(config);
                }
            }
            Reload::Accept {
                documents,
                loaded,
                recovered,
            } => {
                if recovered {
                    log::info!("the configuration is valid again");
                }
                self.put_in_force(documents, loaded);
            }
            Reload::Reject(rejected) => {
                self.log_errors(&rejected);
                log::error!("invalid configuration: the previous configuration stays in force");
                self.tell_rejected(&rejected);
                self.in_force.rejected = lines(&rejected.errors);
                self.publisher.record_config(Vec::new());
                self.save_report();
                self.publish_status();
            }
        }
    }

    /// Puts the configuration in force with other networks of the cluster. No document has changed, so
    /// that nothing is reported to anyone.
    fn follow_networks(&mut self, config: config::Config) {
        let prefixes = |config: &config::Config| {
            let rules = config.rules.iter().filter(|rule| rule.is_auto());
            rules.map(|rule| rule.prefix).collect::<Vec<_>>()
        };
        let after = prefixes(&config);
        if after != prefixes(&self.config) {
            log::info!(
                "the cluster's own networks have changed: {} prefixes are bypassed for them",
                after.len()
            );
        }
        let before = std::mem::replace(&mut self.config, config);
        self.selection.masqueraded = self.config.masqueraded();
        let applied = self.apply_config();
        drop(before);
        self.after_apply(applied);
        self.save_networks();
        self.save_report();
    }

    /// Puts a configuration in force. In iptables mode it is accepted once the chains have been
    /// written.
    fn put_in_force(&mut self, documents: Vec<Document>, loaded: config::Loaded) {
        let config::Loaded {
            config,
            warnings,
            notes,
        } = loaded;
        let before = std::mem::replace(&mut self.config, config);
        self.selection.masqueraded = self.config.masqueraded();
        self.want_networks(&self.config.auto);
        let applied = self.apply_config();
        drop(before);
        if let ApplyOutcome::Chains = applied {
            self.in_force.rejected.clear();
            self.deferred = Some(Deferred {
                documents,
                warnings,
                notes,
            });
        } else {
            self.record_accepted(documents, &warnings, &notes, Source::Sources);
        }
        self.after_apply(applied);
    }

    /// Accepts the deferred configuration: the chains have been written.
    pub(super) fn accept_deferred(&mut self) {
        let Some(deferred) = self.deferred.take() else {
            return;
        };
        // A later configuration may have been rejected.
        let rejected = std::mem::take(&mut self.in_force.rejected);
        let Deferred {
            documents,
            warnings,
            notes,
        } = deferred;
        self.record_accepted(documents, &warnings, &notes, Source::Sources);
        self.in_force.rejected = rejected;
    }

    fn log_errors(&self, rejected: &config::Rejected) {
        for error in &rejected.errors {
            log::error!(object = error.place(), code:% = Code::Rejected; "{error}");
        }
    }

    /// Accepts a configuration that is still to be put in force.
    fn accept(&mut self, documents: Vec<Document>, loaded: config::Loaded, source: Source) {
        self.config = loaded.config;
        self.want_networks(&self.config.auto);
        self.selection.masqueraded = self.config.masqueraded();
        self.record_accepted(documents, &loaded.warnings, &loaded.notes, source);
    }

    /// Logs and records an accepted configuration.
    fn record_accepted(
        &mut self,
        documents: Vec<Document>,
        warnings: &[config::Diagnostic],
        notes: &[config::Diagnostic],
        source: Source,
    ) {
        for note in notes.iter().take(MAX_LOGGED) {
            log::info!(object = note.place(); "{note}");
        }
        for warning in warnings.iter().take(MAX_LOGGED) {
            log::warn!(object = warning.place(); "{warning}");
        }
        if let more @ 1.. = warnings.len().saturating_sub(MAX_LOGGED) {
            log::warn!("{more} more warnings: netdp config check shows them");
        }
        for path in file::missing(&self.options.config_paths) {
            let path_name = path.display();
            match file::suggest(path) {
                None => {
                    log::info!("{path_name} does not exist; it will be read as soon as it appears");
                }
                Some(hint) => {
                    log::warn!(
                        "{path_name} does not exist; it will be read as soon as it appears; {hint}"
                    );
                }
            }
        }
        if source == Source::Sources
            && let Err(err) = self.state_dir.save_last_good(&documents)
        {
            log::warn!("{err:#}");
        }
        if source == Source::Sources {
            self.save_api_documents();
            self.save_networks();
        }
        let before = &self.in_force;
        let policy = before.policy.followed_by(self.config.hash(), now());
        let files = names(&documents);
        let source_name = self.name_source(source, &documents);
        let is_gone =
            |name: &&String| !files.contains(name) && !self.api.takes_precedence_over(name);
        let gone: Vec<_> = before.files.iter().filter(is_gone).cloned().collect();
        for name in &gone {
            log::warn!("{name} is gone: the configuration in force is from {source_name}");
        }
        self.publisher.record_config(gone);
        self.log_policy(&policy.hash);
        self.in_force = InForce {
            source,
            source_name,
            files,
            policy,
            warnings: lines(warnings),
            rejected: Vec::new(),
        };
        let InForce {
            policy,
            source_name,
            ..
        } = &self.in_force;
        let rules = self.config.rules.len();
        let (hash, generation) = (&policy.hash, policy.generation);
        let text = format!("{hash}, generation {generation}, {rules} rules from {source_name}");
        self.events.config(&text, false);
        self.record_history();
    }

    /// Tells those who listen that a configuration was rejected.
    fn tell_rejected(&self, rejected: &config::Rejected) {
        let first = rejected.errors.first().map(ToString::to_string);
        let text = format!("rejected: {}", first.unwrap_or_default());
        self.events.config(&text, true);
    }

    /// Adds the policy to the history of those that have been in force.
    fn record_history(&self) {
        let InForce {
            policy,
            source_name,
            files,
            ..
        } = &self.in_force;
        let maps = self.api.maps().into_iter();
        let is_part = |map: &ConfigMapRef| files.iter().any(|it| it.starts_with(&map.prefix()));
        let maps = maps.filter(is_part).map(|map| {
            let ConfigMapRef {
                namespace,
                name,
                resource_version,
                ..
            } = map;
            format!("{namespace}/{name}@{resource_version}")
        });
        let record = Record::new(
            (policy.generation, &policy.hash),
            policy.applied_at,
            source_name,
            maps.collect(),
        );
        // The cluster's own networks come and go without a change of the configuration.
        let written: Vec<_> = (self.config.rules.iter())
            .filter(|rule| !rule.is_auto())
            .cloned()
            .collect();
        if let Err(err) = History::record(&self.state_dir, record, &written) {
            log::warn!("{err:#}");
        }
    }

    /// Records in the NAT log, if there is one, that a policy is in force.
    fn log_policy(&self, hash: &str) {
        if let Some(log) = self.engine.as_ebpf().and_then(|ebpf| ebpf.nat_log.as_ref()) {
            log.policy(hash);
        }
    }

    fn name_source(&self, source: Source, documents: &[Document]) -> String {
        match source {
            Source::Defaults => "defaults".into(),
            Source::LastGood => "last good".into(),
            Source::Sources => self.api.describe_sources(documents.len()),
        }
    }
}
