//! Conversion of a file's tree to typed values.

use std::collections::{HashMap, hash_map};
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use ipnet::IpNet;

use crate::codes::Code;

use super::auto::AutoKinds;
use super::cidr;
use super::diagnostic::{Diagnostic, quoted};
use super::key::{self, Key};
use super::yaml::{Node, Value};
use super::{DEFAULT_CIDR_LIMIT, Options};

/// Typed contents of one file. Absent settings are `None` or empty.
#[derive(Debug, Default)]
pub(super) struct FileConfig {
    /// `None`: the key is absent. The list may be empty.
    pub non_masquerade: Option<List>,
    pub masquerade: Option<List>,
    pub masq_link_local: Option<Setting<bool>>,
    pub masq_link_local_ipv6: Option<Setting<bool>>,
    pub resync_interval: Option<Setting<Duration>>,
    pub auto: Option<Setting<AutoKinds>>,
    /// Entries of a `nat.rules`: masqueraded whatever the other lists contain.
    pub nat_rules: Vec<Entry>,
}

/// A value and the line of its key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting<T> {
    pub value: T,
    pub line: usize,
}

/// A list of CIDRs.
#[derive(Debug)]
pub(super) struct List {
    /// Line of its key.
    pub line: usize,
    /// Number of entries, including repeated and invalid ones.
    written: usize,
    /// Distinct entries, in their order.
    pub entries: Vec<Entry>,
}

/// Name of a list item in findings; formatted only when it is needed.
#[derive(Debug, Clone, Copy)]
struct ItemPath {
    key: Key,
    index: usize,
}

impl fmt::Display for ItemPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.key.name(), self.index)
    }
}

/// A CIDR and its line.
#[derive(Debug)]
pub(super) struct Entry {
    pub prefix: IpNet,
    pub line: usize,
}

