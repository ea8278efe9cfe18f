//! Parsing of a packet in the kernel: VLAN tags, and headers outside the linear area.

use crate::layout::DropReason;
use crate::nat::scratch::Scratch;
use crate::packet::{self, L4, Parsed, parse_fast, parse_inner};
use crate::skb::Linear;

/// EtherType of an 802.1Q tag.
const ETH_P_8021Q: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
const ETH_P_8021AD: u16 = 0x88a8;

/// The number of bytes that are made linear if a header is missing: Ethernet, two VLAN tags, and an
/// ICMP error with IP options outside and inside and a TCP header.
const PULL: u32 = 22 + 60 + 8 + 60 + 20;

/// Reports whether the packet has a VLAN tag, in band or offloaded by the device.
#[inline(always)]
pub(super) fn is_tagged<S: Linear>(skb: &S) -> bool {
    skb.has_offloaded_tag() || matches!(skb.ethertype(), ETH_P_8021Q | ETH_P_8021AD)
}

/// Parses the packet into `scratch`. `l2_len` is [`ETHERNET`](packet::ETHERNET), or 0 on devices without Ethernet
/// header.
#[inline(always)]
pub(super) fn parse<S: Linear>(skb: &S, l2_len: u32, scratch: &mut Scratch) -> Parsed {
    if let Some(fast) = parse_fast(skb, skb.ethertype(), l2_len) {
        fast.fill(l2_len, &mut scratch.pkt);
        return Parsed::Ip;
    }
    parse_slow(skb, l2_len, scratch)
}

/// Parses a packet that is no [`FastPacket`](packet::FastPacket). Headers outside the linear area
/// are pulled in and the packet is parsed again.
#[inline(always)]
pub(super) fn parse_slow<S: Linear>(skb: &S, l2_len: u32, scratch: &mut Scratch) -> Parsed {
    let parsed = parse_linear(skb, l2_len, scratch);
    let cut = match parsed {
        Parsed::Ip => matches!(
            scratch.pkt.l4,
            L4::Untranslatable(DropReason::Malformed | DropReason::ExtensionHeader)
        ),
        Parsed::Malformed => true,
        Parsed::NotIp => false,
    };
    let linear = skb.linear_len();
    if !cut || linear >= PULL || linear >= skb.packet_len() {
        return parsed;
    }
    let want = if skb.packet_len() < PULL {
        skb.packet_len()
    } else {
        PULL
    };
    // If pulling fails, the second parse finds the header missing again.
    skb.pull(want);
    parse_linear(skb, l2_len, scratch)
}

#[inline(never)]
fn parse_linear<S: Linear>(skb: &S, l2_len: u32, scratch: &mut Scratch) -> Parsed {
    let mut ethertype = skb.ethertype();
    let mut l3_offset = l2_len;
    // Tags that the device did not offload; offloaded ones are not in the bytes.
    for _ in 0..2 {
        if ethertype != ETH_P_8021Q && ethertype != ETH_P_8021AD {
            break;
        }
        // The tag's last two bytes are the EtherType that follows it.
        let Some([tag]) = skb.words::<1>(l3_offset as usize) else {
            return Parsed::Malformed;
        };
        ethertype = (u32::from_be(tag) & 0xffff) as u16;
        l3_offset += 4;
    }
    let parsed = packet::parse(skb, ethertype, l3_offset, &mut scratch.pkt);
    if let L4::Error = scratch.pkt.l4
        && parse_inner(skb, &scratch.pkt, &mut scratch.inner).is_none()
    {
        scratch.pkt.l4 = L4::Untranslatable(DropReason::Malformed);
    }
    parsed
}
