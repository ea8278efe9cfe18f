//! Conversion between [`Flow`] and netlink attributes.

use super::{Flow, NfTcpState, NfTuple};
use netdp_common::layout::proto;
use netlink_packet_core::{DecodeError, DefaultNla, Nla as _};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute as Attribute, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol,
    Status, TCPFlags, Tuple,
};
use std::net::IpAddr;

/// `NLA_F_NESTED` (include/uapi/linux/netlink.h).
const NESTED: u16 = 1 << 15;
const CTA_NAT_SRC: u16 = 6;
const CTA_NAT_V4_MINIP: u16 = 1;
const CTA_NAT_V4_MAXIP: u16 = 2;
const CTA_NAT_PROTO: u16 = 3;
const CTA_NAT_V6_MINIP: u16 = 4;
const CTA_NAT_V6_MAXIP: u16 = 5;
const CTA_PROTONAT_PORT_MIN: u16 = 1;
const CTA_PROTONAT_PORT_MAX: u16 = 2;

/// Attributes of an ICMP or ICMPv6 tuple: identifier, type, code.
const ICMP_ATTRIBUTES: [u16; 3] = [4, 5, 6];
const ICMPV6_ATTRIBUTES: [u16; 3] = [7, 8, 9];

/// `IP_CT_TCP_FLAG_BE_LIBERAL`: no segment counts as out of window. The kernel lacks the TCP
/// windows of a connection that was handed over.
const BE_LIBERAL: u8 = 0x08;

/// Converts the attributes of a message; `None` if a required one is missing.
pub(super) fn flow(attributes: &[Attribute]) -> Option<Flow> {
    let mut original = None;
    let mut reply = None;
    let mut answered = false;
    let mut timeout = 0;
    let (mut tcp, mut picked_up) = (None, false);
    for attribute in attributes {
        match attribute {
            Attribute::CtaTupleOrig(tuples) => original = parse_tuple(tuples),
            Attribute::CtaTupleReply(tuples) => reply = parse_tuple(tuples),
            Attribute::CtaStatus(status) => answered = status.contains(Status::SeenReply),
            Attribute::CtaTimeout(seconds) => timeout = *seconds,
            Attribute::CtaProtoInfo(infos) => {
                tcp = tcp_state(infos);
                picked_up = is_picked_up(infos);
            }
            _ => {}
        }
    }
    let (protocol, original) = original?;
    let (_, reply) = reply?;
    Some(Flow {
        protocol,
        original,
        reply,
        answered,
        timeout,
        tcp,
        picked_up,
    })
}

/// Reports whether tracking missed the beginning of a connection: it then knows no window
/// (`tcp_new`, net/netfilter/nf_conntrack_proto_tcp.c, Linux 6.18).
fn is_picked_up(infos: &[ProtoInfo]) -> bool {
    infos.iter().any(|info| match info {
        ProtoInfo::TCP(tcp) => tcp.iter().any(|part| match part {
            ProtoInfoTCP::OriginalFlags(flags) => flags.flags & BE_LIBERAL != 0,
            _ => false,
        }),
        _ => false,
    })
}

fn tcp_state(infos: &[ProtoInfo]) -> Option<NfTcpState> {
    infos.iter().find_map(|info| match info {
        ProtoInfo::TCP(tcp) => tcp.iter().find_map(|part| match part {
            ProtoInfoTCP::State(raw) => Some(NfTcpState::from_raw(*raw)),
            _ => None,
        }),
        _ => None,
    })
}

