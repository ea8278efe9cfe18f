//! Access to the bytes of a packet.

use super::checksum;

/// The bytes of a packet, as 32-bit words in memory order.
pub trait Bytes {
    /// Returns `N` words from `offset` bytes on, or `None` if the packet is shorter.
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]>;

    /// Returns the ones' complement sum of up to [`SUMMED`] bytes from `offset` on (RFC 1071), or
    /// `None` if the packet is shorter.
    fn sum(&self, offset: usize, len: u32) -> Option<u32>;
}

impl Bytes for [u8] {
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let bytes = self.get(offset..offset.checked_add(N * 4)?)?;
        let mut words = [0; N];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_ne_bytes(chunk.try_into().ok()?);
        }
        Some(words)
    }

    fn sum(&self, offset: usize, len: u32) -> Option<u32> {
        let bytes = self.get(offset..offset.checked_add(len as usize)?)?;
        let mut sum = 0;
        for chunk in bytes.chunks(4) {
            let mut word = [0; 4];
            word.get_mut(..chunk.len())?.copy_from_slice(chunk);
            sum += checksum::Sum::from(u32::from_ne_bytes(word));
        }
        Some(checksum::fold32(sum))
    }
}

/// The maximum of bytes of a TCP segment that are summed: the longest header (RFC 9293 3.1) and the
/// diagnostic text that some stacks put into a RST.
pub const SUMMED: u32 = 128;

/// The maximum offset of any header that the datapath reads, in bytes from the start of the packet.
/// Also gives the verifier a bound.
pub const MAX_OFFSET: usize = 0x1ff;
