//! Links, addresses, rules and routes of the node, over netlink: the image has no `ip`.

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Limit of routes of one family: nodes that speak BGP have up to a million.
const ROUTES: usize = 20_000;

/// Names of links by index.
type LinkNames = BTreeMap<u32, String>;

/// Runs a query over netlink.
///
/// # Errors
/// Returns an error if netlink refuses.
fn query<T>(ask: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().context("opening netlink")?;
        tokio::spawn(connection);
        ask(&handle).await
    })
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    let links = handle.link().get().execute();
    links.try_collect().await.context("listing the links")
}

async fn names(handle: &Handle) -> Result<LinkNames> {
    let links = links(handle).await?;
    Ok(links
        .iter()
        .map(|link| (link.header.index, link_name(link)))
        .collect())
}

fn link_name(link: &LinkMessage) -> String {
    let name = link.attributes.iter().find_map(|it| match it {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_else(|| link.header.index.to_string())
}

/// Returns links and their addresses.
///
/// # Errors
/// Returns an error if netlink refuses.
pub(super) fn addresses() -> Result<String> {
    query(async |handle| {
        let addresses = handle.address().get().execute();
        let addresses: Vec<AddressMessage> = addresses
            .try_collect()
            .await
            .context("listing the addresses")?;
        let mut text = String::new();
        for link in links(handle).await? {
            text += &link_line(&link);
            let index = link.header.index;
            for address in addresses.iter().filter(|it| it.header.index == index) {
                text += &address_line(address);
            }
        }
        Ok(text)
    })
}

fn link_line(link: &LinkMessage) -> String {
    let mut line = format!("{}: {}", link.header.index, link_name(link));
    for attribute in &link.attributes {
        // Writing to a String can't fail.
        let _ = match attribute {
            LinkAttribute::Mtu(mtu) => write!(line, " mtu {mtu}"),
            LinkAttribute::Address(mac) if mac.len() == 6 => {
                let mac: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
                write!(line, " link/ether {}", mac.join(":"))
            }
            LinkAttribute::Controller(index) => write!(line, " master {index}"),
            LinkAttribute::Link(index) => write!(line, " link {index}"),
            LinkAttribute::LinkInfo(infos) => infos.iter().try_for_each(|info| match info {
                LinkInfo::Kind(kind) => write!(line, " kind {kind:?}"),
                _ => Ok(()),
            }),
            _ => Ok(()),
        };
    }
    line + &format!(" flags {:?}\n", link.header.flags)
}

fn address_line(address: &AddressMessage) -> String {
    let header = &address.header;
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        address.attributes.iter().find_map(wanted)
    };
    let local = of(|it| match it {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let peer = of(|it| match it {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let shown = local
        .or(peer)
        .map_or_else(|| "-".into(), |ip| ip.to_string());
    format!(
        "    {shown}/{} scope {:?} flags {:?}\n",
        header.prefix_len, header.scope, header.flags
    )
}

/// Returns the rules of routing, in the order of their priorities.
///
/// # Errors
/// Returns an error if netlink refuses.
pub(super) fn rules() -> Result<String> {
    query(async |handle| {
        let mut text = String::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let rules = handle.rule().get(version.clone()).execute();
            let rules: Vec<RuleMessage> = match rules.try_collect().await {
                Ok(rules) => rules,
                Err(err) => {
                    text += &format!("{version:?}: not read: {err}\n");
                    continue;
                }
            };
            for rule in rules {
                text += &rule_line(&rule);
            }
        }
        Ok(text)
    })
}

fn rule_line(rule: &RuleMessage) -> String {
    let header = &rule.header;
    let mut line = format!("{:?}", header.family).to_lowercase();
    let mut table = u32::from(header.table);
    let mut rest = String::new();
    for attribute in &rule.attributes {
        // Writing to a String can't fail.
        let _ = match attribute {
            RuleAttribute::Priority(priority) => write!(line, " {priority}:"),
            RuleAttribute::Table(number) => {
                table = *number;
                Ok(())
            }
            RuleAttribute::Source(ip) => write!(rest, " from {ip}/{}", header.src_len),
            RuleAttribute::Destination(ip) => write!(rest, " to {ip}/{}", header.dst_len),
            RuleAttribute::Iifname(name) => write!(rest, " iif {name}"),
            RuleAttribute::Oifname(name) => write!(rest, " oif {name}"),
            RuleAttribute::FwMark(mark) => write!(rest, " fwmark {mark:#x}"),
            RuleAttribute::FwMask(mask) => write!(rest, "/{mask:#x}"),
            _ => Ok(()),
        };
    }
    line + &format!(
        "{rest} {:?} table {table} flags {:?}\n",
        header.action, header.flags
    )
}

/// Returns the routes of all tables.
///
/// # Errors
/// Returns an error if netlink refuses.
pub(super) fn routes() -> Result<String> {
    query(async |handle| {
        let names = names(handle).await?;
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut text = String::new();
        for request in [v4, v6] {
            let mut routes = handle.route().get(request).execute();
            let mut count = 0;
            while let Some(route) = routes.try_next().await.context("listing the routes")? {
                count += 1;
                if count <= ROUTES {
                    text += &route_line(&route, &names);
                }
            }
            if let more @ 1.. = count.saturating_sub(ROUTES) {
                text += &format!("… {more} more\n");
            }
        }
        Ok(text)
    })
}

fn route_line(route: &RouteMessage, names: &LinkNames) -> String {
    let header = &route.header;
    let mut to = "default".to_owned();
    let mut table = u32::from(header.table);
    let mut rest = String::new();
    for attribute in &route.attributes {
        // Writing to a String can't fail.
        let _ = match attribute {
            RouteAttribute::Destination(ip) => {
                to = format!("{}/{}", shown(ip), header.destination_prefix_length);
                Ok(())
            }
            RouteAttribute::Gateway(ip) => write!(rest, " via {}", shown(ip)),
            RouteAttribute::Oif(index) => match names.get(index) {
                Some(name) => write!(rest, " dev {name}"),
                None => write!(rest, " dev {index}"),
            },
            RouteAttribute::PrefSource(ip) => write!(rest, " src {}", shown(ip)),
            RouteAttribute::Priority(metric) => write!(rest, " metric {metric}"),
            RouteAttribute::Table(number) => {
                table = *number;
                Ok(())
            }
            RouteAttribute::MultiPath(hops) => write!(rest, " {} next hops", hops.len()),
            _ => Ok(()),
        };
    }
    let kind = format!("{:?}", header.kind).to_lowercase();
    let protocol = format!("{:?}", header.protocol).to_lowercase();
    format!("{kind} {to}{rest} table {table} proto {protocol}\n")
}

fn shown(address: &RouteAddress) -> String {
    match address {
        RouteAddress::Inet(ip) => ip.to_string(),
        RouteAddress::Inet6(ip) => ip.to_string(),
        other => format!("{other:?}"),
    }
}
