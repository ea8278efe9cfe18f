//! Stable codes of findings, the same in every command, Event and log line. docs/codes.md explains
//! each.

use netdp_common::layout::DropReason;
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The document that explains the codes, one section each.
const DOCUMENT: &str = include_str!("../../docs/codes.md");

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Nothing is wrong; it explains what is seen.
    Info,
    /// Pods' traffic may differ from what the configuration says.
    Warning,
    /// Pods' traffic is refused, leaves untranslated, or is decided by another program.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

macro_rules! codes {
    ($($name:ident = $number:literal, $severity:ident, $text:literal;)+) => {
        /// A code. Numbers are never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Code {
            $(#[doc = $text] $name = $number,)+
        }

        impl Code {
            /// All codes, in the order of their numbers.
            pub(crate) const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the severity of a finding with this code.
            pub(crate) const fn severity(self) -> Severity {
                match self {
                    $(Self::$name => Severity::$severity,)+
                }
            }

            /// Returns what the code means, in a few words.
            pub(crate) const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

codes! {
    Rejected = 101, Error, "configuration rejected, an older one in force";
    NoConfigKey = 102, Warning, "ConfigMap without a key `config`";
    Defaults = 103, Warning, "defaults in force, because nothing else is configured";
    UnknownKey = 104, Warning, "unknown key in the configuration";
    Masked = 201, Info, "a longer prefix masks part of another";
    NoEffect = 202, Info, "an entry changes nothing";
    NeverHit = 203, Info, "an entry was never hit";
    PodsMasqueraded = 204, Warning, "the pods' or services' network is masqueraded";
    Ipv6Off = 205, Warning, "IPv6 is not enabled";
    NoWayBack = 206, Error, "a bypassed network answers the node and not pods";
    SilentNetwork = 207, Warning, "a bypassed network does not answer pods";
    NoUplink = 301, Error, "leaves by an interface that is no uplink";
    NoAddress = 302, Error, "an uplink without an address";
    ForeignSource = 303, Warning, "the route's source is not the node's";
    SeveralAddresses = 304, Info, "several global addresses, the first is taken";
    Detour = 305, Error, "a path past the hooks of the uplinks";
    OtherNat = 401, Error, "another program's rule translates first";
    ChainBack = 402, Warning, "the chain of ip-masq-agent is back";
    PortsScarce = 501, Warning, "ports towards a destination are running out";
    PortsExhausted = 502, Error, "every port towards a destination is taken";
    TableFilling = 503, Warning, "the mapping tables are filling";
    TableFull = 504, Error, "the mapping tables are full";
    EndsForRoom = 505, Warning, "mappings are ended for room";
    BeganOutside = 601, Info, "keeps the pod's address: it began outside";
    EarlierPolicy = 602, Info, "keeps the pod's address: an earlier policy bypassed it";
    Pickup = 603, Info, "a connection picked up in mid-stream";
    AgentGone = 701, Warning, "the agent does not run";
    SelfCheck = 702, Error, "the self-check failed";
    ApiSilent = 703, Warning, "the Kubernetes API is silent";
    EventsLost = 704, Warning, "events were lost";
    LogGap = 705, Warning, "the NAT log has a gap";
}

impl Code {
    /// Returns the code of a refusal.
    pub(crate) const fn of_drop(reason: DropReason) -> Option<Self> {
        match reason {
            DropReason::NoFreePort => Some(Self::PortsExhausted),
            DropReason::TableFull => Some(Self::TableFull),
            DropReason::NoSourceAddress => Some(Self::NoAddress),
            _ => None,
        }
    }

    /// Returns the first code that a message names.
    pub(crate) fn in_text(text: &str) -> Option<Self> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric());
        let mut codes = words.filter(|word| word.len() == 6 && word.starts_with("NDP"));
        codes.find_map(|word| word.parse().ok())
    }

    /// Returns what to do about a finding with this code, as the document says it.
    pub(crate) fn remedy(self) -> Option<&'static str> {
        let (_, remedy) = self.explanation().split_once("Do: ")?;
        Some(remedy.trim())
    }

    /// Returns the section of the document about the code, without its heading.
    pub(crate) fn explanation(self) -> &'static str {
        let heading = format!("## {self} ");
        let mut sections = DOCUMENT.split("\n## ").skip(1);
        let section = sections.find(|it| it.starts_with(&heading[3..]));
        let body = section.and_then(|it| it.split_once('\n'));
        body.map_or("", |(_, body)| body.trim())
    }
}

