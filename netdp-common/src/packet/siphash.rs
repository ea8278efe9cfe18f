//! SipHash-2-4 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) over whole 64-bit
//! words: without the key, the slot of a value cannot be predicted.

use crate::layout::Secret;

struct State([u64; 4]);

impl State {
    #[inline(always)]
    const fn round(self) -> Self {
        let Self([mut a, mut b, mut c, mut d]) = self;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        Self([a, b, c, d])
    }

    #[inline(always)]
    const fn word(mut self, word: u64) -> Self {
        self.0[3] ^= word;
        let mut next = self.round().round();
        next.0[0] ^= word;
        next
    }
}

/// Hashes `words`, which stand for their bytes in little-endian order.
#[inline(always)]
#[must_use]
pub const fn hash<const N: usize>(key: Secret, words: [u64; N]) -> u64 {
    let mut state = State([
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ]);
    let mut i = 0;
    while i < N {
        state = state.word(words[i]);
        i += 1;
    }
    // No bytes are left over: the last word contains only the length.
    state = state.word((N as u64 * 8) << 56);
    state.0[2] ^= 0xff;
    let [a, b, c, d] = state.round().round().round().round().0;
    a ^ b ^ c ^ d
}

#[cfg(test)]
mod tests {
    use super::hash;

    /// `vectors_sip64` of the reference implementation for 8 and 16 bytes: key and
    /// input count up from 0.
    #[test]
    fn the_reference_vectors_hold() {
        let word = |n: u8| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|i| n * 8 + i));
        let key = [word(0), word(1)];
        let bytes = |hash: u64| hash.to_le_bytes();
        assert_eq!(
            bytes(hash(key, [word(0)])),
            [0x62, 0x24, 0x93, 0x9a, 0x79, 0xf5, 0xf5, 0x93]
        );
        assert_eq!(
            bytes(hash(key, [word(0), word(1)])),
            [0xdb, 0x9b, 0xc2, 0x57, 0x7f, 0xcc, 0x2a, 0x3f]
        );
        let other = hash([1, 2], [word(0)]);
        assert_ne!(other, hash(key, [word(0)]), "the key counts");
    }
}
