//! Look-ups of the node's sockets by `NETLINK_SOCK_DIAG`: one exact look-up, which the kernel does
//! as for a packet that arrives, listeners included.

use anyhow::{Context as _, Result};
use netdp_common::layout::{Tuple, proto};
use netlink_sys::{Socket, SocketAddr};

/// Netlink family (include/uapi/linux/netlink.h).
const NETLINK_SOCK_DIAG: isize = 4;

/// Message types (include/uapi/linux/netlink.h, include/uapi/linux/sock_diag.h).
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// Flags of requests (include/uapi/linux/netlink.h).
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

/// Length of a netlink header, and of `struct inet_diag_req_v2`
/// (include/uapi/linux/inet_diag.h, Linux 6.12).
const HEADER: usize = 16;
const REQUEST: usize = 56;

/// Look-ups of sockets in this network namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    socket: Socket,
    sequence: u32,
    /// The protocols that the kernel reports: TCP, UDP.
    reported: [bool; 2],
}

/// The answer of the kernel.
enum Answer {
    /// A message about a socket.
    Found,
    /// The end of a list.
    Done,
    /// An error number.
    Error(i32),
}

impl Sockets {
    /// Opens the socket, and asks which protocols the kernel reports.
    ///
    /// # Errors
    /// Returns an error if the kernel has no such sockets.
    pub(super) fn open() -> Result<Self> {
        let mut socket =
            Socket::new(NETLINK_SOCK_DIAG).context("a netlink socket for the node's sockets")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut sockets = Self {
            socket,
            sequence: 0,
            reported: [false; 2],
        };
        // An exact look-up says the same whether there is no socket or no `tcp_diag`; a list of the
        // sockets in no state at all does not.
        for (at, protocol) in [proto::TCP, proto::UDP].into_iter().enumerate() {
            let mut request = [0; REQUEST];
            request[0] = family(true);
            request[1] = protocol_byte(protocol);
            sockets.reported[at] = matches!(sockets.ask(NLM_F_DUMP, &request)?, Answer::Done);
        }
        Ok(sockets)
    }

    /// Reports whether the kernel reports sockets of this protocol.
    pub(super) const fn has(&self, protocol: u32) -> bool {
        match protocol {
            proto::TCP => self.reported[0],
            _ => self.reported[1],
        }
    }

    /// Reports whether a socket, including a listener, would receive packets with the tuple `wire`
    /// that arrive by the interface.
    ///
    /// # Errors
    /// Returns an error if the kernel can't be asked.
    pub(super) fn receives(&mut self, wire: &Tuple, ifindex: u32) -> Result<bool> {
        match self.ask(0, &request(wire, ifindex))? {
            Answer::Found => Ok(true),
            Answer::Done => Ok(false),
            Answer::Error(number) if number == -libc::ENOENT => Ok(false),
            Answer::Error(number) => {
                Err(std::io::Error::from_raw_os_error(-number)).context("asking for a socket")
            }
        }
    }

    fn ask(&mut self, flags: u16, request: &[u8; REQUEST]) -> Result<Answer> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + REQUEST);
        let length = u32::try_from(HEADER + REQUEST)?;
        message.extend(length.to_ne_bytes());
        message.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(request);
        self.socket
            .send(&message, 0)
            .context("asking for a socket")?;
        loop {
            let mut datagram = Vec::with_capacity(1 << 13);
            self.socket
                .recv(&mut datagram, 0)
                .context("waiting for a socket")?;
            let (Some(kind), Some(sequence)) = (half(&datagram, 4), word(&datagram, 8)) else {
                continue;
            };
            if sequence != self.sequence {
                continue;
            }
            return Ok(match kind {
                SOCK_DIAG_BY_FAMILY => Answer::Found,
                NLMSG_DONE => Answer::Done,
                NLMSG_ERROR => Answer::Error(word(&datagram, HEADER).unwrap_or(0).cast_signed()),
                _ => continue,
            });
        }
    }
}

/// Builds a `struct inet_diag_req_v2` for one look-up.
fn request(wire: &Tuple, ifindex: u32) -> [u8; REQUEST] {
    const ANY_STATE: u32 = u32::MAX;
    // The remote end is the source of the packet. UDP expects the ends the other way round than TCP
    // (`udp_dump_one`, net/ipv4/udp_diag.c, Linux 6.12).
    let (remote, local) = ((wire.src, wire.src_id), (wire.dst, wire.dst_id));
    let (first, second) = match wire.proto {
        proto::TCP => (local, remote),
        _ => (remote, local),
    };
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend([family(wire.src.is_v4()), protocol_byte(wire.proto), 0, 0]);
    bytes.extend(ANY_STATE.to_ne_bytes());
    bytes.extend(first.1.to_be_bytes());
    bytes.extend(second.1.to_be_bytes());
    for (addr, _) in [first, second] {
        let mut field = [0; 16];
        if addr.is_v4() {
            field[..4].copy_from_slice(&addr.v4_octets());
        } else {
            field = *addr.octets();
        }
        bytes.extend(field);
    }
    bytes.extend(ifindex.to_ne_bytes());
    // Any cookie (`INET_DIAG_NOCOOKIE`).
    bytes.extend([0xff; 8]);
    let mut request = [0; REQUEST];
    request.copy_from_slice(&bytes);
    request
}

/// Returns the number of the address family (include/linux/socket.h).
const fn family(v4: bool) -> u8 {
    if v4 { 2 } else { 10 }
}

#[expect(clippy::cast_possible_truncation, reason = "protocols have 8 bits")]
const fn protocol_byte(protocol: u32) -> u8 {
    protocol as u8
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
