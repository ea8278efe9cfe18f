//! Where ip-masq-agent would make another policy of the same documents.

use super::diagnostic::Diagnostic;
use super::key::Key;
use super::tree::{self, Value};
use super::{Document, Format};

/// What ip-masq-agent would do otherwise with `docs`, which netdp accepts. Findings for someone who
/// compares the two; nothing is wrong with any of them.
pub fn differences(docs: &[Document]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let agent = docs.iter().filter(|doc| doc.format == Format::MasqAgent);
    for (index, doc) in agent.enumerate() {
        let Ok(Some(root)) = tree::parse(&doc.text) else {
            continue;
        };
        if index > 0 {
            let message = "ip-masq-agent reads one document only: this one has no say there";
            found.push(Diagnostic::at(&doc.name, root.line, message));
        }
        let Value::Map(pairs) = &root.value else {
            continue;
        };
        for (key, value) in pairs {
            let (Value::Plain(text) | Value::Quoted(text)) = &key.value else {
                continue;
            };
            let message = match Key::find(text) {
                Some(Key::MasqueradeCidrs) => {
                    "ip-masq-agent ignores masqueradeCIDRs: what they name is bypassed there if \
                     a nonMasqueradeCIDR contains it"
                }
                Some(Key::ResyncInterval) if is_never_resting(&value.value) => {
                    "ip-masq-agent would never rest with this interval"
                }
                _ => continue,
            };
            found.push(Diagnostic::at(&doc.name, key.line, message));
        }
    }
    found
}

/// Whether an interval is zero or negative.
fn is_never_resting(value: &Value) -> bool {
    let (Value::Plain(text) | Value::Quoted(text)) = value else {
        return false;
    };
    super::duration::parse(text).is_ok_and(|nanoseconds| nanoseconds <= 0)
}
