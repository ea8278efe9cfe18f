//! The maps of the generator and the sink, as `cargo xtask bench` fills and reads them.

#![no_std]

/// Bytes of a generated frame: Ethernet, IPv4, UDP, and padding.
pub const FRAME: usize = 64;

/// The port of the servers; whatever has it at either end is the sink's.
pub const PORT: u16 = 9;

/// A CPU's flows have their own ports: flow `n` of CPU `c` has the client's port
/// `FIRST_PORT + (c % 2 << PORT_BITS) + n % 2^PORT_BITS`, and the server's address
/// of flow 0 plus `n / 2^PORT_BITS`.
pub const FIRST_PORT: u16 = 1024;
/// See [`FIRST_PORT`].
pub const PORT_BITS: u32 = 14;

/// What the generator sends.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Stream {
    /// The frame, in words as they lie in memory; what varies is zero, and so
    /// are the checksums.
    pub frame: [u32; FRAME / 4],
    /// Ones' complement sum of the IPv4 header.
    pub ip_sum: u32,
    /// Ones' complement sum of UDP's pseudo-header, header and data.
    pub udp_sum: u32,
    /// The server's address of flow 0, host byte order.
    pub server: u32,
    /// The number of flows, a power of two, less one.
    pub mask: u32,
    /// 0: the client sends; 1: the server does.
    pub reply: u32,
}

/// What the sink saw of one CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Seen {
    /// Packets.
    pub packets: u64,
    /// Source address of the last one, as on the wire.
    pub source: u32,
    /// Destination address of the last one.
    pub destination: u32,
    /// When the generator made its first one, in nanoseconds of
    /// `CLOCK_MONOTONIC`; 0 before.
    pub first: u64,
    /// When the last one of which the number is a multiple of [`LOOK`] came.
    pub last: u64,
}

/// How often the sink looks at the clock, in packets: seldom, for a look is a
/// part of what a packet costs. A power of two.
pub const LOOK: u64 = 32;
