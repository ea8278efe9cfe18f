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
    /// The same, but other networks of the cluster are known.
    Networks(Config),
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
            let same_texts = in_force.source == Source::Sources
                && lines(&loaded.warnings) == in_force.warnings
                && names(&documents) == in_force.files;
            if same_texts && !recovered {
                if loaded.config == *config {
                    return Reload::Unchanged;
                }
                if loaded.config.differs_in_networks_only(config) {
                    return Reload::Networks(loaded.config);
                }
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
        read_in_cluster(text, &[])
    }

    /// Reads a text where these are the pods' networks.
    fn read_in_cluster(text: &str, pods: &[&str]) -> Read {
        let pods: Vec<_> = pods.iter().map(|net| net.parse().unwrap()).collect();
        let cluster = config::ClusterCidrs {
            auto: config::AutoNetworks::of_flags(&pods, &[]),
            ..config::ClusterCidrs::default()
        };
        let document = Document {
            name: "/etc/config/a".into(),
            text: text.into(),
            format: Format::MasqAgent,
        };
        let documents = vec![document];
        let loaded = config::load_for_cluster(&documents, &Options::default(), &cluster)?;
        Ok((documents, loaded))
    }

    const GOOD: &str = "nonMasqueradeCIDRs: [10.0.0.0/8]\n";
    const OTHER: &str = "nonMasqueradeCIDRs: [10.0.0.0/9]\n";
    const BAD: &str = "nonMasqueradeCIDRs: [10.0.0.0/99]\n";

    /// Returns the state with [`GOOD`] in force.
    fn in_force() -> (config::Config, InForce) {
        in_force_of(read(GOOD))
    }

    fn in_force_of(read: Read) -> (config::Config, InForce) {
        let (documents, loaded) = read.unwrap();
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
    fn other_networks_of_the_cluster_are_no_other_configuration() {
        let text = "autoNonMasquerade: [pods]\n";
        let one = read_in_cluster(text, &["100.64.0.0/24"]);
        let (config, in_force) = in_force_of(one);
        let two = || read_in_cluster(text, &["100.64.0.0/24", "100.64.9.0/24"]);
        let Reload::Networks(after) = decide(two(), &config, &in_force) else {
            panic!("not about networks only");
        };
        assert_eq!(after.rules.len(), config.rules.len() + 1);
        assert_eq!(decide(two(), &after, &in_force), Reload::Unchanged);
        let other = format!("{text}resyncInterval: 5s\n");
        let other = read_in_cluster(&other, &["100.64.0.0/24", "100.64.9.0/24"]);
        let decision = decide(other, &config, &in_force);
        assert!(matches!(decision, Reload::Accept { .. }), "{decision:?}");
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
