//! The token table: 256 NUL-terminated strings, one per byte value, followed by the index of
//! their first bytes (`u16`s). A name is a sequence of byte values.

use super::{ALIGNMENTS, LEAST_ALIGNMENT};
use crate::bytes::u16_at;

/// Entries of table and index.
const COUNT: usize = 256;
/// Bytes of the index.
const INDEX_LENGTH: usize = COUNT * 2;
/// Longest string that a byte value stands for; a name has at most 511 bytes.
const TOKEN_LIMIT: usize = 512;

/// The decoded table.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    strings: [&'a str; COUNT],
    /// Position of the table in its segment.
    pub start: usize,
    /// One past the index.
    pub end: usize,
}

impl<'a> Tokens<'a> {
    /// Finds the only place in `bytes` where an index describes exactly the strings before it.
    pub fn find(bytes: &'a [u8]) -> Option<Self> {
        (0..bytes.len()).step_by(LEAST_ALIGNMENT).find_map(|at| Self::at_index(bytes, at))
    }

    /// The token table whose index is at `index`.
    fn at_index(bytes: &'a [u8], index: usize) -> Option<Self> {
        // The first string starts at 0, and each has at least its NUL: few places get far.
        let mut offsets = [0; COUNT];
        let mut least = 0;
        for (number, offset) in offsets.iter_mut().enumerate() {
            *offset = usize::from(u16_at(bytes, index + number * 2)?);
            if *offset < least || (number == 0 && *offset > 0) {
                return None;
            }
            least = *offset + 1;
        }
        // Where the table starts depends on the length of the last string.
        let shortest = offsets.last()? + 1;
        let latest = index.checked_sub(shortest)? / LEAST_ALIGNMENT * LEAST_ALIGNMENT;
        let earliest = index.saturating_sub(shortest + TOKEN_LIMIT);
        let mut start = latest;
        loop {
            if let Some(strings) = strings(bytes.get(start..index)?, &offsets) {
                return Some(Self { strings, start, end: index + INDEX_LENGTH });
            }
            start = start.checked_sub(LEAST_ALIGNMENT).filter(|&start| start >= earliest)?;
        }
    }

    /// What a byte value stands for.
    pub fn string(&self, value: u8) -> &'a str {
        self.strings.get(usize::from(value)).copied().unwrap_or_default()
    }

    /// First byte of what a byte value stands for.
    pub fn first_byte(&self, value: u8) -> Option<u8> {
        self.string(value).bytes().next()
    }
}

/// Splits `table` at `offsets`, if each string ends with the only NUL in it and only NULs, fewer
/// than the largest alignment, follow the last.
fn strings<'a>(table: &'a [u8], offsets: &[usize; COUNT]) -> Option<[&'a str; COUNT]> {
    let mut strings = [""; COUNT];
    let mut rest = table;
    for (string, &offset) in strings.iter_mut().zip(offsets) {
        if table.len() - rest.len() != offset {
            return None;
        }
        let length = rest.iter().take(TOKEN_LIMIT).position(|&byte| byte == 0)?;
        let (text, tail) = rest.split_at_checked(length)?;
        let text = core::str::from_utf8(text).ok()?;
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        *string = text;
        rest = tail.get(1..)?;
    }
    (rest.len() < ALIGNMENTS[0] && rest.iter().all(|&byte| byte == 0)).then_some(strings)
}
