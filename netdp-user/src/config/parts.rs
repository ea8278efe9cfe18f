//! The parts of a document that are parsed separately: its YAML documents, and the values of the
//! ConfigMaps in it.
//!
//! All readers share this code, so that `netdp config check` does not approve a document that
//! `netdp run` reads differently.

use std::borrow::Cow;
use std::rc::Rc;

use super::diagnostic::Diagnostic;
use super::document::{Document, Format, MAX_DOCUMENT_BYTES};
use super::manifest;
use super::yaml::{self, Node};

/// A part, with its name in findings: line numbers are its own.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub name: Cow<'a, str>,
    pub text: Text<'a>,
}

/// Contents of a part.
#[derive(Debug)]
pub(super) enum Text<'a> {
    /// ip-masq-agent's format. `None`: an empty document, which sets nothing.
    MasqAgent(Option<Rc<Node>>),
    /// Text in k8s-custom-iptables' format.
    NatRules(Cow<'a, str>),
}

/// Returns the parts of `document`, in their order. Errors are appended to `errors`, and facts that
/// its author may not expect to `notes`.
pub(super) fn parts<'a>(
    document: &'a Document,
    errors: &mut Vec<Diagnostic>,
    notes: &mut Vec<Diagnostic>,
) -> Vec<Part<'a>> {
    let name = document.name.as_str();
    let mut parts = Vec::new();
    let mut add = |text| {
        let name = Cow::Borrowed(name);
        parts.push(Part { name, text });
    };
    if document.format == Format::NatRules {
        add(Text::NatRules(Cow::Borrowed(document.text.as_str())));
        return parts;
    }
    let roots = match yaml::parse(&document.text) {
        Ok(roots) => roots,
        Err(error) => {
            errors.push(Diagnostic::at(name, error.line, error.message));
            Vec::new()
        }
    };
    let (objects, plain): (Vec<_>, Vec<_>) =
        roots.into_iter().partition(|it| manifest::is_object(it));
    if objects.is_empty() {
        if plain.is_empty() {
            add(Text::MasqAgent(None));
        }
        plain
            .into_iter()
            .for_each(|root| add(Text::MasqAgent(Some(root))));
        return parts;
    }
    let alone = plain.is_empty();
    plain
        .into_iter()
        .for_each(|root| add(Text::MasqAgent(Some(root))));
    match manifest::documents(document, &objects, notes) {
        Ok(inner) => inner
            .into_iter()
            .for_each(|it| parts.extend(inside(it, errors))),
        Err(error) if alone => errors.push(error),
        // The configuration is beside the objects.
        Err(_) => {}
    }
    parts
}

/// Returns the parts of a ConfigMap's value.
fn inside(value: Document, errors: &mut Vec<Diagnostic>) -> Vec<Part<'static>> {
    let name = value.name;
    // The lines before the value are blank.
    if value.text.trim_start_matches('\n').len() > MAX_DOCUMENT_BYTES {
        let message = "a value in it is larger than 1 MiB, which no ConfigMap may have; split it";
        errors.push(Diagnostic::whole_file(&name, message));
        return Vec::new();
    }
    let part = |text| Part {
        name: Cow::Owned(name.clone()),
        text,
    };
    if value.format == Format::NatRules {
        return vec![part(Text::NatRules(Cow::Owned(value.text)))];
    }
    match yaml::parse(&value.text) {
        Ok(roots) if roots.is_empty() => vec![part(Text::MasqAgent(None))],
        Ok(roots) => roots
            .into_iter()
            .map(|root| part(Text::MasqAgent(Some(root))))
            .collect(),
        Err(error) => {
            errors.push(Diagnostic::at(&name, error.line, error.message));
            Vec::new()
        }
    }
}
