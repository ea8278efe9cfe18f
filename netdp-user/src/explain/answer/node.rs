//! Facts about the node: addresses, routing rules, the policy, the agent's report.

use super::names::PodNames;
use crate::config::Config;
use crate::explain::Explainer;
use crate::reach::{self, Observed};
use crate::report::Report;
use crate::routes::RouteQueries;
use crate::state_dir::StateDir;
use crate::uplinks::{self, AddressScope, LinkAddr};
use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use netdp_common::layout::{Action, PolicyValue, UPLINK_OBSERVED};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

/// The node, as it is now.
pub(crate) struct Node<'a> {
    pub(super) explainer: Explainer,
    pub(super) queries: RouteQueries,
    pub(super) addresses: Vec<LinkAddr>,
    /// Routing rules of IPv4 and IPv6.
    pub(super) routing: [Vec<RuleMessage>; 2],
    /// The agent's last report; `None` if it can't be read.
    pub(super) report: Option<Report>,
    /// True if an agent runs.
    pub(crate) agent_running: bool,
    /// The policy: that in force, or the one that was given.
    pub(super) policy: Policy,
    pub(super) names: &'a dyn PodNames,
    /// Attempts to reach bypassed networks in the last minutes, and their answers.
    pub(super) reach: Observed,
}

/// The rules of a policy.
#[derive(Debug, Default)]
pub(super) struct Policy {
    /// In the order of the report; `None` if they are unknown.
    pub(super) rules: Option<Vec<PolicyRule>>,
    /// True if it is not the one in force.
    pub(super) is_given: bool,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PolicyRule {
    pub(super) prefix: IpNet,
    pub(super) action: String,
    pub(super) origin: String,
}

impl Policy {
    /// Returns the rules that cover an address, the one that decides first.
    pub(super) fn covering(&self, address: IpAddr) -> Vec<&PolicyRule> {
        let rules = self.rules.iter().flatten();
        let mut found: Vec<_> = rules.filter(|it| it.prefix.contains(&address)).collect();
        found.sort_by_key(|rule| std::cmp::Reverse(rule.prefix.prefix_len()));
        found
    }
}

impl<'a> Node<'a> {
    /// Opens the datapath pinned below `bpffs` and reads the rest. With `instead`, that policy counts
    /// instead of the one in force.
    ///
    /// # Errors
    /// Returns an error that names the directory if no datapath is pinned there, or one if the
    /// kernel can't be asked.
    pub(crate) fn open(
        bpffs: &Path,
        state_dir: &Path,
        instead: Option<&Config>,
        names: &'a dyn PodNames,
    ) -> Result<Self> {
        let mut explainer = Explainer::open(bpffs)?;
        if let Some(config) = instead {
            let rules = config.rules.clone();
            explainer.set_policy(move |dst| {
                let rule = rules.covering(IpAddr::from(*dst).into()).next()?;
                Some(PolicyValue {
                    action: Action::from(rule.action) as u32,
                    rule: u32::MAX,
                })
            });
        }
        let dir = StateDir::at(state_dir);
        let report = Report::read(&dir).ok();
        let rules = match (instead, &report) {
            (Some(config), _) => Some(of_config(config)),
            (None, report) => report.as_ref().map(of_report),
        };
        let (addresses, routing) = kernel()?;
        Ok(Self {
            explainer,
            queries: RouteQueries::open()?,
            addresses,
            routing,
            agent_running: dir.lock_holder().is_some(),
            report,
            policy: Policy {
                rules,
                is_given: instead.is_some(),
            },
            names,
            reach: reach::lately(bpffs, &dir).unwrap_or_default(),
        })
    }

    /// Returns why the newest configuration was rejected, if the one in force is an earlier one and is
    /// what answers are by.
    pub(crate) fn rejected(&self) -> &[String] {
        match &self.report {
            Some(report) if !self.policy.is_given => &report.config.rejected,
            _ => &[],
        }
    }