/// Parses the YAML document with this root node in `file`, and appends errors and warnings to
/// `errors` and `warnings`. Valid parts are returned in spite of errors, so that later checks find
/// theirs too.
pub(super) fn parse(
    file: &str,
    root: &Node,
    options: &Options,
    errors: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> FileConfig {
    let Value::Map(pairs) = &root.value else {
        let found = root.describe();
        let message =
            format!("expected a mapping such as \"nonMasqueradeCIDRs: […]\", found {found}");
        errors.push(Diagnostic::at(file, root.line, message));
        return FileConfig::default();
    };
    let mut reader = Reader {
        file,
        options,
        errors,
        warnings,
    };
    let mut config = FileConfig::default();
    let mut limit = Some(DEFAULT_CIDR_LIMIT);
    for (key, line, value) in reader.known_keys(pairs) {
        match key {
            Key::NonMasqueradeCidrs => config.non_masquerade = reader.list(key, line, value),
            Key::MasqueradeCidrs => config.masquerade = reader.list(key, line, value),
            Key::MasqLinkLocal => config.masq_link_local = reader.boolean(key, line, value),
            Key::MasqLinkLocalIpv6 => {
                config.masq_link_local_ipv6 = reader.boolean(key, line, value);
            }
            Key::ResyncInterval => {
                let value = reader.interval(value);
                config.resync_interval = value.map(|value| Setting { value, line });
            }
            Key::CidrLimit => limit = reader.limit(line, value),
            Key::AutoNonMasquerade => config.auto = reader.kinds(line, value),
        }
    }
    if let Some(limit) = limit {
        reader.check_limit(limit, &config);
    }
    config
}

/// Reader of the values of one file, which collects errors and warnings.
pub(super) struct Reader<'a> {
    file: &'a str,
    options: &'a Options,
    errors: &'a mut Vec<Diagnostic>,
    warnings: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    pub(crate) fn error(&mut self, line: usize, message: String) {
        self.errors.push(Diagnostic::at(self.file, line, message));
    }

    pub(crate) fn warn(&mut self, line: usize, message: String) {
        self.warnings.push(Diagnostic::at(self.file, line, message));
    }

    pub(crate) fn wrong_type(&mut self, key: Key, line: usize, expected: &str, value: &Node) {
        let found = value.describe();
        self.error(
            line,
            format!("{}: expected {expected}, found {found}", key.name()),
        );
    }

    /// Returns the known keys with their lines, and reports all others.
    fn known_keys<'n>(&mut self, pairs: &'n [(Rc<Node>, Rc<Node>)]) -> Vec<(Key, usize, &'n Node)> {
        let mut known: Vec<(Key, usize, &Node)> = Vec::new();
        let mut unknown: HashMap<&str, usize> = HashMap::new();
        for (key, value) in pairs {
            let line = key.line;
            let (Value::Plain(text) | Value::Quoted(text)) = &key.value else {
                self.error(line, format!("expected a key, found {}", key.describe()));
                continue;
            };
            if text == "<<" {
                // Treated as an unknown key, it would silently lose the merged values.
                self.error(line, "<<: merge keys are not supported".to_owned());
                continue;
            }
            let first = match Key::find(text) {
                Some(key) => match known.iter().find(|(other, ..)| *other == key) {
                    Some((_, first, _)) => Some(*first),
                    None => {
                        known.push((key, line, value));
                        continue;
                    }
                },
                None => unknown.insert(text, line),
            };
            match first {
                Some(first) => self.error(
                    line,
                    format!(
                        "the key {} is already set in line {first}; keep one of the two",
                        quoted(text)
                    ),
                ),
                None => {
                    let warning = Diagnostic::at(self.file, line, key::unknown(text));
                    self.warnings.push(warning.with_code(Code::UnknownKey));
                }
            }
        }
        known
    }

    fn list(&mut self, key: Key, line: usize, value: &Node) -> Option<List> {
        let Value::List(items) = &value.value else {
            self.no_list(key, line, value);
            return None;
        };
        let mut entries: Vec<Entry> = Vec::with_capacity(items.len());
        let mut lines: HashMap<IpNet, usize> = HashMap::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = ItemPath { key, index };
            let Some(prefix) = self.entry(path, item) else {
                continue;
            };
            match lines.entry(prefix) {
                hash_map::Entry::Occupied(first) => self.warn(
                    item.line,
                    format!("{path}: {prefix} is already listed in line {}", first.get()),
                ),
                hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(item.line);
                    entries.push(Entry {
                        prefix,
                        line: item.line,
                    });
                }
            }
        }
        Some(List {
            line,
            written: items.len(),
            entries,
        })
    }

    fn no_list(&mut self, key: Key, line: usize, value: &Node) {
        match key {
            Key::NonMasqueradeCidrs if value.is_null() => self.error(
                line,
                format!(
                    "{} is null; ip-masq-agent would masquerade everything; write [] for that or \
                     remove the key for the defaults",
                    key.name()
                ),
            ),
            _ if value.is_null() => {
                self.warn(
                    line,
                    format!("{} is null, which means the same as []", key.name()),
                );
            }
            _ => self.wrong_type(key, value.line, "a list of CIDRs", value),
        }
    }

    fn entry(&mut self, path: ItemPath, item: &Node) -> Option<IpNet> {
        let text = match &item.value {
            _ if item.is_null() => {
                let problem = cidr::CidrError::Blank;
                self.error(item.line, format!("{path}: the entry {problem}"));
                return None;
            }
            Value::Plain(text) if !item.is_number() && item.as_bool().is_none() => text,
            Value::Quoted(text) => text,
            _ => {
                let found = item.describe();
                let hint = if ends_in_colon(item) {
                    "; an IPv6 address that ends in a colon must be quoted"
                } else {
                    ""
                };
                self.error(
                    item.line,
                    format!("{path}: expected a CIDR, found {found}{hint}"),
                );
                return None;
            }
        };
        let prefix = match cidr::parse(text) {
            Ok(prefix) => prefix,
            Err(problem) => {
                self.error(item.line, format!("{path}: {} {problem}", quoted(text)));
                return None;
            }
        };
        if matches!(prefix, IpNet::V6(_)) && !self.options.enable_ipv6 {
            self.error(item.line, format!("{path}: {}", ipv6_is_off(prefix)));
            return None;
        }
        Some(prefix)
    }

    fn check_limit(&mut self, limit: usize, config: &FileConfig) {
        let lists = || {
            [&config.non_masquerade, &config.masquerade]
                .into_iter()
                .flatten()
        };
        let written: usize = lists().map(|list| list.written).sum();
        if let Some(line) = lists().map(|list| list.line).min()
            && written > limit
        {
            let message = format!(
                "{written} CIDRs are listed, but cidrLimit allows {limit} in one file; raise \
                 cidrLimit or remove entries"
            );
            self.error(line, message);
        }
    }
}

/// Returns the message for a prefix of the disabled family.
pub(super) fn ipv6_is_off(prefix: IpNet) -> String {
    format!("{prefix} is IPv6, which is off; pass --enable-ipv6 or remove the entry")
}

/// Reports whether `item` is the result of an unquoted `fd00::` in YAML, a mapping from `fd00:` to
/// null.
fn ends_in_colon(item: &Node) -> bool {
    match &item.value {
        Value::Map(pairs) => matches!(
            pairs.as_slice(),
            [(key, value)] if value.is_null() && matches!(&key.value, Value::Plain(text) if text.contains(':'))
        ),
        _ => false,
    }
}
