//! The cluster's own networks: pod CIDRs and addresses of all Nodes, and ServiceCIDRs. They are
//! followed only while the configuration asks for them.

use super::api_error::ApiError;
use super::cluster_objects::{ClusterNode, ServiceCidr};
use super::reflector::{ObjectStore, Reflector, random};
use super::view::Shared;
use super::watch_id::WatchId;
use crate::config::{AutoKind, AutoKinds, AutoNetwork, AutoSource};
use ipnet::IpNet;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

/// Time for which a network counts after its object has gone: pods of a Node that is deleted and
/// registers again go on.
pub(super) const RETENTION: Duration = Duration::from_secs(300);

/// Interval of checks for networks whose retention has ended.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(5);

/// Limit of networks from one kind of object. Kubernetes supports 5,000 nodes.
const MAX_NETWORKS: usize = 200_000;

/// Number of Nodes per page of a list. A Node has some 10 to 40 KB.
const NODES_PER_PAGE: u32 = 50;

/// Time limit of a question to the API.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval of looks for the version of ServiceCIDRs: an upgrade of the cluster changes it.
const VERSION_INTERVAL: Duration = Duration::from_secs(3600);

/// Interval of these looks while they fail.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Versions of ServiceCIDRs, the preferred one first: since Kubernetes 1.33 and since 1.31.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Networks of one object.
type Networks = Vec<(AutoKind, IpNet)>;

/// Networks by the name of their object.
type ByName = BTreeMap<String, Networks>;

/// The networks of one kind of object: the current ones, and those that have gone a moment ago.
#[derive(Debug, Default)]
pub(super) struct Book {
    current: ByName,
    /// Networks that have gone, with the name of their object and the time.
    gone: Vec<(String, Networks, Instant)>,
}

impl Book {
    /// Reports whether an object of each known name is in `all`.
    fn is_within(&self, all: &ByName) -> bool {
        self.current.keys().all(|name| all.contains_key(name))
    }

    /// Replaces everything by a complete list.
    fn replace(&mut self, all: ByName, now: Instant) {
        for (name, before) in std::mem::take(&mut self.current) {
            let after = all.get(&name).map_or(&[][..], Vec::as_slice);
            self.retain_gone(name, before, after, now);
        }
        self.current = all;
    }

    /// Sets the networks of an object. Returns whether they differ from before.
    fn set(&mut self, name: String, networks: Networks, now: Instant) -> bool {
        let before = self.current.get(&name);
        if before.map_or(networks.is_empty(), |before| *before == networks) {
            return false;
        }
        let before = self.current.insert(name.clone(), networks.clone());
        self.retain_gone(name, before.unwrap_or_default(), &networks, now);
        true
    }

    /// Removes an object. Its networks count until their retention ends.
    fn remove(&mut self, name: &str, now: Instant) {
        if let Some(before) = self.current.remove(name) {
            self.retain_gone(name.to_owned(), before, &[], now);
        }
    }

    /// Records those of the networks `before` that are not in `after` as gone.
    fn retain_gone(
        &mut self,
        name: String,
        mut before: Networks,
        after: &[(AutoKind, IpNet)],
        now: Instant,
    ) {
        before.retain(|network| !after.contains(network));
        if !before.is_empty() {
            self.gone.push((name, before, now));
        }
    }

    /// Removes what has gone for as long as the retention. Returns whether anything was removed.
    fn expire(&mut self, now: Instant) -> bool {
        let count = self.gone.len();
        self.gone
            .retain(|(_, _, since)| now.duration_since(*since) < RETENTION);
        self.gone.len() < count
    }

    /// Returns all networks, the current ones first.
    pub(super) fn networks(&self) -> Arc<[AutoNetwork]> {
        let gone = self.gone.iter().map(|(name, nets, _)| (name, nets));
        let network = |name: &String, (kind, prefix): &(AutoKind, IpNet)| AutoNetwork {
            kind: *kind,
            prefix: *prefix,
            source: match kind {
                AutoKind::Services => AutoSource::Service,
                AutoKind::Pods | AutoKind::Nodes => AutoSource::Node(name.clone()),
            },
        };
        self.current
            .iter()
            .chain(gone)
            .flat_map(|(name, nets)| nets.iter().map(move |net| network(name, net)))
            .collect()
    }
}

