//! Messages of the programs about refusals (netdp-ebpf/src/drop_log.rs), read again.

use netdp_common::layout::DropReason;

/// A message about a refused packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal<'a> {
    /// Address of the pod.
    pub(crate) from: &'a str,
    /// Destination.
    pub(crate) to: &'a str,
    /// Port of the destination, where the message has it.
    pub(crate) port: Option<u16>,
    /// The reason, if it is one that has a code.
    pub(crate) reason: Option<DropReason>,
}

impl<'a> Refusal<'a> {
    /// Reads a message; `None` if it is not about a refusal.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (from, rest) = text.strip_prefix("refused ")?.split_once(" to ")?;
        let (to, why) = rest.split_once(": ")?;
        let (to, port) = match to.split_once(" port ") {
            Some((to, port)) => (to, port.parse().ok()),
            None => (to, None),
        };
        let reason = match why {
            why if why.starts_with("every port") => Some(DropReason::NoFreePort),
            why if why.starts_with("the mapping tables") => Some(DropReason::TableFull),
            why if why.starts_with("the uplink has no") => Some(DropReason::NoSourceAddress),
            _ => None,
        };
        Some(Self {
            from,
            to,
            port,
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Refusal;
    use netdp_common::layout::DropReason;

    /// The programs' own texts, with one address for all arguments.
    fn messages() -> Vec<String> {
        let source = include_str!("../../../netdp-ebpf/src/drop_log.rs");
        let texts = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix('"'));
        let texts = texts.filter(|text| text.starts_with("refused"));
        let filled = texts.map(|text| {
            let text = text.trim_end_matches([',', '"']);
            text.replace("{:i}", "fd00:172::2").replace("{}", "443")
        });
        filled.collect()
    }

    #[test]
    fn every_message_of_the_programs_is_read() {
        let messages = messages();
        assert!(messages.len() >= 12, "{messages:?}");
        let mut reasons = Vec::new();
        for message in &messages {
            let refusal = Refusal::parse(message).unwrap();
            assert_eq!((refusal.from, refusal.to), ("fd00:172::2", "fd00:172::2"));
            assert_eq!(refusal.port.is_some(), message.contains("port 443"));
            reasons.extend(refusal.reason.map(DropReason::name));
        }
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons, ["no_free_port", "no_source_address", "table_full"]);
        assert_eq!(Refusal::parse("attached to eth0"), None);
    }
}
