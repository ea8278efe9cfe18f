//! `autoNonMasquerade`: the cluster's own networks, which are bypassed without being listed.
//!
//! Which networks there are is no part of the configuration: they come from the Kubernetes API and
//! from flags, and change with every node that joins.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::diagnostic::{Diagnostic, quoted};
use super::key::Key;
use super::lint::POLICY;
use super::parse::{Reader, Setting};
use super::settings::Files;
use super::yaml::{Node, Value};
use super::{MAX_RULES, Options, Origin, Rule, RuleAction};

/// Number of prefixes beyond which the cluster's networks are reported as unusually many.
const MANY: usize = 1_000;

/// A kind of the cluster's own networks; a word of `autoNonMasquerade`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoKind {
    /// Pod CIDRs of all Nodes.
    Pods,
    /// Service CIDRs.
    Services,
    /// Addresses of all Nodes.
    Nodes,
}

impl AutoKind {
    const ALL: [Self; 3] = [Self::Pods, Self::Services, Self::Nodes];

    /// Returns the word for the kind.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Services => "services",
            Self::Nodes => "nodes",
        }
    }

    /// Returns the flag that names networks of the kind, if there is one.
    const fn flag(self) -> Option<&'static str> {
        match self {
            Self::Pods => Some("--pod-cidr"),
            Self::Services => Some("--service-cidr"),
            Self::Nodes => None,
        }
    }
}

/// The kinds that a configuration names.
pub(crate) type AutoKinds = BTreeSet<AutoKind>;

/// Source of one of the cluster's networks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AutoSource {
    /// A Node, by name.
    Node(String),
    /// A ServiceCIDR.
    Service,
    /// A flag.
    Flag,
}

/// One of the cluster's own networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoNetwork {
    /// Kind of the network.
    pub kind: AutoKind,
    /// The network, without host bits.
    pub prefix: IpNet,
    /// Source of the network.
    pub source: AutoSource,
}

/// The Kubernetes API as a source of the cluster's networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AutoApi {
    /// Out of reach, as for `netdp config check`: an agent may know more.
    #[default]
    Offline,
    /// Not followed by the agent: there is nothing but flags.
    NotFollowed,
    /// Followed, and has no ServiceCIDRs.
    WithoutServices,
    /// Followed.
    Followed,
}

/// The cluster's own networks, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AutoNetworks {
    /// Networks from flags.
    pub flags: Vec<AutoNetwork>,
    /// Pod CIDRs and addresses of all Nodes. `None` until they are known.
    pub of_nodes: Option<Arc<[AutoNetwork]>>,
    /// Service CIDRs. `None` until they are known.
    pub of_services: Option<Arc<[AutoNetwork]>>,
    /// Role of the API.
    pub api: AutoApi,
}

impl AutoNetworks {
    /// Returns the networks that `--pod-cidr` and `--service-cidr` name.
    pub(crate) fn of_flags(pod_cidrs: &[IpNet], service_cidrs: &[IpNet]) -> Self {
        let of = |kind, nets: &[IpNet]| {
            let network = |prefix: &IpNet| AutoNetwork {
                kind,
                prefix: prefix.trunc(),
                source: AutoSource::Flag,
            };
            nets.iter().map(network).collect::<Vec<_>>()
        };
        let mut flags = of(AutoKind::Pods, pod_cidrs);
        flags.extend(of(AutoKind::Services, service_cidrs));
        Self {
            flags,
            ..Self::default()
        }
    }

    /// Adds networks that were saved, as if the API had returned them.
    pub(crate) fn add_saved(&mut self, saved: Vec<AutoNetwork>) {
        let (of_services, of_nodes): (Vec<_>, Vec<_>) = saved
            .into_iter()
            .partition(|network| network.kind == AutoKind::Services);
        let known = |nets: Vec<_>| (!nets.is_empty()).then(|| Arc::from(nets));
        self.of_services = known(of_services);
        self.of_nodes = known(of_nodes);
    }

    /// Returns all networks: those from the API first, which name the better origin.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &AutoNetwork> {
        let received = [&self.of_nodes, &self.of_services];
        received
            .into_iter()
            .flatten()
            .flat_map(|nets| nets.iter())
            .chain(&self.flags)
    }

    /// Reports whether the API is followed and has not said yet which networks of a kind there are.
    pub(crate) fn awaits(&self, kind: AutoKind) -> bool {
        match (self.api, kind) {
            (AutoApi::Offline | AutoApi::NotFollowed, _) => false,
            (_, AutoKind::Services) => self.of_services.is_none(),
            (_, AutoKind::Pods | AutoKind::Nodes) => self.of_nodes.is_none(),
        }
    }
}