/// A kind of object that has networks of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Nodes,
    ServiceCidrs,
}

impl Holder {
    const ALL: [Self; 2] = [Self::Nodes, Self::ServiceCidrs];

    const fn watch(self) -> WatchId {
        match self {
            Self::Nodes => WatchId::Nodes,
            Self::ServiceCidrs => WatchId::ServiceCidrs,
        }
    }

    /// Reports whether `kinds` need these objects.
    fn is_in(self, kinds: &AutoKinds) -> bool {
        kinds.iter().any(|kind| match self {
            Self::Nodes => *kind != AutoKind::Services,
            Self::ServiceCidrs => *kind == AutoKind::Services,
        })
    }
}

/// An object with networks of the cluster.
trait HasNetworks {
    /// Returns the networks of the object that are of `kinds`.
    fn networks(&self, kinds: &AutoKinds) -> Networks;
}

impl HasNetworks for ClusterNode {
    fn networks(&self, kinds: &AutoKinds) -> Networks {
        let pods = self.pod_cidrs().into_iter().map(|it| (AutoKind::Pods, it));
        let addresses = self.addresses().into_iter();
        let addresses = addresses.map(|it| (AutoKind::Nodes, IpNet::from(it)));
        let all = pods.chain(addresses);
        all.filter(|(kind, _)| kinds.contains(kind)).collect()
    }
}

impl HasNetworks for ServiceCidr {
    fn networks(&self, _: &AutoKinds) -> Networks {
        let services = self.cidrs().into_iter();
        services.map(|it| (AutoKind::Services, it)).collect()
    }
}

/// Store of the networks of one kind of object.
struct NetworkStore {
    kinds: AutoKinds,
    holder: Holder,
    page_size: u32,
    /// Name of an object that every complete list has.
    certain: Option<String>,
    shared: Arc<Shared>,
}

impl NetworkStore {
    fn change(&self, change: impl FnOnce(&mut Book, Instant) -> bool) {
        let now = Instant::now();
        self.shared
            .change_book(self.holder, |book| change(book, now));
    }
}

impl<K> ObjectStore<K> for NetworkStore
where
    K: HasNetworks + kube::Resource,
{
    type Listed = ByName;

    fn fields(&self) -> Option<String> {
        None
    }

    fn labels(&self) -> Option<String> {
        None
    }

    fn page_size(&self) -> u32 {
        self.page_size
    }

    fn add_page(&self, page: Vec<K>, listed: &mut ByName) -> Result<(), ApiError> {
        let networks = |object: &K| (object.name_any(), object.networks(&self.kinds));
        listed.extend(page.iter().map(networks));
        if listed.len() > MAX_NETWORKS {
            return Err(ApiError::new(format!(
                "the API lists more than {MAX_NETWORKS} objects: the networks known before stay"
            )));
        }
        Ok(())
    }

    async fn replace(&mut self, all: ByName) -> Result<(), ApiError> {
        if let Some(name) = self
            .certain
            .as_ref()
            .filter(|name| !all.contains_key(*name))
        {
            return Err(ApiError::new(format!(
                "the API lists Nodes without {name}; is --node-name right?"
            )));
        }
        let is_within = self
            .shared
            .read_book(self.holder, |book| book.is_within(&all));
        if !is_within {
            self.shared.check_same_cluster().await?;
        }
        self.change(|book, now| {
            book.replace(all, now);
            true
        });
        Ok(())
    }

    fn apply(&mut self, object: K) -> Result<(), ApiError> {
        let (name, networks) = (object.name_any(), object.networks(&self.kinds));
        self.change(|book, now| book.set(name, networks, now));
        Ok(())
    }

    fn remove(&mut self, object: &K) {
        // Nothing changes before the retention ends.
        self.change(|book, now| {
            book.remove(&object.name_any(), now);
            false
        });
    }

    fn set_error(&mut self, error: Option<&ApiError>) {
        self.shared.set_error(self.holder.watch(), error);
    }
}