/// A code with its explanation, for programs.
#[derive(Debug, Serialize)]
struct Explained {
    code: Code,
    severity: Severity,
    text: &'static str,
    explanation: &'static str,
}

/// All codes that are asked for.
#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    codes: Vec<Explained>,
}

/// Returns the output of `netdp codes -o json`: one code, or all.
///
/// # Errors
/// Returns an error if something cannot be represented in JSON.
pub(crate) fn json(code: Option<Code>) -> serde_json::Result<String> {
    let codes = Code::ALL.iter().copied();
    let codes = codes.filter(|it| code.is_none_or(|code| code == *it));
    let document = Document {
        schema: 1,
        codes: codes
            .map(|code| Explained {
                code,
                severity: code.severity(),
                text: code.text(),
                explanation: code.explanation(),
            })
            .collect(),
    };
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NDP{}", *self as u16)
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Code {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = text.to_ascii_uppercase();
        let found = Self::ALL.iter().find(|code| code.to_string() == wanted);
        found
            .copied()
            .ok_or_else(|| "no such code; `netdp codes` lists them".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{Code, DOCUMENT};
    use serde_json::{Value, json};
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_document_has_a_section_for_each_code() {
        let headings: Vec<_> = DOCUMENT
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .collect();
        let codes = Code::ALL.iter();
        let expected: Vec<_> = codes
            .map(|code| format!("{code} {}", code.text()))
            .collect();
        assert_eq!(headings, expected);
        for code in Code::ALL {
            let told = code.explanation();
            let severity = format!("*{}.*", code.severity());
            assert!(told.starts_with(&severity), "{code}: {told}");
            assert!(told.len() > 80, "{code}: {told}");
        }
    }

    /// Adds the names of the codes that the sources below a directory give to something.
    fn given(directory: &Path, names: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                given(&path, names);
                continue;
            }
            let is_ours = path.ends_with("codes.rs") || path.to_string_lossy().contains("tests");
            if is_ours || path.extension().is_none_or(|it| it != "rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or("");
            for found in code.split("Code::").skip(1) {
                let name = found.split(|c: char| !c.is_alphanumeric());
                names.extend(name.take(1).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_code_is_given_to_something() {
        let mut names = BTreeSet::new();
        given(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut names,
        );
        // Given by reason.
        for reason in netdp_common::layout::DropReason::ALL {
            names.extend(Code::of_drop(*reason).map(|code| format!("{code:?}")));
        }
        for code in Code::ALL {
            assert!(names.contains(&format!("{code:?}")), "{code} {code:?}");
        }
    }

    #[test]
    fn a_code_is_found_in_a_message() {
        for (text, expected) in [
            ("x is ignored NDP104", Some(Code::UnknownKey)),
            ("NDP206: 10.2.0.0/16 does", Some(Code::NoWayBack)),
            ("a path (NDP305)", Some(Code::Detour)),
            ("NDP1011, NDP999, ndp101", None),
        ] {
            assert_eq!(Code::in_text(text), expected, "{text}");
        }
    }

    #[test]
    fn the_json_has_one_code_or_all() {
        let of = |code| -> Value { serde_json::from_str(&super::json(code).unwrap()).unwrap() };
        let one = of(Some(Code::NoUplink));
        assert_eq!(
            one,
            json!({"schema": 1, "codes": [{
                "code": "NDP301",
                "severity": "error",
                "text": Code::NoUplink.text(),
                "explanation": Code::NoUplink.explanation(),
            }]})
        );
        let all = of(None);
        assert_eq!(all["codes"].as_array().unwrap().len(), Code::ALL.len());
    }

    #[test]
    fn codes_are_read_in_any_case() {
        assert_eq!("ndp401".parse(), Ok(Code::OtherNat));
        assert!("NDP999".parse::<Code>().is_err());
        let mut sorted = Code::ALL.to_vec();
        sorted.sort_unstable();
        assert_eq!(sorted, Code::ALL);
    }
}
