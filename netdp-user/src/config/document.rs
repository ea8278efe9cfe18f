//! The documents of a configuration, and the detection of their format.

use serde::{Deserialize, Serialize};

use super::diagnostic::Diagnostic;
use crate::upstream::custom_iptables;

/// Maximum size of a document, in bytes.
pub(crate) const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// Format of a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// ip-masq-agent's, in YAML or JSON, with netdp's own keys.
    #[default]
    MasqAgent,
    /// k8s-custom-iptables' `nat.rules`: CIDRs to masquerade, with white space between them.
    NatRules,
}

impl Format {
    /// Returns the format of the file `name`, or of the key `name` of a ConfigMap: those whose name
    /// is `nat.rules`, or ends in `.rules`, are NAT rules. Directories before the name do not
    /// matter.
    pub fn of(name: &str) -> Self {
        let last = name.rsplit('/').next().unwrap_or(name);
        if last == custom_iptables::KEY || last.ends_with(custom_iptables::SUFFIX) {
            Self::NatRules
        } else {
            Self::MasqAgent
        }
    }
}

/// A file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// Name in findings and origins, usually the path.
    pub name: String,
    /// Text of the whole document.
    pub text: String,
    /// Format of the text.
    #[serde(default)]
    pub format: Format,
}

impl Document {
    /// Creates a document from the bytes of a file, in the format determined by its name.
    ///
    /// # Errors
    /// Returns an error if there are more than [`MAX_DOCUMENT_BYTES`] bytes, or they are not UTF-8.
    pub fn from_bytes(name: String, bytes: Vec<u8>) -> Result<Self, Diagnostic> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            let message = "larger than 1 MiB, the limit of a document; split or shorten it";
            return Err(Diagnostic::whole_file(&name, message));
        }
        let format = Format::of(&name);
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { name, text, format }),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let before = error.as_bytes().iter().take(valid);
                let line = 1 + before.filter(|byte| **byte == b'\n').count();
                Err(Diagnostic::at(
                    &name,
                    line,
                    "not UTF-8; save the file as UTF-8",
                ))
            }
        }
    }
}
