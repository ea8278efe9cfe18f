//! Differences from the policy that ip-masq-agent would derive from the same documents.

use super::Document;
use super::diagnostic::Diagnostic;
use super::key::Key;
use super::parts::{self, Text};
use super::yaml::Value;

/// Returns the differences in ip-masq-agent's treatment of `docs`, which netdp accepts. The
/// findings help to compare the two; none of them is an error.
pub(crate) fn differences(docs: &[Document]) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let unread = (&mut Vec::new(), &mut Vec::new());
    let parts = docs
        .iter()
        .flat_map(|doc| parts::parts(doc, unread.0, unread.1));
    let agent = parts.filter_map(|part| match part.text {
        Text::MasqAgent(root) => Some((part.name, root?)),
        Text::NatRules(_) => None,
    });
    for (index, (name, root)) in agent.enumerate() {
        if index > 0 {
            let message = "ip-masq-agent reads one document only and ignores this one";
            found.push(Diagnostic::at(&name, root.line, message));
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
                    "ip-masq-agent ignores masqueradeCIDRs: it bypasses those that a \
                     nonMasqueradeCIDR contains"
                }
                Some(Key::AutoNonMasquerade) if !is_empty(&value.value) => {
                    "ip-masq-agent ignores autoNonMasquerade: it masquerades what is sent to pods \
                     and services unless a nonMasqueradeCIDR contains them"
                }
                Some(Key::ResyncInterval) if is_not_positive(&value.value) => {
                    "ip-masq-agent would loop without a pause with this interval"
                }
                _ => continue,
            };
            found.push(Diagnostic::at(&name, key.line, message));
        }
    }
    found
}

/// Reports whether a value is an empty list, or null.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::List(items) => items.is_empty(),
        Value::Plain(text) => text.is_empty(),
        Value::Quoted(_) | Value::Map(_) => false,
    }
}

/// Reports whether an interval is zero or negative, so that the agent would never pause.
fn is_not_positive(value: &Value) -> bool {
    let (Value::Plain(text) | Value::Quoted(text)) = value else {
        return false;
    };
    super::duration::parse(text).is_ok_and(|nanoseconds| nanoseconds <= 0)
}