/// Follows the objects that have the networks of the `wanted` kinds.
pub(super) async fn follow(
    client: Client,
    node_name: Option<String>,
    shared: Arc<Shared>,
    mut wanted: watch::Receiver<AutoKinds>,
) {
    loop {
        let kinds = wanted.borrow_and_update().clone();
        for holder in Holder::ALL {
            if !holder.is_in(&kinds) {
                shared.forget_book(holder);
                shared.set_error(holder.watch(), None);
            }
        }
        let store = |holder, page_size, certain| NetworkStore {
            kinds: kinds.clone(),
            holder,
            page_size,
            certain,
            shared: Arc::clone(&shared),
        };
        let nodes = async {
            if Holder::Nodes.is_in(&kinds) {
                let store = store(Holder::Nodes, NODES_PER_PAGE, node_name.clone());
                let api = Api::<ClusterNode>::all(client.clone());
                Reflector::new(api, store).run().await;
            }
        };
        let services = async {
            while Holder::ServiceCidrs.is_in(&kinds) {
                let store = store(Holder::ServiceCidrs, NODES_PER_PAGE, None);
                follow_services(&client, store, &shared).await;
            }
        };
        let expiry = async {
            if !kinds.is_empty() {
                expire(&shared).await;
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
            _ = futures::future::join3(nodes, services, expiry) => if wanted.changed().await.is_err() {
                return;
            },
        }
    }
}

/// Ends the retention of networks when it is due, forever.
async fn expire(shared: &Shared) {
    let mut ticks = interval(EXPIRY_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for holder in Holder::ALL {
            shared.change_book(holder, |book| book.expire(Instant::now()));
        }
    }
}

/// Follows ServiceCIDRs in the version that the API has, until it is time to look for another one.
async fn follow_services(client: &Client, store: NetworkStore, shared: &Shared) {
    let watch = store.holder.watch();
    match version(client).await {
        Ok(Some(version)) => {
            let api = Api::<ServiceCidr>::all_with(client.clone(), &version);
            // Its end is the time limit.
            let _ = timeout(VERSION_INTERVAL, Reflector::new(api, store).run()).await;
        }
        Ok(None) => {
            shared.set_error(watch, None);
            shared.set_no_services();
            sleep(VERSION_INTERVAL.mul_f64(0.5 + 0.5 * random())).await;
        }
        Err(error) => {
            shared.set_error(watch, Some(&error));
            sleep(RETRY_INTERVAL.mul_f64(0.5 + 0.5 * random())).await;
        }
    }
}

/// Returns the version of ServiceCIDRs; `None` if the API does not have them.
async fn version(client: &Client) -> Result<Option<&'static str>, ApiError> {
    for version in VERSIONS {
        let api = Api::<ServiceCidr>::all_with(client.clone(), &version);
        let params = ListParams::default().limit(1);
        let asked = timeout(RESPONSE_TIMEOUT, api.list(&params)).await;
        match asked.map_err(|_| ApiError::timed_out())? {
            Ok(_) => return Ok(Some(version)),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(ApiError::of(&error)),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::cluster_objects::{ClusterNode, ServiceCidr};
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn pods(prefixes: &[&str]) -> Networks {
        let parse = |prefix: &&str| (AutoKind::Pods, prefix.parse().unwrap());
        prefixes.iter().map(parse).collect()
    }

    fn lines(book: &Book) -> Vec<String> {
        let networks = book.networks();
        let line = |network: &AutoNetwork| match &network.source {
            AutoSource::Node(name) => format!("{name} {}", network.prefix),
            other => format!("{other:?} {}", network.prefix),
        };
        networks.iter().map(line).collect()
    }

    fn two_nodes(now: Instant) -> Book {
        let mut book = Book::default();
        let a = ("a".to_owned(), pods(&["10.4.0.0/24"]));
        let b = ("b".to_owned(), pods(&["10.4.1.0/24"]));
        book.replace([a, b].into(), now);
        book
    }

    #[test]
    fn a_network_counts_for_five_minutes_after_its_node_has_gone() {
        let start = Instant::now();
        let mut book = two_nodes(start);
        book.remove("a", start + MINUTE);
        assert_eq!(lines(&book), ["b 10.4.1.0/24", "a 10.4.0.0/24"]);
        assert!(!book.expire(start + MINUTE * 6 - Duration::from_secs(1)));
        assert_eq!(lines(&book).len(), 2);
        assert!(book.expire(start + MINUTE * 6));
        assert_eq!(lines(&book), ["b 10.4.1.0/24"]);
        assert!(!book.expire(start + MINUTE * 99));
    }

    #[test]
    fn so_do_those_of_a_node_that_gets_others_and_those_that_a_list_lacks() {
        let start = Instant::now();
        let mut book = two_nodes(start);
        assert!(book.set("a".into(), pods(&["10.4.9.0/24"]), start));
        assert_eq!(
            lines(&book),
            ["a 10.4.9.0/24", "b 10.4.1.0/24", "a 10.4.0.0/24"]
        );
        let only_a = ("a".to_owned(), pods(&["10.4.9.0/24"]));
        book.replace([only_a].into(), start + MINUTE);
        assert_eq!(lines(&book).len(), 3);
        assert!(book.expire(start + MINUTE * 5));
        assert_eq!(lines(&book), ["a 10.4.9.0/24", "b 10.4.1.0/24"]);
        assert!(book.expire(start + MINUTE * 6));
        assert_eq!(lines(&book), ["a 10.4.9.0/24"]);
    }

    #[test]
    fn heartbeats_of_a_node_change_nothing() {
        let now = Instant::now();
        let mut book = two_nodes(now);
        assert!(!book.set("a".into(), pods(&["10.4.0.0/24"]), now));
        assert!(!book.set("new, without a CIDR yet".into(), Networks::new(), now));
        assert!(book.set("new".into(), pods(&["10.4.2.0/24"]), now));
        assert_eq!(lines(&book).len(), 3);
    }

    #[test]
    fn of_objects_the_networks_of_the_wanted_kinds_are_read() {
        let node = r#"{
            "metadata": {"name": "a"},
            "spec": {"podCIDR": "10.4.0.0/24", "podCIDRs": ["10.4.0.0/24", "fd00::/64", "x"]},
            "status": {"images": [{"names": ["i"]}], "addresses": [
                {"type": "Hostname", "address": "a"},
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "InternalIP", "address": "192.0.2.1"},
                {"type": "InternalIP", "address": "2001:db8::1"}]}}"#;
        let node: ClusterNode = serde_json::from_str(node).unwrap();
        let of = |kinds: AutoKinds| -> Vec<String> {
            let networks = node.networks(&kinds);
            networks.iter().map(|(_, net)| net.to_string()).collect()
        };
        let (pods, addresses) = (
            ["10.4.0.0/24", "fd00::/64"],
            ["192.0.2.1/32", "2001:db8::1/128"],
        );
        assert_eq!(of([AutoKind::Pods].into()), pods);
        assert_eq!(of([AutoKind::Nodes].into()), addresses);
        assert_eq!(of([AutoKind::Pods, AutoKind::Nodes].into()).len(), 4);
        let bare: ClusterNode = serde_json::from_str(r#"{"metadata":{"name":"b"}}"#).unwrap();
        assert_eq!(bare.networks(&[AutoKind::Pods].into()), []);
        let services = r#"{"spec": {"cidrs": ["10.96.0.0/16", "fd01::/112"]}}"#;
        let services: ServiceCidr = serde_json::from_str(services).unwrap();
        assert_eq!(services.cidrs().len(), 2);
    }
}
