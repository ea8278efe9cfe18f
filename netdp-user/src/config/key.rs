//! The valid keys of a file.

use super::diagnostic::quoted;
use crate::misspelling::nearest;

/// Jaro-Winkler similarity below which an unknown key is not reported as a misspelling of a known
/// one.
const MIN_SIMILARITY: f64 = 0.75;

/// A key of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    NonMasqueradeCidrs,
    MasqueradeCidrs,
    MasqLinkLocal,
    MasqLinkLocalIpv6,
    ResyncInterval,
    CidrLimit,
    AutoNonMasquerade,
}

impl Key {
    pub(crate) const ALL: [Self; 7] = [
        Self::NonMasqueradeCidrs,
        Self::MasqueradeCidrs,
        Self::MasqLinkLocal,
        Self::MasqLinkLocalIpv6,
        Self::ResyncInterval,
        Self::CidrLimit,
        Self::AutoNonMasquerade,
    ];

    /// Returns the documented spelling of the key.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::NonMasqueradeCidrs => "nonMasqueradeCIDRs",
            Self::MasqueradeCidrs => "masqueradeCIDRs",
            Self::MasqLinkLocal => "masqLinkLocal",
            Self::MasqLinkLocalIpv6 => "masqLinkLocalIPv6",
            Self::ResyncInterval => "resyncInterval",
            Self::CidrLimit => "cidrLimit",
            Self::AutoNonMasquerade => "autoNonMasquerade",
        }
    }

    /// Finds a key by name. Letter case is ignored as upstream ignores it: some tools write every
    /// key in lower case.
    pub(crate) fn find(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|key| key.name().eq_ignore_ascii_case(text))
    }

    /// Returns the key of which `text` is most likely a misspelling.
    fn nearest(text: &str) -> Option<Self> {
        Self::find(nearest(text, Self::ALL.map(Self::name), MIN_SIMILARITY)?)
    }
}

/// Returns the message for an unknown key.
pub(super) fn unknown(text: &str) -> String {
    match Key::nearest(text) {
        Some(key) => format!(
            "unknown key {} is ignored; did you mean {}?",
            quoted(text),
            key.name()
        ),
        None => {
            let known = Key::ALL.map(Key::name).join(", ");
            format!(
                "unknown key {} is ignored; the known keys are {known}",
                quoted(text)
            )
        }
    }
}