/// Origin of a rule for one or several of the cluster's networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoOrigin {
    /// Kind of the networks.
    kind: AutoKind,
    /// Source of the first one.
    source: AutoSource,
    /// Number of further networks that the rule's prefix was aggregated from.
    more: usize,
}

impl fmt::Display for AutoOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "auto: {}", self.kind.name())?;
        let more = match self.more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        match (&self.source, self.kind.flag()) {
            (AutoSource::Node(name), _) => write!(f, " (node {name}{more})"),
            (AutoSource::Flag, Some(flag)) => write!(f, " ({flag}{more})"),
            _ => Ok(()),
        }
    }
}

impl Reader<'_> {
    /// Reads a list of kinds. Returns `None` if the value is null, and after an error.
    pub(super) fn kinds(&mut self, line: usize, value: &Node) -> Option<Setting<AutoKinds>> {
        let key = Key::AutoNonMasquerade;
        let name = key.name();
        let Value::List(items) = &value.value else {
            if value.is_null() {
                self.warn(line, format!("{name} is null, which means the same as []"));
            } else {
                self.wrong_type(key, value.line, "a list such as [pods, services]", value);
            }
            return None;
        };
        let mut kinds = AutoKinds::new();
        let mut valid = true;
        for (index, item) in items.iter().enumerate() {
            let (Value::Plain(text) | Value::Quoted(text)) = &item.value else {
                let found = item.describe();
                self.error(
                    item.line,
                    format!("{name}[{index}]: expected a word, found {found}"),
                );
                valid = false;
                continue;
            };
            match AutoKind::ALL.into_iter().find(|kind| kind.name() == text) {
                Some(kind) if kinds.insert(kind) => {}
                Some(_) => self.warn(
                    item.line,
                    format!("{name}[{index}]: {text} is already listed"),
                ),
                None => {
                    let known = AutoKind::ALL.map(AutoKind::name).join(", ");
                    self.error(
                        item.line,
                        format!(
                            "{name}[{index}]: {} is unknown; the known words are {known}",
                            quoted(text)
                        ),
                    );
                    valid = false;
                }
            }
        }
        valid.then_some(Setting { value: kinds, line })
    }
}

/// Returns the kinds that any file names.
pub(super) fn united(files: Files<'_>) -> AutoKinds {
    let lists = files.iter().filter_map(|(_, file)| file.auto.as_ref());
    lists.flat_map(|list| list.value.iter().copied()).collect()
}

/// Returns the bypasses of `kinds`, of the fewest prefixes that leave each of the prefixes `known`
/// its effect. Networks of such a prefix get no rule: whatever is written, or built in otherwise,
/// has precedence.
pub(super) fn rules(
    kinds: &AutoKinds,
    networks: &AutoNetworks,
    options: &Options,
    known: &[Rule],
) -> Vec<Rule> {
    if kinds.is_empty() || options.default_action == Some(RuleAction::Bypass) {
        return Vec::new();
    }
    let mut taken: HashSet<IpNet> = known.iter().map(|rule| rule.prefix).collect();
    let mut rules = Vec::new();
    for kind in kinds {
        let mut members: Vec<&AutoNetwork> = networks
            .iter()
            .filter(|network| network.kind == *kind)
            .filter(|network| options.enable_ipv6 || matches!(network.prefix, IpNet::V4(_)))
            .filter(|network| !taken.contains(&network.prefix))
            .collect();
        // Stable: of equal networks the one from the API remains first.
        members.sort_by_key(|network| network.prefix);
        let of_kind = aggregate(&members, &taken);
        taken.extend(of_kind.iter().map(|rule| rule.prefix));
        rules.extend(of_kind);
    }
    rules.truncate(MAX_RULES.saturating_sub(known.len()));
    rules
}

/// A prefix and the networks in it.
struct Group<'a> {
    prefix: IpNet,
    first: &'a AutoNetwork,
    more: usize,
}

