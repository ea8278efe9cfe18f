//! Random state, written into the maps behind the agent's back.

use super::packets::{NETS, Net, PEER_PORTS, PORTS};
use super::random::Random;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData};
use netdp_common::flow::stamp;
use netdp_common::layout::{
    Action, Addr, Fragment, Inbound, Limits, Live, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY,
    MAPPING_HANDED_OVER, MAPPING_HANDOVER_PENDING, MAPPING_HOST, MAPPING_PICKUP, Mapping, NodeFlow,
    NodeFlowPorts, NodeProtocol, POLICY_WAS_BYPASSED, PolicyValue, SETTING_ANY_SOURCE,
    SETTING_DRAIN, SETTING_SEVERAL_UPLINKS, SHARE_TOTAL, Settings, Share, Tuple, origin_tag, pins,
    proto,
};
use netdp_common::slot::{Key as PodKey, Role};
use std::net::IpAddr;
use std::path::Path;

pub struct State {
    settings: Array<MapData, Settings>,
    limits: Limits,
    policy: [LpmTrie<MapData, Addr, PolicyValue>; 2],
    snat: HashMap<MapData, Tuple, Mapping>,
    rev_snat: HashMap<MapData, Tuple, Mapping>,
    shares: Array<MapData, Share>,
    inbound: HashMap<MapData, Tuple, Inbound>,
    inbound_live: HashMap<MapData, Tuple, Live>,
    inbound_used: Array<MapData, u32>,
    node_flows: HashMap<MapData, Tuple, NodeFlow>,
    node_flow_ports: Array<MapData, NodeFlowPorts>,
    node_ports: Array<MapData, u32>,
    node_protocols: HashMap<MapData, NodeProtocol, u32>,
    reserved_ports: Array<MapData, u64>,
    fragments: HashMap<MapData, Tuple, Fragment>,
    /// Indexes of the interfaces at which packets leave, and by which they come.
    pub uplinks: [u32; 2],
    pub pods: [u32; 2],
    /// Ports that mappings may have, if they are configured.
    pub range: Option<[u16; 4]>,
    /// The programs alone begin and end mappings.
    is_crowded: bool,
}

impl State {
    pub fn open(
        dir: &Path,
        uplinks: [u32; 2],
        pods: [u32; 2],
        range: Option<[u16; 4]>,
        is_crowded: bool,
    ) -> Self {
        let pinned = |file| MapData::from_pin(dir.join(file)).unwrap();
        let array = |file| Map::Array(pinned(file));
        let hash = |file| Map::HashMap(pinned(file));
        let lru = |file| Map::LruHashMap(pinned(file));
        let trie = |file| Map::LpmTrie(pinned(file)).try_into().unwrap();
        let limits: Array<_, Limits> = array(pins::LIMITS).try_into().unwrap();
        Self {
            settings: array(pins::SETTINGS).try_into().unwrap(),
            limits: limits.get(&0, 0).unwrap(),
            policy: [trie(pins::POLICY_0), trie(pins::POLICY_1)],
            snat: hash(pins::SNAT).try_into().unwrap(),
            rev_snat: hash(pins::REV_SNAT).try_into().unwrap(),
            shares: array(pins::SHARES).try_into().unwrap(),
            inbound: lru(pins::INBOUND).try_into().unwrap(),
            inbound_live: hash(pins::INBOUND_LIVE).try_into().unwrap(),
            inbound_used: array(pins::INBOUND_USED).try_into().unwrap(),
            node_flows: lru(pins::NODE_FLOWS).try_into().unwrap(),
            node_flow_ports: array(pins::NODE_FLOW_PORTS).try_into().unwrap(),
            node_ports: array(pins::NODE_PORTS).try_into().unwrap(),
            node_protocols: hash(pins::NODE_PROTOCOLS).try_into().unwrap(),
            reserved_ports: array(pins::RESERVED_PORTS).try_into().unwrap(),
            fragments: lru(pins::FRAGMENTS).try_into().unwrap(),
            uplinks,
            pods,
            range,
            is_crowded,
        }
    }

    pub fn settings(&self) -> Settings {
        self.settings.get(&0, 0).unwrap()
    }

