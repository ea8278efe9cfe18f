//! The decision about a configuration that was read, without side effects.

use super::in_force::{InForce, Source};
use crate::config::{Config, Diagnostic, Document, Loaded, Rejected};

/// Result of a read: documents and their configuration, or the reasons for rejecting them.
pub(super) type Read = Result<(Vec<Document>, Loaded), Rejected>;

/// Decision about a configuration that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reload {
    /// Already in force; nothing to do.
    Unchanged,
    /// Valid, and to be put in force.
    Accept {
        documents: Vec<Document>,
        loaded: Loaded,
        /// Set if the previous read was rejected.
        recovered: bool,
    },
    /// Rejected; the configuration in force remains.
    Reject(Rejected),
    /// Rejected for the same reasons as before, which were reported.
    RejectedBefore,
}

/// Decides about a configuration that was read; `config` and `in_force` describe the one in force.
pub(super) fn decide(read: Read, config: &Config, in_force: &InForce) -> Reload {
    match read {
        Err(rejected) if lines(&rejected.errors) == in_force.rejected => Reload::RejectedBefore,
        Err(rejected) => Reload::Reject(rejected),
        Ok((documents, loaded)) => {
            let recovered = !in_force.rejected.is_empty();
            let is_in_force = in_force.source == Source::Sources
                && loaded.config == *config
                && lines(&loaded.warnings) == in_force.warnings
                && names(&documents) == in_force.files;
            if is_in_force && !recovered {
                return Reload::Unchanged;
            }
            Reload::Accept {
                documents,
                loaded,
                recovered,
            }
        }
    }
}

/// Returns the names of documents in the form in which they are reported.
pub(super) fn names(documents: &[Document]) -> Vec<String> {
    let names = documents.iter().map(|document| document.name.clone());
    names.collect()
}

/// Returns diagnostics in the form in which they are reported.
pub(super) fn lines(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::super::memory::PolicyCount;
    use super::{InForce, Read, Reload, Source, decide, lines, names};
    use crate::config::{self, Document, Format, Options};

    fn read(text: &str) -> Read {
        let document = Document {
            name: "/etc/config/a".into(),
            text: text.into(),
            format: Format::MasqAgent,
        };
        let documents = vec![document];
        let loaded = config::load(&documents, &Options::default())?;
        Ok((documents, loaded))
    }

    const GOOD: &str = "nonMasqueradeCIDRs: [10.0.0.0/8]\n";
    const OTHER: &str = "nonMasqueradeCIDRs: [10.0.0.0/9]\n";
    const BAD: &str = "nonMasqueradeCIDRs: [10.0.0.0/99]\n";

    /// Returns the state with [`GOOD`] in force.
    fn in_force() -> (config::Config, InForce) {
        let (documents, loaded) = read(GOOD).unwrap();
        let mut in_force = InForce::after(PolicyCount::default());
        in_force.source = Source::Sources;
        in_force.files = names(&documents);
        in_force.warnings = lines(&loaded.warnings);
        (loaded.config, in_force)
    }

    #[test]
    fn what_is_in_force_is_not_put_in_force_again() {
        let (config, in_force) = in_force();
        assert_eq!(decide(read(GOOD), &config, &in_force), Reload::Unchanged);
    }

    #[test]
    fn whatever_differs_is_accepted() {
        let accepted = |text: &str, change: fn(&mut InForce)| {
            let (config, mut in_force) = in_force();
            change(&mut in_force);
            match decide(read(text), &config, &in_force) {
                Reload::Accept { recovered, .. } => Some(recovered),
                _ => None,
            }
        };
        assert_eq!(accepted(OTHER, |_| {}), Some(false));
        assert_eq!(
            accepted(GOOD, |it| it.source = Source::LastGood),
            Some(false)
        );
        assert_eq!(accepted(GOOD, |it| it.files.clear()), Some(false));
        assert_eq!(
            accepted(GOOD, |it| it.warnings.push("w".into())),
            Some(false)
        );
        assert_eq!(
            accepted(GOOD, |it| it.rejected.push("e".into())),
            Some(true)
        );
    }

    #[test]
    fn what_is_bad_is_rejected_and_reported_once() {
        let (config, mut in_force) = in_force();
        let Reload::Reject(rejected) = decide(read(BAD), &config, &in_force) else {
            panic!("not rejected");
        };
        in_force.rejected = lines(&rejected.errors);
        assert!(in_force.rejected[0].contains("/etc/config/a"), "{rejected}");
        assert_eq!(
            decide(read(BAD), &config, &in_force),
            Reload::RejectedBefore
        );
        let worse = format!("{BAD}masqueradeCIDRs: [10.0.0.0/98]\n");
        assert!(matches!(
            decide(read(&worse), &config, &in_force),
            Reload::Reject(_)
        ));
    }
}
