//! Configurations inside Kubernetes objects, as `kubectl get -o yaml` prints them.

use std::rc::Rc;

use super::diagnostic::Diagnostic;
use super::document::{Document, Format};
use super::tree::{self, Node, Value};

/// ConfigMaps that are read out of a list, by name; and by label.
const NAMES: [&str; 2] = ["ip-masq-agent", "k8s-custom-iptables"];
const LABEL: &str = "netdp.io/config";

/// How the keys begin that Azure's agent takes.
const AZURE_PREFIX: &str = "ip-masq";

/// The documents inside `text`, if it is a ConfigMap or a list of objects; `None` if it is neither.
/// Of a list those ConfigMaps count that an agent reads by default. `name` is what findings call the
/// text; their lines are lines of the text wherever its lines are the documents' lines.
///
/// # Errors
/// An object without any document in it.
pub fn unwrap(name: &str, text: &str) -> Result<Option<Vec<Document>>, Diagnostic> {
    let Ok(Some(root)) = tree::parse(text) else {
        // What is wrong is told by whoever parses it for a configuration.
        return Ok(None);
    };
    let objects: Vec<&Node> = match kind(&root) {
        Some("ConfigMap") => vec![&root],
        Some("List" | "ConfigMapList") => items(&root).filter(|item| is_ours(item)).collect(),
        _ => return Ok(None),
    };
    let documents: Vec<_> = objects
        .into_iter()
        .flat_map(|object| documents(name, text, object))
        .collect();
    if documents.is_empty() {
        let message = "no configuration in it; expected a ConfigMap with a key config or nat.rules";
        return Err(Diagnostic::at(name, root.line, message));
    }
    Ok(Some(documents))
}

fn kind(object: &Node) -> Option<&str> {
    get(object, "apiVersion")?;
    string(get(object, "kind")?)
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
    let metadata = get(object, "metadata");
    let name = metadata
        .and_then(|metadata| get(metadata, "name"))
        .and_then(string);
    let labels = metadata.and_then(|metadata| get(metadata, "labels"));
    let of_kind = kind(object).is_none_or(|kind| kind == "ConfigMap");
    let named = name.is_some_and(|name| NAMES.contains(&name));
    of_kind && (named || labels.is_some_and(|labels| get(labels, LABEL).is_some()))
}

fn documents(name: &str, text: &str, object: &Node) -> Vec<Document> {
    let Some(Value::Map(data)) = get(object, "data").map(|data| &data.value) else {
        return Vec::new();
    };
    let entries = data.iter().filter_map(|(key, value)| {
        let key = string(key)?;
        let known = key == "config" || key.starts_with(AZURE_PREFIX);
        let format = Format::of(key);
        (known || format == Format::NatRules).then_some((key, value, format))
    });
    entries
        .filter_map(|(key, value, format)| Some((key, value, string(value)?, format)))
        .map(
            |(key, value, inner, format)| match in_place(text, value.line, inner) {
                Some(inner) => Document {
                    name: name.to_owned(),
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
