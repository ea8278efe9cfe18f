//! Packets: parsing, checksums, and hashes.

mod bytes;
pub mod checksum;
mod fast;
mod hash;
mod inner;
mod parse;
mod parsed;
pub mod siphash;

pub use bytes::{Bytes, MAX_OFFSET, SUMMED};
pub use fast::{FastPacket, parse_fast, peek, queue_hash};
pub use hash::{keyed_hash, low32, pair_slot, quick_hash, tuple_hash};
pub use inner::{Inner, parse_inner};
pub use parse::{ETH_P_IP, ETH_P_IPV6, ETHERNET, parse};
pub use parsed::{ACK, FIN, KEEP_IP_ID, L4, Packet, Parsed, RST, SYN, TcpSegment, UNKNOWN_LENGTH};
