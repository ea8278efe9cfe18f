//! A second line of defence: what looks like a credential is taken out of every part, although no part
//! reads any.

use std::ops::Range;

/// Stands for what was taken out.
const REMOVED: &str = "(removed)";

/// Words after which a credential comes: RFC 6750, and RFC 7617 after the header's name.
const BEARER: &str = "bearer";
const BASIC: [&str; 2] = ["authorization:", "basic"];

/// Parts of names whose value is a credential, where `=` or `:` follows.
const NAMED: [&str; 8] = [
    "password",
    "secret",
    "clientsecret",
    "passwd",
    "secret_key",
    "access_key",
    "api_key",
    "token",
];

/// Words before a string that was found instead of a configuration, which may be anything.
const QUOTED: &str = "found the string ";

/// Returns the text without tokens, passwords, private keys, and what errors quote of documents.
pub(super) fn without(text: &str) -> String {
    let mut unquoted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once(QUOTED) {
        unquoted.push_str(before);
        unquoted.push_str(QUOTED);
        unquoted.push_str(REMOVED);
        rest = after_string(from);
    }
    unquoted.push_str(rest);
    without_credentials(&unquoted)
}

/// Returns what follows a string in quotes, which may itself stand in a string of JSON.
fn after_string(text: &str) -> &str {
    let (end, escape) = match text.starts_with('\\') {
        true => ("\\\"", "\\\\"),
        false => ("\"", "\\"),
    };
    let Some(mut rest) = text.strip_prefix(end) else {
        return text;
    };
    loop {
        if let Some(after) = rest.strip_prefix(end) {
            return after;
        }
        let escaped = rest.strip_prefix(escape);
        let of = escaped.unwrap_or(rest);
        // An escaped quote or backslash has two characters in JSON.
        let is_json = escape.len() == 2;
        let of = of.strip_prefix('\\').filter(|_| is_json).unwrap_or(of);
        let mut left = of.chars();
        if left.next().is_none() {
            return "";
        }
        rest = left.as_str();
    }
}

fn without_credentials(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_key = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN ") && line.contains("PRIVATE KEY");
        if begins || in_key {
            in_key = !line.contains("-----END ");
            if begins {
                out.push_str(REMOVED);
                out.push('\n');
            }
            continue;
        }
        out.push_str(&of_line(line));
    }
    out
}

fn of_line(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let (mut follows, mut last) = (false, String::new());
    for word in line.split_inclusive(is_space) {
        let body = word.trim_end_matches(is_space);
        let space = &word[body.len()..];
        if body.is_empty() {
            out.push_str(space);
            continue;
        }
        let lower = body.to_ascii_lowercase();
        if follows || is_jwt(body) {
            out.push_str(REMOVED);
        } else if let Some(at) = named(&lower) {
            out.push_str(&body[..at]);
            if at < body.len() {
                out.push_str(REMOVED);
            }
        } else if let Some(user) = user_information(body) {
            out.push_str(&body[..user.start]);
            out.push_str(REMOVED);
            out.push_str(&body[user.end..]);
        } else {
            out.push_str(body);
        }
        let is_basic = [last.as_str(), lower.as_str()] == BASIC;
        follows = lower.ends_with(BEARER) || is_basic || named(&lower) == Some(body.len());
        last = lower;
        out.push_str(space);
    }
    out
}

const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// Reports a JSON Web Token, quoted or not: ServiceAccounts have such.
fn is_jwt(word: &str) -> bool {
    let Some(at) = word.find("eyJ") else {
        return false;
    };
    word[at..].matches('.').count() >= 2 && word.len() - at > 40
}

/// Returns the place of the value in `password=…`.
fn named(word: &str) -> Option<usize> {
    let at = word.find(['=', ':'])?;
    is_name(&word[..at]).then_some(at + 1)
}

/// Reports whether a name, with or without quotes, is that of a credential.
fn is_name(name: &str) -> bool {
    let name = name.trim_matches(['"', '\'', '\\', '{', ',']);
    NAMED.iter().any(|known| name.ends_with(known))
}

/// Returns the part of `scheme://user:password@host` from `user` to `password`.
fn user_information(word: &str) -> Option<Range<usize>> {
    let begin = word.find("://")? + 3;
    let rest = &word[begin..];
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let at = authority.rfind('@')?;
    authority[..at].contains(':').then_some(begin..begin + at)
}

#[cfg(test)]
mod tests {
    use super::without;

    #[test]
    fn what_looks_like_a_credential_is_taken_out() {
        let jwt = format!(
            "eyJhbGciOi{}.eyJpc3Mi{}.c2ln",
            "x".repeat(30),
            "y".repeat(30)
        );
        for (given, expected) in [
            (
                format!("Authorization: Bearer {jwt}\nnext"),
                "Authorization: Bearer (removed)\nnext",
            ),
            (format!("{{\"t\":\"{jwt}\"}}"), "(removed)"),
            (
                "db_password=hunter2 rest".into(),
                "db_password=(removed) rest",
            ),
            (
                "password: hunter2 rest\n".into(),
                "password: (removed) rest\n",
            ),
            (
                "{\"client_secret\": \"hunter2\", \"n\": 1}".into(),
                "{\"client_secret\": (removed) \"n\": 1}",
            ),
            (
                "see https://user:hunter2@example.com/x".into(),
                "see https://(removed)@example.com/x",
            ),
            (
                "Authorization: Basic aHVudGVyMg==".into(),
                "Authorization: Basic (removed)",
            ),
            (
                "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----\nb\n"
                    .into(),
                "a\n(removed)\nb\n",
            ),
        ] {
            assert_eq!(without(&given), expected);
        }
    }

    #[test]
    fn what_errors_quote_of_documents_is_taken_out() {
        for quoted in [
            "hunter2",
            "a \"quoted\" one",
            "back\\slash",
            "\\",
            "two\nlines",
        ] {
            let text = format!("expected a list, found the string {quoted:?} NDP101");
            let expected = "expected a list, found the string (removed) NDP101";
            assert_eq!(without(&text), expected, "{quoted:?}");
            let json = serde_json::json!({ "msg": text, "code": "NDP101" }).to_string();
            let expected = serde_json::json!({ "msg": expected, "code": "NDP101" }).to_string();
            assert_eq!(without(&json), expected, "{quoted:?}");
        }
        let cut = "found the string \"never ends";
        assert_eq!(without(cut), "found the string (removed)");
    }

    #[test]
    fn everything_else_stays() {
        let given = "{\n  \"passwords\": 1,\n  \"tokens\": \"x\"\n}\n -A POSTROUTING -s 10.0.0.0/8\n\
                     basic rules, the bearers\n";
        assert_eq!(without(given), given);
    }
}
