//! Which configuration is in force, and what is said of it.

use super::Agent;
use crate::config::{self, Document};
use crate::sources::file;
use crate::state_dir::StateDir;
use crate::status::{self, ConfigReport, RuleReport};

/// How many warnings about one configuration are logged: a long list may have one for each entry.
const MAX_LOGGED: usize = 20;

/// Where the configuration in force came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Files and, if that is followed, the Kubernetes API: what is to be.
    Sources,
    Defaults,
    LastGood,
}

impl Agent {
    /// The configuration at start: files; where those are bad, the policy of an
    /// earlier agent that is still in force; else the defaults.
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
                    "THE CONFIGURATION IS BAD: {} in force until it is mended",
                    match source {
                        Source::LastGood => "the last good one stays",
                        _ => "the defaults are",
                    }
                );
                self.accept(documents, loaded, source);
                self.report.config.rejected = lines(&rejected.errors);
            }
        }
    }

    fn read(&mut self) -> Result<(Vec<Document>, config::Loaded), config::Rejected> {
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

    /// Reads the files again; a bad one changes nothing.
    pub(super) fn reload(&mut self) {
        match self.read() {
            Ok((documents, loaded)) => {
                let mended = !self.report.config.rejected.is_empty();
                if mended {
                    log::info!("the configuration is good again");
                }
                if mended
                    || loaded.config != self.config
                    || lines(&loaded.warnings) != self.report.config.warnings
                    || names(&documents) != self.report.config.files
                    || self.source != Source::Sources
                {
                    let config::Loaded {
                        config,
                        warnings,
                        notes,
                    } = loaded;
                    let before = std::mem::replace(&mut self.config, config);
                    self.selection.masqueraded = self.config.masqueraded();
                    let applied = self.apply();
                    drop(before);
                    self.accepted(documents, &warnings, &notes, Source::Sources);
                    self.applied(applied);
                }
            }
            Err(rejected) => {
                if self.report.config.rejected != lines(&rejected.errors) {
                    self.reject(&rejected);
                    log::error!("the configuration is bad: what was in force stays");
                    self.report.config.rejected = lines(&rejected.errors);
                    self.told.another_config(Vec::new());
                    self.save_report();
                    self.tell();
                }
            }
        }
    }

    fn reject(&self, rejected: &config::Rejected) {
        for error in &rejected.errors {
            log::error!("{error}");
        }
    }

    /// Takes a configuration for the one that is to be in force.
    fn accept(&mut self, documents: Vec<Document>, loaded: config::Loaded, source: Source) {
        self.config = loaded.config;
        self.selection.masqueraded = self.config.masqueraded();
        self.accepted(documents, &loaded.warnings, &loaded.notes, source);
    }

    /// Writes down what is to be known of the configuration that was taken.
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
                None => log::info!("{path_name} does not exist; it is read once it does"),
                Some(hint) => {
                    log::warn!("{path_name} does not exist; it is read once it does; {hint}");
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
        let hash = self.config.hash();
        let before = &self.report.config;
        let (generation, applied_at) = if hash == before.hash {
            (before.generation, before.applied_at)
        } else {
            (before.generation + 1, status::now())
        };
        self.source = source;
        let files = names(&documents);
        let source = self.name_source(source, &documents);
        let is_gone = |name: &&String| !files.contains(name) && !self.api.counts_for(name);
        let gone: Vec<_> = before.files.iter().filter(is_gone).cloned().collect();
        for name in &gone {
            log::warn!("{name} is gone: what is in force is from {source}");
        }
        self.told.another_config(gone);
        self.report.config = ConfigReport {
            source,
            files,
            hash,
            generation,
            applied_at,
            rules: self.config.rules.iter().map(rule_report).collect(),
            warnings: lines(warnings),
            rejected: Vec::new(),
        };
    }
}

impl Agent {
    fn name_source(&self, source: Source, documents: &[Document]) -> String {
        match source {
            Source::Defaults => "defaults".into(),
            Source::LastGood => "last good".into(),
            Source::Sources => self.api.name_of(documents.len()),
        }
    }
}

/// The policy that an earlier agent had in force, as far as counting policies goes.
pub(super) fn counted_on(state_dir: &StateDir) -> ConfigReport {
    let before = state_dir.report().unwrap_or_default().config;
    ConfigReport {
        hash: before.hash,
        generation: before.generation,
        applied_at: before.applied_at,
        ..ConfigReport::default()
    }
}

fn rule_report(rule: &config::Rule) -> RuleReport {
    RuleReport {
        prefix: rule.prefix.to_string(),
        action: rule.action.to_string(),
        origin: rule.origin.to_string(),
    }
}

fn names(documents: &[Document]) -> Vec<String> {
    documents
        .iter()
        .map(|document| document.name.clone())
        .collect()
}

fn lines(diagnostics: &[config::Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}
