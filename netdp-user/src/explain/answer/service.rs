//! Services: a connection to one is explained for each of its endpoints.

use super::ask::Case;
use super::model::{Detail, Step};
use super::node::Node;
use super::route;
use crate::datapath::name_of;
use crate::foreign::{self, Connection, Service};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

/// The most endpoints of one service that are explained, of those that were found here.
const EXPLAINED: usize = 8;

/// Owner of what nobody knows of but that it works.
const SOME_PROXY: &str = "kube-proxy or its like";

/// A Service whose endpoints were found elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    /// Its name, as messages have it: `namespace/name:port`.
    name: String,
    /// Its address, as pods ask for it.
    at: SocketAddr,
}

impl Given {
    /// Parses `NAME=ADDRESS:PORT`.
    ///
    /// # Errors
    /// Returns an error for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once('=').filter(|(name, _)| !name.is_empty());
        let (name, at) = parts.ok_or("it is not NAME=ADDRESS:PORT")?;
        let at = at.parse().map_err(|_| "no ADDRESS:PORT follows `=`")?;
        Ok(Self {
            name: name.to_owned(),
            at,
        })
    }

    /// Makes the destinations endpoints of these services, each of that of its family.
    pub(crate) fn set(services: &[Self], cases: &mut [Case]) {
        for Self { name, at } in services {
            let mut of_family: Vec<_> = (cases.iter_mut())
                .filter(|case| case.dst.is_ipv4() == at.is_ipv4())
                .collect();
            let endpoints = of_family.len();
            for case in &mut of_family {
                case.service = Some(Via {
                    asked_for: at.to_string(),
                    owner: SOME_PROXY,
                    name: Some(name.clone()),
                    endpoints,
                    explained: endpoints,
                    is_marked: false,
                    fate: Fate::Replaced,
                });
            }
        }
    }
}

/// The service by which a packet came to its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Via {
    /// Destination as the pod asks for it.
    asked_for: String,
    /// Likely author of the rules, or the proxy.
    owner: &'static str,
    /// Name of the service, if it is known.
    name: Option<String>,
    /// Number of its endpoints.
    endpoints: usize,
    /// Number of those that are explained.
    explained: usize,
    /// True if the author of the rules has marked the packet, to masquerade it itself.
    pub(super) is_marked: bool,
    fate: Fate,
}

/// What is known of the change of a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    /// The packet certainly gets the endpoint, or another one of the service.
    Replaced,
    /// It may, by this rule, which depends on what is not known of it.
    MayBeReplaced(String),
    /// It keeps its destination if this rule says so.
    MayStay(String),
}

/// Services that were found, by source, destination and protocol: each search reads all rules.
#[derive(Default)]
pub(super) struct FoundServices(HashMap<(Option<IpAddr>, SocketAddr, u8), Option<Service>>);

impl FoundServices {
    /// Returns the service that a case's packet to `dst` is addressed to; `search` finds it the first time.
    fn get(
        &mut self,
        case: &Case,
        dst: SocketAddr,
        search: impl FnOnce() -> Option<Service>,
    ) -> Option<Service> {
        let connection = (case.src, dst, case.protocol);
        self.0.entry(connection).or_insert_with(search).clone()
    }
}

/// Finds the service that a packet to `dst` is addressed to, by rules of this node.
fn find(node: &mut Node<'_>, case: &Case, dst: SocketAddr) -> Option<Service> {
    let came_by = case.src.and_then(|src| route::came_by(node, src));
    foreign::service(&Connection {
        src: case.src,
        dst,
        protocol: case.protocol,
        came_by: came_by.and_then(name_of).as_deref(),
        local: &node.local(),
    })
}

