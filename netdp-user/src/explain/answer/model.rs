//! The answer to a question, as JSON has it.

use crate::codes::Code;
use serde::Serialize;
use std::net::IpAddr;

/// Version of the JSON's shape: fields are only added to it.
const SCHEMA: u32 = 1;

/// All answers.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Answers {
    schema: u32,
    /// True if an agent runs.
    pub(crate) agent_running: bool,
    /// Reasons for which the newest configuration was rejected; the answers are by the earlier one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) config_rejected: Vec<String>,
    /// One for each address of the destination.
    pub(crate) answers: Vec<Answer>,
}

impl Answers {
    /// Returns the output of `netdp explain -o json`.
    ///
    /// # Errors
    /// Returns an error if something cannot be represented in JSON.
    pub(crate) fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Collects answers.
    pub(crate) const fn new(
        agent_running: bool,
        config_rejected: Vec<String>,
        answers: Vec<Answer>,
    ) -> Self {
        Self {
            schema: SCHEMA,
            agent_running,
            config_rejected,
            answers,
        }
    }
}

/// Outcome for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// It leaves with the node's address.
    Masqueraded,
    /// The policy lets it keep its source.
    Bypassed,
    /// It keeps the pod's address as the answer of a flow that does.
    Reply,
    /// It is the node's own.
    Own,
    /// Another program translates it first.
    TranslatedFirst,
    /// It leaves by an interface that is no uplink.
    NoUplink,
    /// It does not leave the node.
    Stays,
    /// There is no route.
    NoRoute,
    /// It is of a kind that netdp leaves alone.
    OutOfScope,
    /// It can't be translated, and is let out.
    LetOut,
    /// It waits for the first fragment of its datagram.
    Held,
    /// A new flow that the node can't serve.
    Refused,
    /// It is dropped.
    Dropped,
}

/// The answer about one packet.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Answer {
    /// The answer in one line.
    pub(crate) headline: String,
    pub(crate) outcome: Outcome,
    /// False if it depends on what is not known of the packet.
    pub(crate) is_certain: bool,
    pub(crate) codes: Vec<Code>,
    /// Source, with its port if that is known.
    pub(crate) from: String,
    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pod: Option<String>,
    /// True if any pod was asked for, and `from` is one that may not exist.
    pub(crate) any_pod: bool,
    /// True if the source is none of the node's addresses.
    #[serde(skip)]
    pub(crate) is_pods: bool,
    /// Interface by which the packet comes to the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) came_by: Option<String>,
    /// Destination, with its port.
    pub(crate) to: String,
    /// Destination as the pod asks for it, if a service's proxy replaces it, or may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) asked_for: Option<String>,
    /// The line that says so.
    #[serde(skip)]
    pub(crate) service: Option<String>,
    /// IP protocol, by name or number.
    pub(crate) protocol: String,
    /// Source that the destination sees; absent if no packet reaches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seen_as: Option<IpAddr>,
    /// Source port that it sees, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seen_port: Option<u16>,
    /// Interface by which the packet leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) leaves_by: Option<String>,
    /// Name of the counter of drops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drop_reason: Option<&'static str>,
    pub(crate) steps: Vec<Step>,
    /// Facts that matter besides.
    pub(crate) notes: Vec<String>,
    /// Remedies, each a line.
    pub(crate) remedies: Vec<String>,
}

/// A step on the way of the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    pub(crate) step: &'static str,
    pub(crate) answer: String,
    pub(crate) why: String,
    /// Details: other findings of this step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) details: Vec<Detail>,
}

/// Something else that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Detail {
    /// Its relation to the answer, such as `masked`.
    pub(crate) label: &'static str,
    pub(crate) what: String,
    pub(crate) why: String,
}

impl Step {
    /// Makes a step without details.
    pub(crate) fn new(
        step: &'static str,
        answer: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self {
            step,
            answer: answer.into(),
            why: why.into(),
            details: Vec::new(),
        }
    }
}