    /// Reports whether netdp translates at an interface.
    pub(super) fn is_uplink(&self, ifindex: u32) -> Result<bool> {
        let uplink = self.explainer.maps.uplink(ifindex)?;
        Ok(uplink.is_some_and(|uplink| uplink.flags & UPLINK_OBSERVED == 0))
    }

    /// Reports whether the node has an address.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|it| it.addr == address)
    }

    /// Returns the node's addresses.
    pub(super) fn local(&self) -> BTreeSet<IpAddr> {
        self.addresses.iter().map(|it| it.addr).collect()
    }

    /// Returns the first address of each source that routing rules of a family name.
    pub(super) fn sources_of_rules(&self, is_v4: bool) -> BTreeSet<IpAddr> {
        let rules = self.routing[usize::from(!is_v4)].iter();
        let named = rules.flat_map(|rule| &rule.attributes);
        let sources = named.filter_map(|it| match it {
            RuleAttribute::Source(address) => Some(*address),
            _ => None,
        });
        sources.collect()
    }

    /// Reports whether an address is in a network of the node that leads to pods.
    pub(super) fn is_pods(&self, address: IpAddr) -> bool {
        let in_network = |own: &LinkAddr| {
            let net = IpNet::new(own.prefix_addr, own.prefix_len);
            net.is_ok_and(|net| net.contains(&address))
                && !self.is_uplink(own.ifindex).unwrap_or(true)
        };
        !self.is_local(address) && self.addresses.iter().any(in_network)
    }

    /// Returns an address beside the node's own on an interface that leads to pods; one that routing
    /// rules don't name, if possible.
    pub(super) fn any_pod(&self, is_v4: bool) -> Result<Option<IpAddr>> {
        let named = self.sources_of_rules(is_v4);
        for own in &self.addresses {
            let is_candidate = own.addr.is_ipv4() == is_v4
                && !own.addr.is_loopback()
                && own.scope == AddressScope::Universe
                && !self.is_uplink(own.ifindex)?;
            let net = IpNet::new(own.prefix_addr, own.prefix_len);
            let Some(net) = net.ok().filter(|_| is_candidate) else {
                continue;
            };
            // The first ones suffice: a network of pods has more than the node's own address.
            let is_host = |host: &IpAddr| *host != net.network() && !self.is_local(*host);
            let mut hosts = net.hosts().take(16).filter(is_host);
            let first = hosts.clone().next();
            if let Some(host) = hosts.find(|host| !named.contains(host)).or(first) {
                return Ok(Some(host));
            }
        }
        Ok(None)
    }
}

fn of_config(config: &Config) -> Vec<PolicyRule> {
    let rules = config.rules.iter().map(|rule| PolicyRule {
        prefix: rule.prefix,
        action: rule.action.to_string(),
        origin: rule.origin.to_string(),
    });
    rules.collect()
}

fn of_report(report: &Report) -> Vec<PolicyRule> {
    let rules = report.config.rules.iter().filter_map(|rule| {
        Some(PolicyRule {
            prefix: rule.prefix.parse().ok()?,
            action: rule.action.clone(),
            origin: rule.origin.clone(),
        })
    });
    rules.collect()
}

/// Reads addresses and routing rules.
fn kernel() -> Result<(Vec<LinkAddr>, [Vec<RuleMessage>; 2])> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("starting a runtime for netlink")?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("opening a netlink socket")?;
        tokio::spawn(connection);
        let addresses = uplinks::addresses(&handle).await?;
        let v4 = rules(&handle, IpVersion::V4).await?;
        // Without IPv6 in the kernel there are none.
        let v6 = rules(&handle, IpVersion::V6).await.unwrap_or_default();
        Ok((addresses, [v4, v6]))
    })
}

async fn rules(handle: &Handle, version: IpVersion) -> Result<Vec<RuleMessage>> {
    let rules = handle.rule().get(version).execute();
    rules
        .try_collect()
        .await
        .context("listing the routing rules over netlink")
}
