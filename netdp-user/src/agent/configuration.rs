//! Which configuration is in force, and what is said of it.

use super::Agent;
use crate::config::{self, Document};
use crate::sources::file;
use crate::status::{self, ConfigReport, RuleReport};

/// How many warnings about one configuration are logged: a long list may have one for each entry.
const MAX_LOGGED: usize = 20;

/// Where the configuration in force came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Files,
    Defaults,
    LastGood,
}

impl Agent {
    /// The configuration at start: files; where those are bad, the policy of an
    /// earlier agent that is still in force; else the defaults.
    pub(super) fn first_config(&mut self) {
        match self.read() {
            Ok((documents, loaded)) => self.accept(documents, loaded, Source::Files),
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
                        let loaded = config::Loaded { config, warnings };
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

    fn read(&self) -> Result<(Vec<Document>, config::Loaded), config::Rejected> {
        let mut documents = file::read(&self.options.config_paths)?;
        documents.extend(self.options.targets.clone());
        let loaded = self.load(&documents)?;
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
                    || self.report.config.source != name(Source::Files)
                {
                    self.accept(documents, loaded, Source::Files);
                    self.reconcile();
                }
            }
            Err(rejected) => {
                if self.report.config.rejected != lines(&rejected.errors) {
                    self.reject(&rejected);
                    log::error!("the configuration is bad: what was in force stays");
                    self.report.config.rejected = lines(&rejected.errors);
                    self.save_report();
                }
            }
        }
    }

    fn reject(&self, rejected: &config::Rejected) {
        for error in &rejected.errors {
            log::error!("{error}");
        }
    }

    fn accept(&mut self, documents: Vec<Document>, loaded: config::Loaded, source: Source) {
        for warning in loaded.warnings.iter().take(MAX_LOGGED) {
            log::warn!("{warning}");
        }
        if let more @ 1.. = loaded.warnings.len().saturating_sub(MAX_LOGGED) {
            log::warn!("{more} more warnings: netdp config check shows them");
        }
        for path in file::absent(&self.options.config_paths) {
            log::info!("{} does not exist; it is read once it does", path.display());
        }
        if source == Source::Files
            && let Err(err) = self.state_dir.save_last_good(&documents)
        {
            log::warn!("{err:#}");
        }
        self.report.config = ConfigReport {
            source: match (source, documents.is_empty()) {
                (Source::Files, true) => "defaults (no file)".into(),
                (source, _) => name(source).into(),
            },
            files: documents.into_iter().map(|d| d.name).collect(),
            hash: loaded.config.hash(),
            applied_at: status::now(),
            rules: loaded.config.rules.iter().map(rule_report).collect(),
            warnings: lines(&loaded.warnings),
            rejected: Vec::new(),
        };
        self.config = loaded.config;
    }
}

fn rule_report(rule: &config::Rule) -> RuleReport {
    RuleReport {
        prefix: rule.prefix.to_string(),
        action: rule.action.to_string(),
        origin: rule.origin.to_string(),
    }
}

const fn name(source: Source) -> &'static str {
    match source {
        Source::Files => "files",
        Source::Defaults => "defaults",
        Source::LastGood => "last good",
    }
}

fn lines(diagnostics: &[config::Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}