fn parse_tuple(tuples: &[Tuple]) -> Option<(u8, NfTuple)> {
    let (mut source, mut destination) = (None, None);
    let (mut source_id, mut destination_id, mut protocol) = (0, 0, None);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(parts) => {
                for part in parts {
                    match part {
                        IPTuple::SourceAddress(ip) => source = Some(*ip),
                        IPTuple::DestinationAddress(ip) => destination = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(parts) => {
                for part in parts {
                    match part {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => source_id = *port,
                        ProtoTuple::DestinationPort(port) => destination_id = *port,
                        ProtoTuple::Other(nla)
                            if [ICMP_ATTRIBUTES[0], ICMPV6_ATTRIBUTES[0]].contains(&nla.kind()) =>
                        {
                            // An ICMP identifier serves as both ids.
                            source_id = id(nla)?;
                            destination_id = source_id;
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let tuple = NfTuple {
        source: source?,
        destination: destination?,
        source_id,
        destination_id,
    };
    Some((protocol?, tuple))
}

fn id(nla: &DefaultNla) -> Option<u16> {
    let mut bytes = [0; 2];
    if nla.value_len() != bytes.len() {
        return None;
    }
    nla.emit_value(&mut bytes);
    Some(u16::from_be_bytes(bytes))
}

/// Returns the attributes that identify `flow`.
pub(super) fn key_attributes(flow: &Flow) -> Vec<Attribute> {
    vec![Attribute::CtaTupleOrig(tuple_attributes(
        flow.protocol,
        &flow.original,
        false,
    ))]
}

/// Returns the attributes that create `flow` unchanged, translated or not: assured, so that it is
/// not evicted early.
pub(super) fn untranslated_attributes(flow: &Flow) -> Vec<Attribute> {
    let mut attributes = key_attributes(flow);
    attributes.push(Attribute::CtaTupleReply(tuple_attributes(
        flow.protocol,
        &flow.reply,
        true,
    )));
    attributes.push(Attribute::CtaStatus(Status::Confirmed | Status::Assured));
    attributes.push(Attribute::CtaTimeout(flow.timeout));
    attributes
}

/// Returns the attributes that make the kernel translate `flow` from now on: seen reply, assured,
/// its source replaced by the destination of its reply direction.
pub(super) fn translated_attributes(flow: &Flow) -> Result<Vec<Attribute>, DecodeError> {
    let mut attributes = key_attributes(flow);
    attributes.push(Attribute::CtaTupleReply(tuple_attributes(
        flow.protocol,
        // The kernel translates the reply direction itself, starting from the reversed original
        // one, which is passed here.
        &flow.original.reversed(),
        true,
    )));
    attributes.push(Attribute::CtaStatus(
        Status::Confirmed | Status::Assured | Status::SeenReply,
    ));
    attributes.push(Attribute::CtaTimeout(flow.timeout));
    if let Some(state) = flow.tcp {
        // The flags, and the mask of the flags to set.
        let liberal = TCPFlags::parse(&[BE_LIBERAL, BE_LIBERAL])?;
        attributes.push(Attribute::CtaProtoInfo(vec![ProtoInfo::TCP(vec![
            ProtoInfoTCP::State(state.raw()),
            ProtoInfoTCP::OriginalFlags(liberal.clone()),
            ProtoInfoTCP::ReplyFlags(liberal),
        ])]));
    }
    attributes.push(Attribute::Other(source_nat(flow)));
    Ok(attributes)
}

/// Returns `CTA_NAT_SRC` with exactly one address and one port.
fn source_nat(flow: &Flow) -> DefaultNla {
    let mut value = Vec::new();
    let (address, min, max) = match flow.reply.destination {
        IpAddr::V4(ip) => (ip.octets().to_vec(), CTA_NAT_V4_MINIP, CTA_NAT_V4_MAXIP),
        IpAddr::V6(ip) => (ip.octets().to_vec(), CTA_NAT_V6_MINIP, CTA_NAT_V6_MAXIP),
    };
    push(&mut value, min, &address);
    push(&mut value, max, &address);
    if flow.original.source_id != 0 {
        let port = flow.reply.destination_id.to_be_bytes();
        let mut ports = Vec::new();
        push(&mut ports, CTA_PROTONAT_PORT_MIN, &port);
        push(&mut ports, CTA_PROTONAT_PORT_MAX, &port);
        push(&mut value, CTA_NAT_PROTO | NESTED, &ports);
    }
    DefaultNla::new(CTA_NAT_SRC | NESTED, value)
}

/// Appends an attribute: length and type, two bytes each in native byte order; value; padding to
/// four bytes (include/uapi/linux/netlink.h).
fn push(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let nla = DefaultNla::new(kind, value.to_vec());
    let start = out.len();
    out.resize(start + netlink_packet_core::Emitable::buffer_len(&nla), 0);
    if let Some(room) = out.get_mut(start..) {
        netlink_packet_core::Emitable::emit(&nla, room);
    }
}

fn tuple_attributes(protocol: u8, tuple: &NfTuple, reply: bool) -> Vec<Tuple> {
    let ip = vec![
        IPTuple::SourceAddress(tuple.source),
        IPTuple::DestinationAddress(tuple.destination),
    ];
    let mut parts = vec![ProtoTuple::Protocol(Protocol::from(protocol))];
    // Types of echo request and reply.
    match (u32::from(protocol), tuple.source_id) {
        (proto::ICMP, id) => push_icmp(&mut parts, ICMP_ATTRIBUTES, id, if reply { 0 } else { 8 }),
        (proto::ICMPV6, id) => push_icmp(
            &mut parts,
            ICMPV6_ATTRIBUTES,
            id,
            if reply { 129 } else { 128 },
        ),
        (_, 0) if tuple.destination_id == 0 => {}
        (_, source) => {
            parts.push(ProtoTuple::SourcePort(source));
            parts.push(ProtoTuple::DestinationPort(tuple.destination_id));
        }
    }
    vec![Tuple::Ip(ip), Tuple::Proto(parts)]
}

fn push_icmp(parts: &mut Vec<ProtoTuple>, kinds: [u16; 3], id: u16, message: u8) {
    let other = |kind, value: &[u8]| ProtoTuple::Other(DefaultNla::new(kind, value.to_vec()));
    parts.push(other(kinds[0], &id.to_be_bytes()));
    parts.push(other(kinds[1], &[message]));
    parts.push(other(kinds[2], &[0]));
}
