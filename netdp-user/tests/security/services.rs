//! Connections that netfilter redirects from a port of the node to a pod stay that pod's, whatever
//! another pod sends from a port of the same number.

use crate::build::{self, ACK, FIN, PSH, SYN};
use crate::common::{SOON, nft};
use crate::flood::Attacker;
use crate::packet::{Packet, TCP, UDP};
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends, restore};
use crate::talk::{PATIENCE, Pair, bound};
use anyhow::{Context as _, Result, ensure};
use socket2::Type;
use std::cell::Cell;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use testbed::{Bed, Netns, WorkDir, wait_for};

/// Port of the services' endpoints on the good pod.
const INSIDE: u16 = 80;

/// A hostPort as CNI's portmap plugin writes it, an nftables map, and a load-balancer address that
/// is the node's, as kube-proxy writes it.
const SERVICES: [u16; 3] = [8081, 8082, 8443];

/// A bare SYN, segments in mid-stream, and segments that end a connection.
const SEGMENTS: [(u8, &[u8]); 4] = [
    (SYN, b""),
    (ACK, b""),
    (PSH | ACK, b"evil"),
    (FIN | ACK, b""),
];

fn serve(node: &Netns) -> Result<()> {
    let dir = WorkDir::new("services")?;
    for (tool, family, own, inside) in [
        ("iptables-restore", "ip", "10.1.0.10/32", "172.16.0.2"),
        ("ip6tables-restore", "ip6", "fd00:1::10/128", "fd00:172::2"),
    ] {
        let to = match family {
            "ip" => format!("{inside}:{INSIDE}"),
            _ => format!("[{inside}]:{INSIDE}"),
        };
        let mut rules = String::from(
            "*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-DN-0 - [0:0]\n\
             :KUBE-SERVICES - [0:0]\n:KUBE-FW-0 - [0:0]\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT\n\
             -A PREROUTING -j KUBE-SERVICES\n",
        );
        for protocol in ["tcp", "udp"] {
            let [host_port, _, balanced] = SERVICES;
            rules += &format!(
                "-A CNI-HOSTPORT-DNAT -p {protocol} -m multiport --dports {host_port} -j CNI-DN-0\n\
                 -A CNI-DN-0 -p {protocol} --dport {host_port} -j DNAT --to-destination {to}\n\
                 -A KUBE-SERVICES -d {own} -p {protocol} --dport {balanced} -j KUBE-FW-0\n\
                 -A KUBE-FW-0 -p {protocol} -j DNAT --to-destination {to}\n"
            );
        }
        restore(node, &dir, tool, &(rules + "COMMIT\n"))?;
        let [_, mapped, _] = SERVICES;
        nft(
            node,
            &format!(
                "add table {family} mapped; \
                 add chain {family} mapped pre {{ type nat hook prerouting priority -110; }}; \
                 add rule {family} mapped pre fib daddr type local meta l4proto {{ tcp, udp }} \
                 dnat to th dport map {{ {mapped} : {inside} . {INSIDE} }}"
            ),
        )?;
    }
    Ok(())
}

/// Calls `case` for each service and family, with distinct client ports.
fn each_service(
    subject: Subject,
    late: bool,
    case: impl Fn(&mut Scene, SocketAddr, &Cell<u16>, &mut Wrongs) -> Result<()>,
) -> Result<()> {
    let prepare = |bed: &Bed| if late { Ok(()) } else { serve(&bed.node) };
    let mut site = Site::prepared(subject, &[], prepare)?;
    if late {
        serve(site.node())?;
        if let Some(agent) = site.agent() {
            wait_for(SOON, "the rules to be known", || {
                let status = agent.netdp(&["status"]).unwrap_or_default();
                status.lines().any(|line| {
                    line.starts_with("node ports ")
                        && (SERVICES.iter()).all(|port| line.contains(&port.to_string()))
                })
            })?;
        }
    }
    let (mut wrongs, ports) = (Wrongs::default(), Cell::new(50_000));
    for family in ends(&site.far, 0) {
        let mut scene = Scene::new(&site, family.ip())?;
        for service in SERVICES {
            let node = site.on_node(family.ip(), service)?;
            case(&mut scene, node, &ports, &mut wrongs)?;
        }
    }
    wrongs.none()
}

