//! Configurations inside Kubernetes objects: in the output of `kubectl get -o yaml`, `kubectl
//! kustomize` and `helm template`.

use std::rc::Rc;

use k8s_openapi::ByteString;

use super::diagnostic::{Diagnostic, quoted};
use super::document::{Document, Format};
use super::keys::{Keys, LABEL};
use super::yaml::{Node, Value};
use crate::upstream::{custom_iptables, masq_agent};

/// Names of ConfigMaps that are selected from several; others are selected by their label.
const NAMES: [&str; 2] = [masq_agent::NAME, custom_iptables::NAME];

/// Byte order mark, with which editors of other systems begin a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Maximum number of objects named in a message.
const NAMED: usize = 5;

/// Reports whether this is a Kubernetes object.
pub(super) fn is_object(root: &Node) -> bool {
    kind(root).is_some()
}

/// Reports whether `text` contains Kubernetes objects, so that its size is not that of a
/// configuration.
pub(crate) fn contains_objects(text: &str) -> bool {
    super::yaml::parse(text).is_ok_and(|roots| roots.iter().any(|root| is_object(root)))
}

/// Returns the documents inside `objects`, which are those of `outer`. A single ConfigMap is read
/// whatever its name; of several, and of lists, those that an agent reads by default. Line numbers
/// are those of `outer` wherever its lines are the documents' lines. Objects that are read, or left
/// out, are reported in `notes`.
///
/// # Errors
/// Returns an error if they contain no document, or one in `binaryData` can't be read.
pub(super) fn documents(
    outer: &Document,
    objects: &[Rc<Node>],
    notes: &mut Vec<Diagnostic>,
) -> Result<Vec<Document>, Diagnostic> {
    let name = &outer.name;
    let mut all: Vec<&Node> = Vec::new();
    let mut has_list = false;
    for object in objects {
        match kind(object) {
            Some("List" | "ConfigMapList") => {
                has_list = true;
                all.extend(items(object));
            }
            _ => all.push(object),
        }
    }
    let is_map = |object: &Node| kind(object).is_none_or(|kind| kind == "ConfigMap");
    let maps = all.iter().filter(|object| is_map(object)).count();
    let by_name = has_list || maps > 1;
    let mut found = Vec::new();
    let mut left_out = Vec::new();
    for object in all {
        let counts = is_map(object) && (!by_name || is_ours(object));
        let inner = if counts {
            values(outer, object)?
        } else {
            Vec::new()
        };
        if inner.is_empty() {
            left_out.push(object);
            continue;
        }
        let message = format!("the configuration in {} is read", describe(object));
        notes.push(Diagnostic::at(name, object.line, message));
        found.extend(inner);
    }
    if found.is_empty() {
        let names = NAMES.join(" or ");
        let which = if by_name {
            format!(", of the name {names} or with the label {LABEL}")
        } else {
            String::new()
        };
        let seen = match list(&left_out) {
            seen if seen.is_empty() => String::new(),
            seen => format!("; found {seen}"),
        };
        let message = format!(
            "no configuration in it; expected a ConfigMap with a key {} or {}{which}{seen}",
            masq_agent::KEY,
            custom_iptables::KEY
        );
        let line = objects.first().map_or(1, |object| object.line);
        return Err(Diagnostic::at(name, line, message));
    }
    if let Some(first) = left_out.first() {
        let message = format!("skipped, no configuration in: {}", list(&left_out));
        notes.push(Diagnostic::at(name, first.line, message));
    }
    Ok(found)
}

fn kind(object: &Node) -> Option<&str> {
    get(object, "apiVersion")?;
    string(get(object, "kind")?)
}

/// Describes the object by kind and name.
fn describe(object: &Node) -> String {
    let metadata = get(object, "metadata");
    let name = metadata.and_then(|it| get(it, "name")).and_then(string);
    let kind = kind(object).unwrap_or("ConfigMap");
    match name {
        Some(name) => format!("the {kind} {}", quoted(name)),
        None => format!("a {kind} without a name"),
    }
}

/// Describes the first objects, and the number of further ones.
fn list(objects: &[&Node]) -> String {
    let mut named: Vec<_> = objects.iter().take(NAMED).map(|it| describe(it)).collect();
    if let more @ 1.. = objects.len().saturating_sub(NAMED) {
        named.push(format!("{more} more"));
    }
    named.join(", ")
}

fn items(list: &Node) -> impl Iterator<Item = &Node> {
    let items = match get(list, "items").map(|items| &items.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    };
    items.iter().map(Rc::as_ref)
}

