//! Parser for the rules that iptables-save prints and iptables-restore reads.

use ipnet::IpNet;
use std::borrow::Cow;
use std::iter::Peekable;
use std::net::{AddrParseError, IpAddr};
use std::str::CharIndices;

/// Options whose value may begin with anything: iptables-save leaves out the quotes of a text of
/// letters, digits, `-` and `_`.
const TEXT_OPTIONS: [&str; 4] = ["--comment", "--log-prefix", "--nflog-prefix", "--string"];

/// The options of a rule, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleOptions<'a> {
    words: Vec<Word<'a>>,
}

/// An option of a rule, with its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RuleOption<'r, 'a> {
    /// Name with its dashes.
    pub name: &'r str,
    /// True if a `!` precedes it.
    pub inverted: bool,
    values: &'r [Word<'a>],
}

impl<'a> RuleOptions<'a> {
    /// Parses a rule without its `-A CHAIN`.
    pub(crate) fn parse(text: &'a str) -> Self {
        Self { words: words(text) }
    }

    /// Iterates over the options.
    pub(crate) fn iter<'r>(&'r self) -> impl Iterator<Item = RuleOption<'r, 'a>> {
        let mut rest = self.words.as_slice();
        std::iter::from_fn(move || {
            let mut inverted = false;
            loop {
                let (first, others) = rest.split_first()?;
                if first.is_inversion() {
                    inverted = true;
                    rest = others;
                    continue;
                }
                let name = first.text.as_ref();
                let count = if TEXT_OPTIONS.contains(&name) {
                    others.len().min(1)
                } else {
                    let ends = |word: &Word<'_>| word.is_option() || word.is_inversion();
                    others.iter().position(ends).unwrap_or(others.len())
                };
                let (values, others) = others.split_at(count);
                rest = others;
                return Some(RuleOption {
                    name,
                    inverted,
                    values,
                });
            }
        })
    }

    /// Returns the target, or the chain that the rule jumps or goes to.
    pub(crate) fn target(&self) -> Option<&str> {
        let mut options = self.iter();
        let target = options.find(|option| matches!(option.name, "-j" | "-g"))?;
        Some(target.value())
    }

    /// Returns the destination if the rule selects packets by that alone, as far as addresses are
    /// concerned.
    pub(crate) fn destination(&self) -> Option<&str> {
        let mut addresses = self.iter().filter(|it| matches!(it.name, "-s" | "-d"));
        let destination = addresses.next()?;
        let alone = addresses.next().is_none();
        (alone && destination.name == "-d" && !destination.inverted).then(|| destination.value())
    }

    /// Reports whether the rule has a comment that begins like this.
    pub(crate) fn has_comment(&self, beginning: &str) -> bool {
        let mut options = self.iter();
        options.any(|option| option.name == "--comment" && option.value().starts_with(beginning))
    }
}

impl<'r> RuleOption<'r, '_> {
    /// Returns the first value; empty if there is none.
    pub(crate) fn value(&self) -> &'r str {
        self.values.first().map_or("", |word| word.text.as_ref())
    }

    /// Returns all values, with blanks between them.
    pub(crate) fn values(&self) -> String {
        let values: Vec<_> = self.values.iter().map(|word| word.text.as_ref()).collect();
        values.join(" ")
    }

    /// Reports whether the first value names a protocol, as iptables-save does: by name or number.
    pub(crate) fn is_protocol(&self, number: u8) -> bool {
        match self.value() {
            "tcp" => number == 6,
            "udp" => number == 17,
            "sctp" => number == 132,
            "icmp" => number == 1,
            "ipv6-icmp" | "icmpv6" => number == 58,
            other => other.parse() == Ok(number),
        }
    }

    /// Returns the first value as a prefix; `None` if it is neither that nor an address.
    pub(crate) fn net(&self) -> Option<IpNet> {
        parse_net(self.value()).ok()
    }
}

/// Parses a prefix, or an address as the prefix of that address alone.
pub(crate) fn parse_net(text: &str) -> Result<IpNet, AddrParseError> {
    match text.parse() {
        Ok(net) => Ok(net),
        Err(_) => text.parse::<IpAddr>().map(IpNet::from),
    }
}

/// A word of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word<'a> {
    /// The word without quotes and escapes.
    text: Cow<'a, str>,
    /// True if it has quotes, so that it is a value whatever it begins with.
    quoted: bool,
}

impl Word<'_> {
    fn is_option(&self) -> bool {
        !self.quoted && self.text.starts_with('-')
    }

    fn is_inversion(&self) -> bool {
        !self.quoted && self.text == "!"
    }
}

/// Splits a rule into words as iptables-restore does (`add_param_to_argv` of iptables 1.8.9,
/// xshared.c): blanks separate, quotes group, and a backslash within quotes escapes the next
/// character.
fn words(text: &str) -> Vec<Word<'_>> {
    let mut words = Vec::new();
    let mut characters = text.char_indices().peekable();
    loop {
        while characters.next_if(|(_, c)| is_blank(*c)).is_some() {}
        let Some(&(start, _)) = characters.peek() else {
            return words;
        };
        words.push(word(text, start, &mut characters));
    }
}

/// Reads the word of `text` that begins at `start`, where `characters` are.
fn word<'a>(text: &'a str, start: usize, characters: &mut Peekable<CharIndices<'_>>) -> Word<'a> {
    let mut end = start;
    while let Some((at, c)) = characters.next_if(|(_, c)| !is_blank(*c) && *c != '"') {
        end = at + c.len_utf8();
    }
    let plain = text.get(start..end).unwrap_or_default();
    if characters.next_if(|(_, c)| *c == '"').is_none() {
        return Word {
            text: plain.into(),
            quoted: false,
        };
    }
    let mut whole = plain.to_owned();
    // The closing quote ends the word.
    while let Some((_, c)) = characters.next() {
        match c {
            '"' => break,
            '\\' => whole.extend(characters.next().map(|(_, c)| c)),
            c => whole.push(c),
        }
    }
    Word {
        text: whole.into(),
        quoted: true,
    }
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n')
}

