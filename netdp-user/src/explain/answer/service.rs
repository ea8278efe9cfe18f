//! Services: a connection to one is explained for each of its endpoints.

use super::ask::Case;
use super::model::{Detail, Step};
use super::node::Node;
use crate::foreign::{self, Connection, Service};

/// The most endpoints of one service that are explained.
const EXPLAINED: usize = 8;

/// The service by which a packet came to its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Via {
    /// Destination as the pod asks for it.
    pub(super) asked_for: String,
    /// Likely author of the rules.
    owner: &'static str,
    /// Name of the service, if it is known.
    name: Option<String>,
    /// Number of its endpoints.
    endpoints: usize,
    /// True if the author of the rules has marked the packet, to masquerade it itself.
    pub(super) is_marked: bool,
}

/// Returns the cases that a case stands for: those of the endpoints if its destination is a service's,
/// else itself.
pub(super) fn expand(node: &Node<'_>, case: &Case) -> Vec<Case> {
    let found = match case.packet {
        Some(_) => None,
        None => foreign::service(&Connection {
            src: case.src,
            dst: (case.dst, case.dst_port).into(),
            protocol: case.protocol,
            local: &node.local(),
        }),
    };
    let Some(service) = found else {
        return vec![case.clone()];
    };
    let Service {
        owner,
        name,
        endpoints,
    } = service;
    let all = endpoints.len();
    let each = endpoints.into_iter().take(EXPLAINED).map(|end| Case {
        dst: end.to.ip(),
        dst_port: end.to.port(),
        service: Some(Via {
            asked_for: case.to(),
            owner,
            name: name.clone(),
            endpoints: all,
            is_marked: end.is_marked,
        }),
        ..case.clone()
    });
    each.collect()
}

impl Via {
    /// Returns the beginning of the headline.
    pub(super) fn headline(&self) -> String {
        format!("{} → ", self.asked_for)
    }

    /// Makes the step.
    pub(super) fn step(&self, case: &Case) -> Step {
        let name = self.name.as_deref().unwrap_or("a service");
        let which = match self.endpoints {
            1 => "its only endpoint".to_owned(),
            many => format!("one of its {many} endpoints"),
        };
        let (asked_for, owner) = (&self.asked_for, self.owner);
        let why =
            format!("{asked_for} is {name}: {owner} sends it to {which} before netdp sees it");
        let mut step = Step::new("service", case.to(), why);
        if self.is_marked {
            step.details.push(Detail {
                label: "marked",
                what: String::new(),
                why: format!("{owner} masquerades it itself where it leaves"),
            });
        }
        if self.endpoints > EXPLAINED {
            step.details.push(Detail {
                label: "more",
                what: String::new(),
                why: format!("the first {EXPLAINED} endpoints are explained"),
            });
        }
        step
    }
}
