//! Arithmetic on the counters of 8 bytes at once: in each byte 3 bits for reading, 3 for writing, 2
//! for executing. No counter carries into its neighbour: a full one is not changed any more, and
//! none is taken from an empty one.

use crate::Rights;

/// Bytes in a word.
pub const LANES: usize = 8;
/// The low bit of the counters of 3 bits.
const WIDE: u64 = u64::from_ne_bytes([0b00_001_001; LANES]);
/// The low bit of the counter of 2 bits.
const NARROW: u64 = u64::from_ne_bytes([0b01_000_000; LANES]);

/// `rights` as an increment of the counters of one byte.
#[inline]
pub const fn increment_of(rights: Rights) -> u8 {
    const { assert!(Rights::READ.bits() == 1 && Rights::WRITE.bits() == 2) };
    const { assert!(Rights::EXECUTE.bits() == 4) };
    // Without a branch: where rights are mixed none could be predicted.
    let bits = rights.bits();
    bits & 1 | (bits & 2) << 2 | (bits & 4) << 4
}

/// One counter of a byte.
pub const fn count_of(byte: u8, right: Rights) -> u8 {
    if right.contains(Rights::EXECUTE) {
        byte >> 6
    } else if right.contains(Rights::WRITE) {
        byte >> 3 & 7
    } else {
        byte & 7
    }
}

/// The low bits of the counters that are full.
#[inline]
const fn full(counters: u64) -> u64 {
    let two = counters & counters >> 1;
    two & counters >> 2 & WIDE | two & NARROW
}

/// The low bits of the counters that are not zero.
#[inline]
const fn some(counters: u64) -> u64 {
    let two = counters | counters >> 1;
    (two | counters >> 2) & WIDE | two & NARROW
}

/// [`some`] of one byte.
#[inline]
pub const fn some_of(byte: u8) -> u8 {
    let [some, ..] = some(byte as u64).to_le_bytes();
    some
}

/// Whether the counter that `one` increments is full.
pub const fn is_full(byte: u8, one: u8) -> bool {
    full(byte as u64) & one as u64 != 0
}

/// Whether the counter that `one` increments is zero.
pub const fn none(byte: u8, one: u8) -> bool {
    some_of(byte) & one == 0
}

/// Adds `ones`, low bits of counters only.
pub const fn add(counters: u64, ones: u64) -> u64 {
    counters + (ones & !full(counters))
}

/// A byte after `more` was added and `less` was taken, both low bits of counters; those of `less`
/// are not zero.
#[inline]
pub const fn changed(byte: u8, more: u8, less: u8) -> u8 {
    let counters = byte as u64;
    let free = !full(counters);
    let [changed, ..] = (counters + (more as u64 & free) - (less as u64 & free)).to_le_bytes();
    changed
}

/// Adds `one` to every byte.
pub fn add_to_all(bytes: &mut [u8], one: u8) {
    let (words, rest) = bytes.as_chunks_mut::<LANES>();
    for word in words {
        *word = add(u64::from_ne_bytes(*word), u64::from_ne_bytes([one; LANES])).to_ne_bytes();
    }
    for byte in rest {
        *byte = changed(*byte, one, 0);
    }
}

/// Takes `one`, the low bit of one counter, from every byte up to the first in which that counter
/// is zero; gives its position, or the number of bytes.
pub fn remove_from_all(bytes: &mut [u8], one: u8) -> usize {
    let length = bytes.len();
    let ones = u64::from_ne_bytes([one; LANES]);
    let (words, _) = bytes.as_chunks_mut::<LANES>();
    let mut done = 0;
    for word in words {
        let counters = u64::from_ne_bytes(*word);
        if some(counters) & ones != ones {
            break;
        }
        *word = (counters - (ones & !full(counters))).to_ne_bytes();
        done += LANES;
    }
    for byte in bytes.iter_mut().skip(done) {
        if none(*byte, one) {
            return done;
        }
        *byte = changed(*byte, 0, one);
        done += 1;
    }
    debug_assert!(done == length);
    done
}

/// How many of the first `used` bytes can be written, and written and executed, if each has what
/// `whole` (by [`some_of`]) has as well.
pub fn totals(bytes: [u8; LANES], whole: u8, used: usize) -> (u64, u64) {
    let word = u64::from_le_bytes(bytes);
    let valid = if used < LANES { (1 << (used * LANES)) - 1 } else { u64::MAX };
    let some = (some(word) | u64::from_le_bytes([whole; LANES])) & valid;
    let one_per_byte = u64::from_le_bytes([1; LANES]);
    let (writable, executable) = (some >> 3 & one_per_byte, some >> 6 & one_per_byte);
    (writable.count_ones().into(), (writable & executable).count_ones().into())
}