#[cfg(test)]
mod tests {
    use super::{RuleOptions, parse_net, words};
    use proptest::prelude::*;

    /// Returns the words of a rule; `"` precedes those with quotes.
    fn split(text: &str) -> Vec<String> {
        let marked = |word: super::Word<'_>| {
            let mark = if word.quoted { "\"" } else { "" };
            format!("{mark}{}", word.text)
        };
        words(text).into_iter().map(marked).collect()
    }

    /// Returns the options of a rule: `!`, name, values.
    fn options(text: &str) -> Vec<(bool, String, String)> {
        let rule = RuleOptions::parse(text);
        rule.iter()
            .map(|option| (option.inverted, option.name.to_owned(), option.values()))
            .collect()
    }

    #[test]
    fn blanks_separate_words_and_quotes_group_them() {
        assert_eq!(split(""), [""; 0]);
        assert_eq!(split("  -j \t X "), ["-j", "X"]);
        assert_eq!(
            split(r#"--comment "two  words" -j X"#),
            ["--comment", "\"two  words", "-j", "X"]
        );
        assert_eq!(
            split(r#"--comment "" -j X"#),
            ["--comment", "\"", "-j", "X"]
        );
        assert_eq!(split(r#""-j X""#), ["\"-j X"]);
        assert_eq!(
            split("\u{e9} \"\u{e9} \u{e9}\""),
            ["\u{e9}", "\"\u{e9} \u{e9}"]
        );
    }

    #[test]
    fn a_backslash_escapes_within_quotes_only() {
        assert_eq!(split(r#""a \"b\" \\ \'c\'""#), [r#""a "b" \ 'c'"#]);
        assert_eq!(split(r"-o a\b"), ["-o", r"a\b"]);
        // A text that was cut off.
        assert_eq!(split(r#"-j "X"#), ["-j", "\"X"]);
        assert_eq!(split(r#""X\"#), ["\"X"]);
    }

    #[test]
    fn options_have_values_and_inversions() {
        let text = r#"! -s 10.0.0.0/8 -p tcp -m tcp ! --tcp-flags FIN,SYN SYN -m comment --comment "! -d x -j Y" -j X"#;
        let option = |inverted, name: &str, values: &str| (inverted, name.into(), values.into());
        assert_eq!(
            options(text),
            [
                option(true, "-s", "10.0.0.0/8"),
                option(false, "-p", "tcp"),
                option(false, "-m", "tcp"),
                option(true, "--tcp-flags", "FIN,SYN SYN"),
                option(false, "-m", "comment"),
                option(false, "--comment", "! -d x -j Y"),
                option(false, "-j", "X"),
            ]
        );
        // Without quotes, as iptables-save prints such a comment.
        assert_eq!(
            options("--comment -j -j X"),
            [option(false, "--comment", "-j"), option(false, "-j", "X")]
        );
        assert_eq!(options("--comment"), [option(false, "--comment", "")]);
        assert_eq!(options("!"), []);
    }

    #[test]
    fn what_a_rule_is_about_is_found() {
        let rule = RuleOptions::parse(
            r#"-d 10.0.0.0/8 -m comment --comment "custom-iptables-1: \"x\" -j Y" -j MASQUERADE --random-fully"#,
        );
        assert_eq!(rule.target(), Some("MASQUERADE"));
        assert_eq!(rule.destination(), Some("10.0.0.0/8"));
        assert!(rule.has_comment("custom-iptables-") && !rule.has_comment("iptables-"));
        assert_eq!(RuleOptions::parse("-g X").target(), Some("X"));
        for text in [
            "-j X",
            "! -d 10.0.0.0/8 -j X",
            "-s 10.0.0.0/8 -j X",
            "-s 10.0.0.0/8 -d 10.0.0.0/8 -j X",
            r#"-m comment --comment "-d 10.0.0.0/8" -j X"#,
        ] {
            assert_eq!(RuleOptions::parse(text).destination(), None, "{text}");
        }
    }

    #[test]
    fn an_address_is_a_prefix_of_its_own() {
        assert_eq!(parse_net("10.0.0.1"), Ok("10.0.0.1/32".parse().unwrap()));
        assert_eq!(parse_net("fd00::/8"), Ok("fd00::/8".parse().unwrap()));
        assert!(parse_net("x").is_err());
    }

    proptest! {
        /// Quotes a text as iptables-save does (`xtables_save_string`, libxtables/xtables.c).
        #[test]
        fn a_quoted_text_is_read_as_it_was(text in "[ -~\u{e9}]{0,20}") {
            let escape = |c: char| match c {
                '"' | '\\' | '\'' => format!("\\{c}"),
                c => c.to_string(),
            };
            let quoted: String = text.chars().map(escape).collect();
            let rule = format!("-m comment --comment \"{quoted}\" -j X");
            let rule = RuleOptions::parse(&rule);
            let comment = rule.iter().find(|option| option.name == "--comment");
            prop_assert_eq!(comment.map(|option| option.value()), Some(text.as_str()));
            prop_assert_eq!(rule.target(), Some("X"));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "[-!\"\\\\ \ta-z\u{e9}]{0,40}") {
            let rule = RuleOptions::parse(&text);
            let _ = (rule.iter().count(), rule.target(), rule.destination());
        }
    }
}
