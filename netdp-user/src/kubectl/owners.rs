//! The nodes that have an address, for `kubectl netdp who`.

use super::find::{Agent, Agents, List};
use super::run::Kubectl;
use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

/// Exit statuses of `netdp who`, besides 0 for an answer.
const NOBODY: u8 = 1;
const UNKNOWN: u8 = 2;

/// Returns the address of `ADDR` or `ADDR:PORT`.
pub(crate) fn address(text: &str) -> Option<IpAddr> {
    let with_port = text.parse::<SocketAddr>().map(|at| at.ip());
    with_port.or_else(|_| text.parse()).ok()
}

/// Asks the agents of all nodes that have the address; of all nodes if no Node object names it, as with
/// addresses that only the node knows. Returns the exit status of `netdp who` for all of them.
///
/// # Errors
/// Returns an error if kubectl fails, or there is no agent.
pub(crate) fn ask(
    kubectl: &Kubectl,
    agents: &Agents,
    address: IpAddr,
    arguments: &[String],
) -> Result<ExitCode> {
    let all = agents.list(kubectl, None)?;
    ensure!(!all.is_empty(), "{}", agents.none(""));
    let nodes = kubectl.get::<List<Node>>(&["nodes"]);
    let nodes = nodes.map_or_else(|_| Vec::new(), |nodes| owners(&nodes.items, address));
    let (owning, others): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|agent| nodes.contains(&agent.node));
    let asked = if owning.is_empty() { others } else { owning };
    let codes = asked.iter().map(|agent| answer(kubectl, agent, arguments));
    Ok(ExitCode::from(summary(&codes.collect::<Result<Vec<_>>>()?)))
}

fn answer(kubectl: &Kubectl, agent: &Agent, arguments: &[String]) -> Result<Option<i32>> {
    eprintln!("netdp: asking {}", agent.node);
    kubectl.run(agent, arguments)
}

/// Returns one exit status for those of several nodes: an answer counts, then what can't be told.
fn summary(codes: &[Option<i32>]) -> u8 {
    match codes {
        codes if codes.contains(&Some(0)) => 0,
        codes if codes.iter().all(|code| *code == Some(i32::from(NOBODY))) => NOBODY,
        _ => UNKNOWN,
    }
}

/// Returns the names of the nodes with this address.
fn owners(nodes: &[Node], address: IpAddr) -> Vec<String> {
    let has = |node: &&Node| {
        let addresses = node.status.iter().flat_map(|status| &status.addresses);
        let mut addresses = addresses.flatten().filter_map(|it| it.address.parse().ok());
        addresses.any(|it: IpAddr| it == address)
    };
    let owning = nodes.iter().filter(has);
    owning
        .filter_map(|node| node.metadata.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{address, owners, summary};
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    #[test]
    fn the_nodes_with_an_address_are_asked() {
        let node = |name: &str, address: &str| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "status": {"addresses": [
                    {"type": "Hostname", "address": name},
                    {"type": "InternalIP", "address": address},
                ]},
            }))
            .unwrap()
        };
        let nodes = [node("node-a", "10.1.0.10"), node("node-b", "fd00::10")];
        let of = |text: &str| owners(&nodes, address(text).unwrap());
        assert_eq!(of("10.1.0.10:44216"), ["node-a"]);
        assert_eq!(of("[fd00::10]:44216"), ["node-b"]);
        assert_eq!(of("fd00::10"), ["node-b"]);
        assert!(of("10.1.0.11").is_empty());
        assert_eq!(address("node-a"), None);
    }

    #[test]
    fn one_answer_of_several_nodes_is_an_answer() {
        assert_eq!(summary(&[Some(1), Some(0)]), 0);
        assert_eq!(summary(&[Some(1), Some(1)]), 1);
        assert_eq!(summary(&[Some(1), Some(2)]), 2);
        assert_eq!(summary(&[Some(1), None]), 2);
    }
}