/// Attacker, client and service in one family.
struct Scene<'a> {
    site: &'a Site,
    attacker: Attacker,
    family: IpAddr,
}

impl<'a> Scene<'a> {
    fn new(site: &'a Site, family: IpAddr) -> Result<Self> {
        Ok(Self {
            site,
            attacker: Attacker::new(site.evil(), &site.far, family)?,
            family,
        })
    }

    fn client(&self, ports: &Cell<u16>) -> SocketAddr {
        ports.set(ports.get() + 1);
        SocketAddr::new(self.family, ports.get())
    }

    /// Returns the attacker's packets from the service's port.
    fn packets(&self, client: SocketAddr, service: u16) -> Result<Vec<(u8, Packet)>> {
        let pod = (end(self.site.evil(), self.family, 0)?.ip(), service);
        let to = (client.ip(), client.port());
        let mut packets: Vec<_> = SEGMENTS
            .iter()
            .map(|(flags, data)| (TCP, build::tcp(pod, to, *flags, (77, 78), data)))
            .collect();
        packets.push((UDP, build::udp(pod, to, b"evil")));
        Ok(packets)
    }

    fn open(&self, protocol: u8, client: SocketAddr, node: SocketAddr) -> Result<Served> {
        let good = self.site.good();
        let at = end(good, self.family, INSIDE)?;
        Ok(if protocol == TCP {
            Served::Tcp(Pair::open(&self.site.far, client, node, (good, at))?)
        } else {
            let server: UdpSocket = good.open(|| bound(at, Type::DGRAM))?.into();
            let far = &self.site.far;
            let client: UdpSocket = far.open(|| bound(client, Type::DGRAM))?.into();
            client.connect(node)?;
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(PATIENCE))?;
            }
            Served::Udp(client, server)
        })
    }
}

/// A client's flow to a service, with access to both ends.
enum Served {
    Tcp(Pair),
    Udp(UdpSocket, UdpSocket),
}

impl Served {
    fn goes_on(&mut self) -> Result<()> {
        let (client, server) = match self {
            Self::Tcp(pair) => return pair.goes_on(),
            Self::Udp(client, server) => (client, server),
        };
        let mut heard = [0; 16];
        client.send(b"question").context("asking")?;
        let (_, from) = server.recv_from(&mut heard).context("the question")?;
        server.send_to(b"answer", from)?;
        let count = client.recv(&mut heard).context("the answer")?;
        ensure!(&heard[..count] == b"answer", "heard {heard:?}");
        Ok(())
    }
}

fn established(subject: Subject, late: bool) -> Result<()> {
    each_service(subject, late, |scene, node, ports, wrongs| {
        for n in 0..=SEGMENTS.len() {
            let client = scene.client(ports);
            let (protocol, attack) = scene.packets(client, node.port())?.swap_remove(n);
            let mut served = scene.open(protocol, client, node)?;
            served.goes_on().context("before the attack")?;
            scene.attacker.send(&attack)?;
            // A packet that the attack triggers may arrive one round later.
            let result = served.goes_on().and_then(|()| served.goes_on());
            wrongs.note(format!("{node}, client {client}, after {attack:?}"), result);
        }
        Ok(())
    })
}

fn new(subject: Subject, late: bool) -> Result<()> {
    each_service(subject, late, |scene, node, ports, wrongs| {
        for n in 0..=SEGMENTS.len() {
            let client = scene.client(ports);
            let (protocol, attack) = scene.packets(client, node.port())?.swap_remove(n);
            scene.attacker.send(&attack)?;
            let opened = scene.open(protocol, client, node);
            let result = opened.and_then(|mut served| served.goes_on());
            wrongs.note(format!("{node}, client {client}, after {attack:?}"), result);
        }
        Ok(())
    })
}

#[test]
fn an_established_connection_to_a_service_is_not_taken_over() -> Result<()> {
    both(Control::Holds, |subject| established(subject, false))
}

#[test]
fn a_new_connection_to_a_service_is_not_taken_over() -> Result<()> {
    both(Control::Holds, |subject| new(subject, false))
}

/// The service's rules are added while the agent runs.
#[test]
fn connections_to_a_service_that_comes_later_are_not_taken_over() -> Result<()> {
    both(Control::Holds, |subject| {
        established(subject, true)?;
        new(subject, true)
    })
}