/// Returns the cases that a case stands for: those of the endpoints if its destination is a service's,
/// else itself; both if that depends on what is not known of the packet.
pub(super) fn expand(node: &mut Node<'_>, case: &Case, found: &mut FoundServices) -> Vec<Case> {
    if let Some(via) = &case.service {
        return vec![completed(node, case, via, found)];
    }
    let to = SocketAddr::new(case.dst, case.dst_port);
    let service = match case.packet {
        Some(_) => None,
        None => found.get(case, to, || find(node, case, to)),
    };
    let Some(service) = service else {
        return vec![case.clone()];
    };
    let Service {
        owner,
        name,
        endpoints,
        doubt,
    } = service;
    let all = endpoints.len();
    let via = |is_marked, fate| {
        Some(Via {
            asked_for: case.to(),
            owner,
            name: name.clone(),
            endpoints: all,
            explained: all.min(EXPLAINED),
            is_marked,
            fate,
        })
    };
    let fate = doubt.clone().map_or(Fate::Replaced, Fate::MayBeReplaced);
    let each = endpoints.into_iter().take(EXPLAINED).map(|end| Case {
        dst: end.to.ip(),
        dst_port: end.to.port(),
        service: via(end.is_marked, fate.clone()),
        ..case.clone()
    });
    let unchanged = doubt.map(|rule| Case {
        service: via(false, Fate::MayStay(rule)),
        ..case.clone()
    });
    each.chain(unchanged).collect()
}

/// Returns the case of an endpoint that was found elsewhere, with what rules of this node say of it.
fn completed(node: &mut Node<'_>, case: &Case, via: &Via, found: &mut FoundServices) -> Case {
    let to = SocketAddr::new(case.dst, case.dst_port);
    let asked_for = via.asked_for.parse().ok();
    let service =
        asked_for.and_then(|asked_for| found.get(case, asked_for, || find(node, case, asked_for)));
    let known = service.and_then(|service| {
        let mut endpoints = service.endpoints.into_iter();
        Some((service.owner, endpoints.find(|end| end.to == to)?))
    });
    let mut via = via.clone();
    if let Some((owner, end)) = known {
        (via.owner, via.is_marked) = (owner, end.is_marked);
    }
    Case {
        service: Some(via),
        ..case.clone()
    }
}

impl Via {
    /// Returns the beginning of the headline.
    pub(super) fn headline(&self) -> String {
        match self.fate {
            Fate::Replaced => format!("{} → ", self.asked_for),
            Fate::MayBeReplaced(_) => format!("may be redirected: {} → ", self.asked_for),
            Fate::MayStay(_) => "unless it is redirected: ".to_owned(),
        }
    }

    /// Reports whether the packet certainly has this destination, or another one of the service.
    pub(super) fn is_certain(&self) -> bool {
        self.fate == Fate::Replaced
    }

    /// Returns the destination as the pod asks for it, if it may be replaced.
    pub(super) fn replaced(&self) -> Option<String> {
        let is_replaced = !matches!(self.fate, Fate::MayStay(_));
        is_replaced.then(|| self.asked_for.clone())
    }

    /// Says in one line what happens to packets to the service.
    pub(super) fn line(&self) -> Option<String> {
        let may = match self.fate {
            Fate::Replaced => "replaces",
            Fate::MayBeReplaced(_) => "may replace",
            Fate::MayStay(_) => return None,
        };
        let (asked_for, name, owner) = (&self.asked_for, self.name(), self.owner);
        Some(format!(
            "{asked_for} is {name}: {owner} {may} it before netdp sees a packet"
        ))
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or("a service")
    }

