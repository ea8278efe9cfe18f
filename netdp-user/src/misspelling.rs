//! Suggestions for misspelled words.

/// Length in bytes above which a word is not compared: no misspelling is this long, and a
/// comparison costs the product of the lengths.
const MAX_LENGTH: usize = 64;

/// Returns the one of `names` that `text` most likely misspells; `None` if all are less similar
/// than `min_similarity` (Jaro-Winkler). Case-insensitive.
pub fn nearest<'a>(
    text: &str,
    names: impl IntoIterator<Item = &'a str>,
    min_similarity: f64,
) -> Option<&'a str> {
    if text.len() > MAX_LENGTH {
        return None;
    }
    let text = text.to_ascii_lowercase();
    names
        .into_iter()
        .map(|name| (name, name.to_ascii_lowercase()))
        .filter(|(_, lower)| strsim::jaro_winkler(&text, lower) >= min_similarity)
        .min_by_key(|(_, lower)| strsim::damerau_levenshtein(&text, lower))
        .map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_is_found_or_none() {
        let names = ["udp-replied", "udp-unreplied", "icmp"];
        assert_eq!(nearest("UDP_replied", names, 0.8), Some("udp-replied"));
        assert_eq!(nearest("imcp", names, 0.8), Some("icmp"));
        assert_eq!(nearest("sctp", names, 0.8), None);
        assert_eq!(nearest(&"udp-replied".repeat(9), names, 0.1), None);
    }
}
