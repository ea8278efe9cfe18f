//! Snapshots of links, addresses and routes, read from netlink.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use netdp_common::layout::Family;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoData, InfoVrf, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
    XdpAttached,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

use super::model::{AddrFlags, DefaultRoute, Link, LinkAddr, LinkLayer, Route, Snapshot};
use super::tunnel::{self, Tunnel};

/// Reads links, addresses and routes from the network namespace of the handle's socket.
///
/// # Errors
/// Returns an error if netlink refuses a request or its connection has ended.
pub(crate) async fn snapshot(handle: &Handle) -> Result<Snapshot> {
    let links: Vec<LinkMessage> = handle
        .link()
        .get()
        .set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats])
        .execute()
        .try_collect()
        .await
        .context("listing the links over netlink")?;
    let addrs = addresses(handle).await?;

    let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut default_routes = Vec::new();
    let mut all = Vec::new();
    let mut any_ip = Vec::new();
    let vrfs: BTreeSet<u32> = links.iter().filter_map(vrf_table).collect();
    for (family, request) in [(Family::V4, v4), (Family::V6, v6)] {
        let led_to = led_to(handle, family, &vrfs).await?;
        let mut routes = handle.route().get(request).execute();
        while let Some(route) = routes
            .try_next()
            .await
            .with_context(|| format!("listing the {family:?} routes over netlink"))?
        {
            // A kernel without IPv6 returns the routes of all its families.
            if family_of(&route) != Some(family) {
                continue;
            }
            let Some(destination) = destination_of(family, &route) else {
                continue;
            };
            let table = table_of(&route);
            let header = &route.header;
            let in_local = table == u32::from(libc::RT_TABLE_LOCAL);
            if header.kind == RouteType::Local {
                // Routes by the kernel itself are for addresses, which are known. In tables for
                // transparent proxies all destinations are local: that concerns packets with the
                // proxy's mark, not the node's addresses.
                let is_known = header.protocol == RouteProtocol::Kernel;
                let is_transparent_proxy = !in_local && destination.prefix_len() == 0;
                if !is_known && !is_transparent_proxy {
                    any_ip.push(destination);
                }
                continue;
            }
            if in_local || header.kind != RouteType::Unicast {
                continue;
            }
            let hops = next_hops(family, &route);
            all.extend(hops.iter().map(|hop| Route {
                destination,
                ifindex: hop.ifindex,
                gateway: hop.gateway,
                prefsrc: match header.protocol {
                    RouteProtocol::Kernel => None,
                    _ => hop.prefsrc,
                },
                is_led_to: led_to.as_ref().is_none_or(|tables| tables.contains(&table)),
            }));
            if destination.prefix_len() == 0 && table == u32::from(libc::RT_TABLE_MAIN) {
                default_routes.extend(hops);
            }
        }
    }
    Ok(Snapshot {
        links: links.iter().filter_map(link).collect(),
        addrs,
        default_routes,
        routes: all,
        any_ip,
        tunnels: links.iter().flat_map(tunnels).collect(),
    })
}

pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        link_layer: message.header.link_layer_type.into(),
        mac: None,
        master: None,
        below: None,
        xdp: false,
        kind: None,
    };
    let mut infos = [].as_slice();
    let mut elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(below @ 1..) => link.below = Some(*below),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Xdp(xdp) => {
                link.xdp = xdp.iter().any(
                    |about| matches!(about, LinkXdp::Attached(how) if *how != XdpAttached::None),
                );
            }
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Controller(0) => {}
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::LinkInfo(all) => {
                infos = all.as_slice();
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if elsewhere {
        link.below = None;
    }
    if tunnel::shows_outer_header(infos) {
        link.link_layer = LinkLayer::Other;
    }
    (!link.name.is_empty()).then_some(link)
}

/// Returns the tunnels of a link. One that is down receives nothing.
pub(super) fn tunnels(message: &LinkMessage) -> Vec<Tunnel> {
    if !message.header.flags.contains(LinkFlags::Up) {
        return Vec::new();
    }
    let mut name = String::new();
    let mut found = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(own) => name.clone_from(own),
            LinkAttribute::LinkInfo(infos) => found = tunnel::protocols(infos),
            _ => {}
        }
    }
    let tunnel = |protocol| Tunnel {
        link: name.clone(),
        protocol,
    };
    found.into_iter().map(tunnel).collect()
}

/// Reads the addresses of all interfaces, in the kernel's order.
///
/// # Errors
/// Returns an error if netlink refuses the request or its connection has ended.
pub(crate) async fn addresses(handle: &Handle) -> Result<Vec<LinkAddr>> {
    let addrs: Vec<AddressMessage> = handle
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .context("listing the addresses over netlink")?;
    Ok(addrs.iter().filter_map(addr).collect())
}

