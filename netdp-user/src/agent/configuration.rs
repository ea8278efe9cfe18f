//! The configuration in force, and the log lines about it.

use super::Agent;
use super::memory::PolicyCount;
use super::network::Applied;
use super::reload::{Read, Reload, judge, lines, names};
use crate::config::{self, Document};
use crate::sources::file;
use crate::time::now;

/// Limit of logged warnings about one configuration: a long list may have one for each entry.
const MAX_LOGGED: usize = 20;

/// Source of the configuration in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Files and, if it is followed, the Kubernetes API: the desired configuration.
    Sources,
    Defaults,
    LastGood,
}

/// The configuration in force, and the state of its sources.
#[derive(Debug)]
pub(super) struct InForce {
    /// Source of the configuration.
    pub source: Source,
    /// Its source, in words.
    pub source_name: String,
    /// Names of the documents that were read.
    pub files: Vec<String>,
    /// Hash, generation and time of its policy.
    pub policy: PolicyCount,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
    /// Reasons why the current documents were rejected.
    pub rejected: Vec<String>,
}

/// A configuration to accept once the chains have been written.
#[derive(Debug)]
pub(super) struct Deferred {
    documents: Vec<Document>,
    warnings: Vec<config::Diagnostic>,
    notes: Vec<config::Diagnostic>,
}

impl InForce {
    /// Returns the state before the first configuration, continuing the count of an earlier agent's
    /// policies.
    pub(super) const fn after(policy: PolicyCount) -> Self {
        Self {
            source: Source::Defaults,
            source_name: String::new(),
            files: Vec::new(),
            policy,
            warnings: Vec::new(),
            rejected: Vec::new(),
        }
    }
}

impl Agent {
    /// Chooses the configuration at the start: the sources; if they are invalid, the policy of an
    /// earlier agent that is still in force; otherwise the defaults.
    pub(super) fn first_config(&mut self) {
        match self.read() {
            Ok((documents, loaded)) => self.accept(documents, loaded, Source::Sources),
            Err(rejected) => {
                self.reject(&rejected);
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
                self.in_force.rejected = lines(&rejected.errors);
            }
        }
    }

    fn read(&mut self) -> Read {
        let mut documents = file::read(&self.options.config_paths)?;
        documents.extend(self.options.targets.clone());
        let warnings = self.add_api(&mut documents)?;
        let mut loaded = self.load(&documents)?;
        loaded.warnings.extend(warnings);
        Ok((documents, loaded))
    }

    fn load(&self, documents: &[Document]) -> Result<config::Loaded, config::Rejected> {
        let options = &self.options;
        config::load_within(documents, &options.config_options, &options.surroundings)
    }

    /// Reads the sources again; an invalid configuration changes nothing.
    pub(super) fn reload(&mut self) {
        match judge(self.read(), &self.config, &self.in_force) {
            Reload::Unchanged | Reload::RejectedBefore => {}
            Reload::Accept {
                documents,
                loaded,
                mended,
            } => {
                if mended {
                    log::info!("the configuration is valid again");
                }
                self.take(documents, loaded);
            }
            Reload::Reject(rejected) => {
                self.reject(&rejected);
                log::error!("invalid configuration: the previous configuration stays in force");
                self.in_force.rejected = lines(&rejected.errors);
                self.told.another_config(Vec::new());
                self.save_report();
                self.tell();
            }
        }
    }

    /// Puts a configuration in force. In iptables mode it is accepted once the chains have been
    /// written.
    fn take(&mut self, documents: Vec<Document>, loaded: config::Loaded) {
        let config::Loaded {
            config,
            warnings,
            notes,
        } = loaded;
        let before = std::mem::replace(&mut self.config, config);
        self.selection.masqueraded = self.config.masqueraded();
        let applied = self.apply();
        drop(before);
        if let Applied::Chains = applied {
            self.in_force.rejected.clear();
            self.deferred = Some(Deferred {
                documents,
                warnings,
                notes,
            });
        } else {
            self.accepted(documents, &warnings, &notes, Source::Sources);
        }
        self.applied(applied);
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
        self.accepted(documents, &warnings, &notes, Source::Sources);
        self.in_force.rejected = rejected;
    }

    fn reject(&self, rejected: &config::Rejected) {
        for error in &rejected.errors {
            log::error!("{error}");
        }
    }

    /// Accepts a configuration that is still to be put in force.
    fn accept(&mut self, documents: Vec<Document>, loaded: config::Loaded, source: Source) {
        self.config = loaded.config;
        self.selection.masqueraded = self.config.masqueraded();
        self.accepted(documents, &loaded.warnings, &loaded.notes, source);
    }

    /// Logs and records an accepted configuration.
    fn accepted(
        &mut self,
        documents: Vec<Document>,
        warnings: &[config::Diagnostic],
        notes: &[config::Diagnostic],
        source: Source,
    ) {
        for note in notes.iter().take(MAX_LOGGED) {
            log::info!("{note}");
        }
        for warning in warnings.iter().take(MAX_LOGGED) {
            log::warn!("{warning}");
        }
        if let more @ 1.. = warnings.len().saturating_sub(MAX_LOGGED) {
            log::warn!("{more} more warnings: netdp config check shows them");
        }
        for path in file::absent(&self.options.config_paths) {
            let path_name = path.display();
            match file::meant_by(path) {
                None => log::info!("{path_name} does not exist; it is read as soon as it appears"),
                Some(hint) => {
                    log::warn!(
                        "{path_name} does not exist; it is read as soon as it appears; {hint}"
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
            self.remember_api();
        }
        let before = &self.in_force;
        let policy = before.policy.followed_by(self.config.hash(), now());
        let files = names(&documents);
        let source_name = self.name_source(source, &documents);
        let is_gone = |name: &&String| !files.contains(name) && !self.api.counts_for(name);
        let gone: Vec<_> = before.files.iter().filter(is_gone).cloned().collect();
        for name in &gone {
            log::warn!("{name} is gone: the configuration in force is from {source_name}");
        }
        self.told.another_config(gone);
        self.in_force = InForce {
            source,
            source_name,
            files,
            policy,
            warnings: lines(warnings),
            rejected: Vec::new(),
        };
    }

    fn name_source(&self, source: Source, documents: &[Document]) -> String {
        match source {
            Source::Defaults => "defaults".into(),
            Source::LastGood => "last good".into(),
            Source::Sources => self.api.name_of(documents.len()),
        }
    }
}
