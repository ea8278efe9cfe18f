//! The documents that a configuration is made of, and how their format is told.

use serde::{Deserialize, Serialize};

use super::diagnostic::Diagnostic;

/// The greatest size of a document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;

/// The key of k8s-custom-iptables' ConfigMap, which is the name of its file in a volume.
const NAT_RULES: &str = "nat.rules";

/// How a document is to be read.
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
    /// The format of the file `name`, or of the key `name` of a ConfigMap: those whose name is
    /// `nat.rules`, or ends in `.rules`, are NAT rules. Directories before the name do not matter.
    pub fn of(name: &str) -> Self {
        let last = name.rsplit('/').next().unwrap_or(name);
        if last == NAT_RULES || last.ends_with(".rules") {
            Self::NatRules
        } else {
            Self::MasqAgent
        }
    }
}

/// One file of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// How findings and origins call it, usually its path.
    pub name: String,
    /// The whole text.
    pub text: String,
    /// How the text is to be read.
    #[serde(default)]
    pub format: Format,
}

impl Document {
    /// A document of the bytes of a file, in the format that goes with its name.
    ///
    /// # Errors
    /// More than [`MAX_DOCUMENT_BYTES`] bytes, or bytes that are not UTF-8.
    pub fn from_bytes(name: String, bytes: Vec<u8>) -> Result<Self, Diagnostic> {
        if bytes.len() > MAX_DOCUMENT_BYTES {
            let message = "larger than 1 MiB, which no configuration is; split or shorten it";
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