fn addr(message: &AddressMessage) -> Option<LinkAddr> {
    let mut local = None;
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let has = |flag| message.header.flags.contains(flag);
    // The same bit means "secondary" in IPv4 and "temporary" in IPv6.
    let is_v6 = message.header.family == AddressFamily::Inet6;
    Some(LinkAddr {
        ifindex: message.header.index,
        addr: local.or(address)?,
        prefix_addr: address.or(local)?,
        prefix_len: message.header.prefix_len,
        scope: message.header.scope,
        flags: AddrFlags {
            secondary: !is_v6 && has(AddressHeaderFlags::Secondary),
            temporary: is_v6 && has(AddressHeaderFlags::Secondary),
            deprecated: has(AddressHeaderFlags::Deprecated),
            tentative: has(AddressHeaderFlags::Tentative),
            dadfailed: has(AddressHeaderFlags::Dadfailed),
        },
    })
}

/// Returns the tables to which rules lead, with those of VRF devices if a rule leads to them; `None` if the kernel
/// has no rules, in which case there are only the tables that every packet is looked up in.
async fn led_to(
    handle: &Handle,
    family: Family,
    vrfs: &BTreeSet<u32>,
) -> Result<Option<BTreeSet<u32>>> {
    let (version, expected) = match family {
        Family::V4 => (IpVersion::V4, AddressFamily::Inet),
        Family::V6 => (IpVersion::V6, AddressFamily::Inet6),
    };
    let mut rules = handle.rule().get(version).execute();
    let mut tables = BTreeSet::new();
    let mut has_rules = false;
    loop {
        let rule = match rules.try_next().await {
            Ok(Some(rule)) => rule,
            Ok(None) => break,
            Err(err) if is_unsupported(&err) => return Ok(None),
            Err(err) => {
                let what = format!("listing the {family:?} routing rules over netlink");
                return Err(err).context(what);
            }
        };
        // A kernel without rules of this family may return those of others.
        if rule.header.family != expected {
            continue;
        }
        has_rules = true;
        if rule.header.action != RuleAction::ToTable {
            continue;
        }
        let mut table = u32::from(rule.header.table);
        for attribute in &rule.attributes {
            match attribute {
                RuleAttribute::Table(number) => table = *number,
                RuleAttribute::L3MDev(true) => tables.extend(vrfs),
                _ => {}
            }
        }
        tables.insert(table);
    }
    Ok(has_rules.then_some(tables))
}

/// Reports whether the kernel does not have what was asked for: rules, or the family.
fn is_unsupported(err: &rtnetlink::Error) -> bool {
    let rtnetlink::Error::NetlinkError(message) = err else {
        return false;
    };
    [libc::EOPNOTSUPP, libc::EAFNOSUPPORT].contains(&-message.raw_code())
}

/// Returns the table of a VRF device.
pub(super) fn vrf_table(message: &LinkMessage) -> Option<u32> {
    let infos = message.attributes.iter().filter_map(|it| match it {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let mut data = infos.flatten().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vrf(data)) => Some(data),
        _ => None,
    });
    data.next()?.iter().find_map(|it| match it {
        InfoVrf::TableId(table) => Some(*table),
        _ => None,
    })
}

fn family_of(route: &RouteMessage) -> Option<Family> {
    match route.header.address_family {
        AddressFamily::Inet => Some(Family::V4),
        AddressFamily::Inet6 => Some(Family::V6),
        _ => None,
    }
}

fn table_of(route: &RouteMessage) -> u32 {
    // The attribute has room for table numbers that the header truncates.
    let table = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

/// Returns the destination of a route; a default route has no such attribute.
fn destination_of(family: Family, route: &RouteMessage) -> Option<IpNet> {
    let given = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(address) => ip(address),
            _ => None,
        });
    let address = given.unwrap_or(match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    });
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

/// Returns one entry for each next hop. A route by a next-hop object lists its hops too, unless
/// `net.ipv4.nexthop_compat_mode` is off: such a route is not detected.
fn next_hops(family: Family, route: &RouteMessage) -> Vec<DefaultRoute> {
    let mut single = None;
    let mut multipath = [].as_slice();
    let mut prefsrc = None;
    let mut metric = 0;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => single = Some(*ifindex),
            RouteAttribute::MultiPath(hops) => multipath = hops,
            RouteAttribute::PrefSource(address) => prefsrc = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let hop = |ifindex, attributes: &[RouteAttribute]| DefaultRoute {
        family,
        ifindex,
        gateway: gateway(attributes),
        prefsrc,
        metric,
    };
    let mut hops: Vec<_> = single
        .map(|ifindex| hop(ifindex, &route.attributes))
        .into_iter()
        .collect();
    hops.extend(
        multipath
            .iter()
            .map(|each| hop(each.interface_index, &each.attributes)),
    );
    hops
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