    /// Makes the step.
    pub(super) fn step(&self, case: &Case) -> Step {
        let name = self.name();
        let which = match self.endpoints {
            1 => "its only endpoint".to_owned(),
            many => format!("one of its {many} endpoints"),
        };
        let (asked_for, owner) = (&self.asked_for, self.owner);
        let why = match &self.fate {
            Fate::Replaced => {
                format!("{asked_for} is {name}: {owner} sends it to {which} before netdp sees it")
            }
            Fate::MayBeReplaced(_) => format!(
                "{asked_for} is {name}: {owner} may send it to {which} before netdp sees it"
            ),
            Fate::MayStay(_) => {
                format!("a rule of {owner} may change the destination before netdp sees it")
            }
        };
        let mut step = Step::new("service", case.to(), why);
        let mut detail = |label, what: &str, why: String| {
            step.details.push(Detail {
                label,
                what: what.to_owned(),
                why,
            });
        };
        if let Fate::MayBeReplaced(rule) | Fate::MayStay(rule) = &self.fate {
            let why = "depends on what is not known of the packet";
            detail("rule", rule, why.to_owned());
        }
        if self.is_marked {
            let why = format!("{owner} masquerades it itself where it leaves");
            detail("marked", "", why);
        }
        if self.endpoints > self.explained {
            let why = format!("the first {} endpoints are explained", self.explained);
            detail("more", "", why);
        }
        step
    }
}

#[cfg(test)]
mod tests {
    use super::{Fate, FoundServices, Given, Via};
    use crate::explain::answer::ask::{Case, End};
    use crate::pods::Names;

    #[test]
    fn a_given_service_is_that_of_the_destinations_family() {
        let parsed = |text: &str| Given::parse(text).unwrap();
        let given = [
            parsed("shop/db:sql=10.96.0.12:80"),
            parsed("shop/db:sql=[fd00:96::12]:80"),
        ];
        let ends = ["10.2.0.1:5432", "[fd00::1]:5432", "10.2.0.2:5432"];
        let ends = ends.map(|end| End::parse(end).unwrap());
        let mut cases = Case::of(&[], &ends, 6, &Names::default()).unwrap();
        Given::set(&given, &mut cases);
        let told = cases.iter().map(|case| {
            let via = case.service.as_ref().unwrap();
            (via.headline(), via.step(case).why)
        });
        let told: Vec<_> = told.collect();
        for ((headline, why), (asked_for, which)) in told.iter().zip([
            ("10.96.0.12:80", "one of its 2 endpoints"),
            ("[fd00:96::12]:80", "its only endpoint"),
            ("10.96.0.12:80", "one of its 2 endpoints"),
        ]) {
            assert_eq!(*headline, format!("{asked_for} → "));
            assert!(why.contains(which), "{why}");
        }
        for wrong in ["", "=10.96.0.12:80", "shop/db", "shop/db=10.96.0.12"] {
            assert!(Given::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_service_is_searched_once_for_each_connection() {
        let ends = ["10.2.0.1:80", "10.2.0.2:80"].map(|end| End::parse(end).unwrap());
        let cases = |protocol| Case::of(&[], &ends, protocol, &Names::default()).unwrap();
        let mut found = FoundServices::default();
        let mut searches = 0;
        for case in [cases(6), cases(17)].concat() {
            for dst in ["10.96.0.12:80", "10.96.0.13:80"] {
                let service = found.get(&case, dst.parse().unwrap(), || {
                    searches += 1;
                    None
                });
                assert_eq!(service, None);
            }
        }
        assert_eq!(searches, 4);
    }

    #[test]
    fn what_may_be_replaced_is_marked_as_such() {
        let via = |fate| Via {
            asked_for: "10.1.0.10:8080".into(),
            owner: "Docker",
            name: None,
            endpoints: 1,
            explained: 1,
            is_marked: false,
            fate,
        };
        let rule = || "-m mark --mark 0x1 -j RETURN".to_owned();
        let may = via(Fate::MayBeReplaced(rule()));
        assert_eq!(may.headline(), "may be redirected: 10.1.0.10:8080 → ");
        assert!(!may.is_certain());
        assert!(may.line().unwrap().contains("Docker may replace it"));
        let stays = via(Fate::MayStay(rule()));
        assert_eq!(stays.headline(), "unless it is redirected: ");
        assert!(!stays.is_certain());
        assert_eq!((stays.replaced(), stays.line()), (None, None));
    }
}
