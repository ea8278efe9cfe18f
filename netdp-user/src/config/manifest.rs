//! Configurations inside Kubernetes objects: as `kubectl get -o yaml`, `kubectl kustomize` and `helm
//! template` print them.

use std::rc::Rc;

use super::diagnostic::{Diagnostic, quoted};
use super::document::{Document, Format};
use super::tree::{Node, Value};

/// ConfigMaps that are read out of several, by name; and by label.
const NAMES: [&str; 2] = ["ip-masq-agent", "k8s-custom-iptables"];
const LABEL: &str = "netdp.io/config";

/// How the keys begin that Azure's agent takes.
const AZURE_PREFIX: &str = "ip-masq";

/// How many objects a message names.
const NAMED: usize = 5;

/// Whether this is a Kubernetes object.
pub(super) fn is_object(root: &Node) -> bool {
    kind(root).is_some()
}

/// Whether `text` holds Kubernetes objects, so that its size is not that of a configuration.
pub fn holds_objects(text: &str) -> bool {
    super::tree::parse(text).is_ok_and(|roots| roots.iter().any(|root| is_object(root)))
}

/// The documents inside `objects`, which are those of `outer`. A ConfigMap that is alone counts
/// whatever its name; of several, and of lists, those count that an agent reads by default. Lines
/// are lines of `outer` wherever its lines are the documents' lines. What counts, and what is left
/// out, goes to `notes`.
///
/// # Errors
/// There is no document in them.
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
            values(outer, object)
        } else {
            Vec::new()
        };
        if inner.is_empty() {
            left_out.push(object);
            continue;
        }
        let message = format!("the configuration in {} is read", described(object));
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
            "no configuration in it; expected a ConfigMap with a key config or nat.rules{which}{seen}"
        );
        let line = objects.first().map_or(1, |object| object.line);
        return Err(Diagnostic::at(name, line, message));
    }
    if let Some(first) = left_out.first() {
        let message = format!("no configuration, and left out: {}", list(&left_out));
        notes.push(Diagnostic::at(name, first.line, message));
    }
    Ok(found)
}

fn kind(object: &Node) -> Option<&str> {
    get(object, "apiVersion")?;
    string(get(object, "kind")?)
}

/// The object in words: its kind and name.
fn described(object: &Node) -> String {
    let metadata = get(object, "metadata");
    let name = metadata.and_then(|it| get(it, "name")).and_then(string);
    let kind = kind(object).unwrap_or("ConfigMap");
    match name {
        Some(name) => format!("the {kind} {}", quoted(name)),
        None => format!("a {kind} without a name"),
    }
}

/// The first of them in words, and how many more there are.
fn list(objects: &[&Node]) -> String {
    let mut named: Vec<_> = objects.iter().take(NAMED).map(|it| described(it)).collect();
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

/// Whether a ConfigMap is one that an agent reads by default.
fn is_ours(object: &Node) -> bool {
    let name = get(object, "metadata").and_then(|metadata| get(metadata, "name"));
    let name = name.and_then(string);
    name.is_some_and(|name| NAMES.contains(&name)) || is_labelled(object)
}

/// Whether it has the label by which further ConfigMaps count, with all their keys.
fn is_labelled(object: &Node) -> bool {
    let labels = get(object, "metadata").and_then(|metadata| get(metadata, "labels"));
    labels.is_some_and(|labels| get(labels, LABEL).is_some())
}

/// The documents that are values of a ConfigMap in `outer`.
fn values(outer: &Document, object: &Node) -> Vec<Document> {
    let (name, text) = (&outer.name, &outer.text);
    let Some(Value::Map(data)) = get(object, "data").map(|data| &data.value) else {
        return Vec::new();
    };
    let all = is_labelled(object);
    let entries = data.iter().filter_map(|(key, value)| {
        let key = string(key)?;
        let known = all || key == "config" || key.starts_with(AZURE_PREFIX);
        let format = Format::of(key);
        (known || format == Format::NatRules).then_some((key, value, format))
    });
    entries
        .filter_map(|(key, value, format)| Some((key, value, string(value)?, format)))
        .map(
            |(key, value, inner, format)| match in_place(text, value.line, inner) {
                Some(inner) => Document {
                    name: name.clone(),
                    text: inner,
                    format,
                },
                // Its lines are within one line here, as in JSON.
                None => Document {
                    name: format!("{name}:{} ({key})", value.line),
                    text: inner.to_owned(),
                    format,
                },
            },
        )
        .collect()
}

/// `inner`, moved to the line where it stands in `outer`, so that its lines have the numbers they
/// have there; `None` if it does not stand there line by line. A block's `line` is that of its first
/// line that is not blank.
fn in_place(outer: &str, line: usize, inner: &str) -> Option<String> {
    let blank = inner.lines().take_while(|l| l.trim().is_empty()).count();
    let first = line.checked_sub(1 + blank)?;
    let mut theirs = outer.lines().skip(first);
    let same = |l: &str| theirs.next().is_some_and(|their| their.trim() == l.trim());
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