    /// Changes something at random; `now` is the datapath's time.
    pub fn change(&mut self, random: &mut Random, now: u32) {
        let net = &NETS[usize::from(random.once_in(3))];
        match random.below(40) {
            0..19 if self.is_crowded => {}
            0..10 => self.map(random, net, now),
            10..16 => self.unmap(random),
            16..19 => self.share(random, net, now),
            19..22 => self.receive(random, net, now),
            22..25 => self.node_flow(random, net, now),
            25..27 => self.policy(random, net),
            27 => {
                let port = random.pick(&PORTS);
                let word = u32::from(port) / 64;
                let bit = u64::from(random.once_in(3)) << (port % 64);
                self.reserved_ports.set(word, bit, 0).unwrap();
            }
            28 => {
                let bits = random.pick(&[0, 0, 1, 2, 4, 8, 31]);
                let port = random.pick(&PORTS);
                self.node_ports.set(u32::from(port), bits, 0).unwrap();
            }
            29 => {
                let any = if net.pods[0].contains(':') {
                    "::"
                } else {
                    "0.0.0.0"
                };
                let peer = random.pick(&[net.peers[0], net.peers[1], any]);
                let key = NodeProtocol::new(addr(peer), random.pick(&[47, 50, 89, 136]));
                if random.once_in(3) {
                    self.node_protocols.insert(key, 1, 0).unwrap();
                } else {
                    let _ = self.node_protocols.remove(&key);
                }
            }
            30 => {
                let mut settings = self.settings();
                settings.flags ^=
                    random.pick(&[SETTING_ANY_SOURCE, SETTING_DRAIN, SETTING_SEVERAL_UPLINKS]);
                self.set(settings);
            }
            31 => {
                let settings = self.settings();
                self.set(settings);
            }
            32 => {
                let fragment = Fragment {
                    addr: addr(random.pick(&net.nodes)),
                    verdict: random.below(3),
                    new_ip_id: random.pick(&[u32::MAX, 77]),
                    last_seen: now.wrapping_sub(random.pick(&AGES)),
                    pad: 0,
                };
                // By the key of a later fragment of TCP or UDP.
                let mut key = self.tuple(random, net);
                (key.src_id, key.dst_id) = (0, random.pick(&[7, 8, 9]));
                self.fragments.insert(key, fragment, 0).unwrap();
            }
            _ => {}
        }
    }

    /// Writes settings under a new epoch: what was cached is invalid.
    fn set(&mut self, mut settings: Settings) {
        settings.epoch = settings.epoch.wrapping_add(1);
        self.settings.set(0, settings, 0).unwrap();
    }

    /// Begins a mapping, or one of its halves only.
    fn map(&mut self, random: &mut Random, net: &Net, now: u32) {
        let tuple = self.tuple(random, net);
        let id = match (self.range, random.below(4)) {
            (Some(range), _) => random.pick(&range),
            (None, 0) => random.pick(&PORTS),
            (None, _) => tuple.src_id,
        };
        let node = addr(random.pick(&net.nodes));
        let created = now.wrapping_sub(random.pick(&AGES));
        let mut original = Mapping::new(&node, id, 0, created);
        let mut reply = Mapping::new(&tuple.src, tuple.src_id, 0, created);
        original.flags = random.pick(&[0, MAPPING_COUNTED_ORIGINAL])
            | random.pick(&[0, MAPPING_PICKUP])
            | origin_tag(random.pick(&[0, self.pods[0], self.pods[1]]));
        reply.flags = random.pick(&[0, MAPPING_COUNTED_REPLY])
            | match random.below(12) {
                0 => MAPPING_HOST,
                1 => MAPPING_HANDOVER_PENDING,
                2 => MAPPING_HANDED_OVER,
                _ => 0,
            };
        for half in [&mut original, &mut reply] {
            half.last_seen = now.wrapping_sub(random.pick(&AGES));
            half.tcp_seen = random.pick(&[0, 1, 9, 9, 9, 11, 12, 13, 25, 43, 43, 63, 73]);
            half.tcp_ack = random.pick(&[0, 1000, 1001, 2000, 5000]);
            half.traffic = random.pick(&[0, 1, 2, 3, 0x4001]);
        }
        // The place is an original half's; in a reply half it says how the connection closes.
        let epoch = self.settings().epoch.to_le_bytes()[0];
        original.epoch = random.pick(&[epoch, epoch, epoch.wrapping_sub(1)]);
        let uplink = random.pick(&[self.uplinks[0], self.uplinks[0], self.uplinks[1], 0]);
        original.uplink = u16::try_from(uplink).unwrap();
        reply.epoch = random.pick(&[0, 0, 1, 3]);
        reply.uplink = random.pick(&[0, 0, 1000, 1001, 2001]);
        let halves = random.below(12);
        if halves != 0 {
            let wire = tuple.reply_to(original.addr, original.id);
            let _ = self.rev_snat.insert(wire, reply, 0);
        }
        if halves != 1 {
            let _ = self.snat.insert(tuple, original, 0);
        }
    }

    fn unmap(&mut self, random: &mut Random) {
        let at = random.below(20) as usize;
        let original = self.snat.iter().nth(at).map(Result::unwrap);
        if let Some((tuple, half)) = original {
            let _ = self.snat.remove(&tuple);
            let _ = self.rev_snat.remove(&tuple.reply_to(half.addr, half.id));
        }
    }