/// Returns the rules for sorted `members`: networks inside others are omitted and neighbours
/// united, unless a rule of one of the prefixes `barriers` would then decide differently.
fn aggregate(members: &[&AutoNetwork], barriers: &HashSet<IpNet>) -> Vec<Rule> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for network in members {
        if let Some(last) = groups.last_mut()
            && last.prefix.contains(&network.prefix)
            && !is_between(last.prefix, network.prefix, barriers)
        {
            let is_same = last.prefix == network.prefix && network.source == AutoSource::Flag;
            last.more += usize::from(!is_same);
            continue;
        }
        groups.push(Group {
            prefix: network.prefix,
            first: network,
            more: 0,
        });
        while let [.., left, right] = groups.as_slice()
            && let Some(parent) = parent_of(left.prefix, right.prefix)
            && !barriers.contains(&parent)
        {
            let added = right.more + 1;
            groups.pop();
            if let Some(left) = groups.last_mut() {
                left.prefix = parent;
                left.more += added;
            }
        }
    }
    let rule = |group: Group<'_>| Rule {
        prefix: group.prefix,
        action: RuleAction::Bypass,
        origin: Origin::Auto(AutoOrigin {
            kind: group.first.kind,
            source: group.first.source.clone(),
            more: group.more,
        }),
        also: Vec::new(),
    };
    groups.into_iter().map(rule).collect()
}

/// Reports whether a barrier contains `inner` and lies in `outer`, without being `outer` itself.
fn is_between(outer: IpNet, inner: IpNet, barriers: &HashSet<IpNet>) -> bool {
    let around = std::iter::successors(Some(inner), IpNet::supernet);
    around
        .take_while(|net| net.prefix_len() > outer.prefix_len())
        .any(|net| barriers.contains(&net))
}

/// Returns the prefix that two halves make up, if they are those of one.
fn parent_of(left: IpNet, right: IpNet) -> Option<IpNet> {
    let parent = left.supernet()?;
    let are_halves = left != right
        && left.prefix_len() == right.prefix_len()
        && right.supernet() == Some(parent);
    are_halves.then_some(parent)
}

/// Reports kinds without effect, and how many prefixes there are: to `warnings` what an agent meets,
/// to `notes` what only an agent can know.
pub(super) fn lint(
    files: Files<'_>,
    networks: &AutoNetworks,
    options: &Options,
    rules: &[Rule],
    warnings: &mut Vec<Diagnostic>,
    notes: &mut Vec<Diagnostic>,
) {
    let key = Key::AutoNonMasquerade.name();
    let auto = rules.iter().filter(|rule| rule.is_auto());
    if auto.count() > MANY {
        // Without their number: it changes with the nodes, and the warning would be a new one.
        let message = format!(
            "{key}: the cluster's networks are more than {MANY} prefixes; a contiguous network for \
             pods takes fewer, and --pod-cidr can name it"
        );
        warnings.push(Diagnostic::whole_file(POLICY, message));
    }
    for kind in united(files) {
        let place = files.iter().find_map(|(name, file)| {
            let list = file.auto.as_ref()?;
            list.value.contains(&kind).then_some((*name, list.line))
        });
        let Some((file, line)) = place else {
            continue;
        };
        let word = kind.name();
        if options.default_action == Some(RuleAction::Bypass) {
            let message =
                format!("{key}: {word} has no effect, because --default-action is bypass");
            warnings.push(Diagnostic::at(file, line, message));
            continue;
        }
        if networks.flags.iter().any(|network| network.kind == kind) {
            continue;
        }
        let instead = kind
            .flag()
            .map_or_else(String::new, |flag| format!("; {flag} names them"));
        match networks.api {
            AutoApi::Offline => {
                let message = format!(
                    "{key}: {word} are known to agents that follow the Kubernetes API, and are not \
                     shown here{instead}"
                );
                notes.push(Diagnostic::at(file, line, message));
            }
            AutoApi::NotFollowed => {
                let message = format!(
                    "{key}: {word} has no effect, because the Kubernetes API is not followed \
                     (--kube){instead}"
                );
                warnings.push(Diagnostic::at(file, line, message));
            }
            AutoApi::WithoutServices if kind == AutoKind::Services => {
                let message = format!(
                    "{key}: {word} has no effect, because the Kubernetes API has no ServiceCIDRs, \
                     which are new in Kubernetes 1.33{instead}"
                );
                warnings.push(Diagnostic::at(file, line, message));
            }
            AutoApi::WithoutServices | AutoApi::Followed => {}
        }
    }
}