/// Reports whether an agent reads this ConfigMap by default.
fn is_ours(object: &Node) -> bool {
    let name = get(object, "metadata").and_then(|metadata| get(metadata, "name"));
    let name = name.and_then(string);
    name.is_some_and(|name| NAMES.contains(&name)) || is_labelled(object)
}

/// Reports whether it has the label that selects further ConfigMaps, with all their keys.
fn is_labelled(object: &Node) -> bool {
    let labels = get(object, "metadata").and_then(|metadata| get(metadata, "labels"));
    labels.is_some_and(|labels| get(labels, LABEL).is_some())
}

/// Returns the documents that are values of a ConfigMap in `outer`.
fn values(outer: &Document, object: &Node) -> Result<Vec<Document>, Diagnostic> {
    let metadata = get(object, "metadata");
    let name = metadata.and_then(|it| get(it, "name")).and_then(string);
    let keys = Keys::of(
        name.unwrap_or_default(),
        masq_agent::NAME,
        is_labelled(object),
    );
    let mut found = Vec::new();
    for (key, value, text) in entries(object, "data").filter(|(key, ..)| keys.count(key)) {
        found.push(in_text(outer, key, value, text));
    }
    for (key, value, text) in entries(object, "binaryData").filter(|(key, ..)| keys.count(key)) {
        found.push(in_base64(outer, key, value, text)?);
    }
    Ok(found)
}

/// Returns the keys of a field of an object, with their values and the text of these.
fn entries<'a>(
    object: &'a Node,
    field: &str,
) -> impl Iterator<Item = (&'a str, &'a Node, &'a str)> + use<'a> {
    let pairs = match get(object, field).map(|data| &data.value) {
        Some(Value::Map(pairs)) => pairs.as_slice(),
        _ => &[],
    };
    let entry = |(key, value): &'a (Rc<Node>, Rc<Node>)| {
        Some((string(key)?, value.as_ref(), string(value)?))
    };
    pairs.iter().filter_map(entry)
}

/// Returns the document of a key in `data`.
fn in_text(outer: &Document, key: &str, value: &Node, text: &str) -> Document {
    let format = Format::of(key);
    // Blank lines will come before the text.
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    match in_place(&outer.text, value.line, text) {
        Some(text) => Document {
            name: outer.name.clone(),
            text,
            format,
        },
        // Its lines are within one line here, as in JSON.
        None => Document {
            name: inner_name(outer, key, value),
            text: text.to_owned(),
            format,
        },
    }
}

/// Returns the document of a key in `binaryData`.
fn in_base64(
    outer: &Document,
    key: &str,
    value: &Node,
    text: &str,
) -> Result<Document, Diagnostic> {
    let bare: String = text.split_whitespace().collect();
    let bytes: Result<ByteString, _> = serde_json::from_value(bare.into());
    let bytes = bytes.map_err(|error| {
        let message = format!("{} in binaryData is not base64: {error}", quoted(key));
        Diagnostic::at(&outer.name, value.line, message)
    })?;
    let document = Document::from_bytes(inner_name(outer, key, value), bytes.0)?;
    Ok(Document {
        format: Format::of(key),
        ..document
    })
}

/// Returns the name of a document with line numbers of its own.
fn inner_name(outer: &Document, key: &str, value: &Node) -> String {
    format!("{}:{} ({key})", outer.name, value.line)
}

/// Returns `inner`, moved to its line in `outer`, so that its lines have the same numbers as there;
/// `None` if it is not contained line by line. A block's `line` is that of its first non-blank
/// line.
fn in_place(outer: &str, line: usize, inner: &str) -> Option<String> {
    let blank = inner.lines().take_while(|l| l.trim().is_empty()).count();
    let first = line.checked_sub(1 + blank)?;
    let mut theirs = outer.lines().skip(first);
    let bare = |l: &str| l.trim_start_matches(BYTE_ORDER_MARK).trim().to_owned();
    let same = |l: &str| {
        let their = theirs.next().map(str::trim);
        their.is_some_and(|their| bare(their) == bare(l))
    };
    inner
        .lines()
        .all(same)
        .then(|| format!("{}{inner}", "\n".repeat(first)))
}

fn get<'a>(node: &'a Node, name: &str) -> Option<&'a Node> {
    let Value::Map(pairs) = &node.value else {
        return None;
    };
    let named = pairs.iter().find(|(key, _)| string(key) == Some(name));
    named.map(|(_, value)| value.as_ref())
}

fn string(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Plain(text) | Value::Quoted(text) => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
}