    fn share(&mut self, random: &mut Random, net: &Net, now: u32) {
        let bucket = if random.once_in(4) {
            SHARE_TOTAL
        } else {
            let pod = addr(random.pick(&net.pods));
            PodKey::of(self.limits.secret, &pod, Role::Pod).bucket()
        };
        let mut share = self.shares.get(&bucket, 0).unwrap();
        let capacity = u64::from(self.limits.capacity);
        share.opened = match random.below(8) {
            // Three eighths; beyond any share; nearly all places.
            0 => capacity * 3 / 8 - 1,
            1 => capacity * 3 / 8,
            2 => capacity / 4 * 3,
            3 => capacity - capacity / 64 - 1,
            _ => u64::from(random.below(20)),
        };
        share.tokens = random.below(3);
        share.filled_at = now.wrapping_sub(random.pick(&AGES));
        share.refused_at = now.wrapping_sub(random.pick(&AGES));
        self.shares.set(bucket, share, 0).unwrap();
    }

    /// Records a flow that keeps the pod's address.
    fn receive(&mut self, random: &mut Random, net: &Net, now: u32) {
        let tuple = self.tuple(random, net);
        self.inbound_used.set(0, 1, 0).unwrap();
        let last_seen = now.wrapping_sub(random.pick(&AGES));
        let limit = random.pick(&[0, 900, 6_000]);
        if random.once_in(2) {
            let inbound = Inbound { last_seen, limit };
            self.inbound.insert(tuple, inbound, 0).unwrap();
            return;
        }
        let origin = random.pick(&[0, self.pods[0], self.pods[1]]);
        let live = Live {
            last_seen,
            limit,
            seen: random.below(4) | origin << 16,
            ack: random.pick(&[0, 1000, 2000]),
        };
        let _ = self.inbound_live.insert(tuple, live, 0);
    }

    fn node_flow(&mut self, random: &mut Random, net: &Net, now: u32) {
        let tuple = self.tuple(random, net);
        let wire = tuple.reply_to(addr(random.pick(&net.nodes)), tuple.src_id);
        let flow = NodeFlow {
            last_seen: now.wrapping_sub(random.pick(&AGES)),
            limit: random.pick(&[0, 900, 6_000]),
        };
        self.node_flows.insert(wire, flow, 0).unwrap();
        let mut stamps = self.node_flow_ports.get(&0, 0).unwrap();
        stamps.0[usize::from(wire.dst_id)] = random.pick(&[0, stamp(now), stamp(now)]);
        self.node_flow_ports.set(0, stamps, 0).unwrap();
    }

    /// Changes an entry of the policy in force.
    fn policy(&mut self, random: &mut Random, net: &Net) {
        let settings = self.settings();
        let trie = &mut self.policy[settings.active_policy as usize];
        let v4 = !net.pods[0].contains(':');
        let bits = random.pick(&[0, 8, 16, 24, 32]);
        let (bits, all) = if v4 { (bits + 96, 32) } else { (bits * 4, 128) };
        let peer = random.pick(&net.peers);
        // The address bits beyond the prefix do not count.
        let key = Key::new(bits.min(96 + all), addr(peer));
        if random.once_in(3) {
            let _ = trie.remove(&key);
        } else {
            let action = random.pick(&[
                Action::Bypass,
                Action::Bypass,
                Action::Masquerade,
                Action::Withhold,
            ]) as u32;
            let value = PolicyValue {
                action: action | random.pick(&[0, 0, POLICY_WAS_BYPASSED]),
                rule: random.below(50),
            };
            trie.insert(&key, value, 0).unwrap();
        }
        self.set(settings);
    }

    /// Returns a tuple of a pod's packet.
    fn tuple(&self, random: &mut Random, net: &Net) -> Tuple {
        let v4 = !net.pods[0].contains(':');
        let icmp = if v4 { proto::ICMP } else { proto::ICMPV6 };
        let protocols = [proto::TCP, proto::TCP, proto::UDP, icmp, 47, proto::SCTP];
        let proto = random.pick(&protocols);
        let (pod, peer) = (random.pick(&net.pods), random.pick(&net.peers));
        let (port, peer_port) = (random.pick(&PORTS), random.pick(&PEER_PORTS));
        let (src_id, dst_id) = match proto {
            47 => (0, 0),
            proto::ICMP | proto::ICMPV6 => (port, 0),
            _ => (port, peer_port),
        };
        Tuple::new(addr(pod), addr(peer), src_id, dst_id, proto)
    }
}

/// Ages in ticks: on either side of the limits that decisions have, of seconds to days.
const AGES: [u32; 9] = [0, 5, 40, 100, 400, 1_000, 5_000, 50_000, 2_000_000];

pub fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().unwrap().into()
}
