//! Maps of the generator and the sink, filled and read by `cargo xtask bench`.

#![no_std]

/// Length of a generated frame in bytes: Ethernet, IPv4, UDP, and padding.
pub const FRAME: usize = 64;

/// Port of the servers; the sink takes every packet with this port at either end.
pub const PORT: u16 = 9;

/// First client port. Each CPU has client ports of its own: flow `n` of CPU `c` uses port
/// `FIRST_PORT + (c % 2 << PORT_BITS) + n % 2^PORT_BITS`, and the server address of flow 0 plus `n
/// / 2^PORT_BITS`.
pub const FIRST_PORT: u16 = 1024;
/// Number of bits of a flow number that are in the client port, see [`FIRST_PORT`].
pub const PORT_BITS: u32 = 14;

/// Configuration of the generator.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stream {
    /// The frame as words in memory order; variable fields are zero, and so are the checksums.
    pub frame: [u32; FRAME / 4],
    /// Ones' complement sum of the IPv4 header.
    pub ip_sum: u32,
    /// Ones' complement sum of UDP's pseudo-header, header and data.
    pub udp_sum: u32,
    /// Server address of flow 0, host byte order.
    pub server: u32,
    /// Number of flows minus one; the number is a power of two.
    pub mask: u32,
    /// 0: the client sends; 1: the server sends.
    pub reply: u32,
    /// Number of bits of a flow number that are in the client port: [`PORT_BITS`], or 0 if each flow
    /// has a server of its own.
    pub port_bits: u32,
}

/// Observations of the sink for one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    /// Number of received packets.
    pub packets: u64,
    /// Source address of the last packet, network byte order.
    pub source: u32,
    /// Destination address of the last packet, network byte order.
    pub destination: u32,
    /// Time of the generator's first packet, in nanoseconds of `CLOCK_MONOTONIC`; 0 before it.
    pub first: u64,
    /// Arrival time of the last packet whose number is a multiple of [`LOOK`].
    pub last: u64,
}

/// Interval, in packets, at which the sink reads the clock: large, because a read adds to the cost
/// of the packet. A power of two.
pub const LOOK: u64 = 32;
