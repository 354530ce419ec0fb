//! The names: each a length (one byte below 128, else two with 7 bits each, low bits first) and
//! that many token numbers. Before them stands their number, behind them the markers: the position
//! of every 256th name.

use super::{ALIGNMENTS, SYMBOL_LIMIT, Tokens};
use crate::bytes::size_at;
use alloc::string::String;
use alloc::vec::Vec;

/// Names between two markers.
const MARKER_STEP: usize = 256;
/// Bytes searched before the token table for the number of symbols.
const SEARCH_LIMIT: usize = 32 << 20;
/// Places whose first names look right that are looked at in full.
const ATTEMPTS: usize = 64;
/// Bytes per symbol of the table of sequence numbers.
const SEQUENCE_LENGTH: usize = 3;
/// Longest name with its type letter (`KSYM_NAME_LEN`, from 6.1 on).
const NAME_LIMIT: usize = 512;
/// Most text that is unpacked.
const TEXT_LIMIT: usize = 64 << 20;

/// Where the names are.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Position of the number of symbols in the segment.
    pub start: usize,
    /// Number of symbols.
    pub count: usize,
    /// Alignment of all tables, one of `ALIGNMENTS`.
    pub alignment: usize,
    /// The names, up to the token table.
    bytes: &'a [u8],
}

impl<'a> Names<'a> {
    /// Finds the number whose names end where their markers begin, and whose markers end where
    /// the token table (or the sequence numbers before it) begins.
    pub fn find(segment: &'a [u8], tokens: &Tokens<'_>) -> Option<Self> {
        ALIGNMENTS.into_iter().find_map(|alignment| Self::aligned(segment, tokens, alignment))
    }

    fn aligned(segment: &'a [u8], tokens: &Tokens<'_>, alignment: usize) -> Option<Self> {
        let lowest = tokens.start.saturating_sub(SEARCH_LIMIT).next_multiple_of(alignment);
        (lowest..tokens.start)
            .step_by(alignment)
            .rev()
            .filter_map(|start| Self::at(segment, tokens, start, alignment))
            .filter(|names| names.begin_well(tokens))
            .take(ATTEMPTS)
            .find(|names| names.agree_with_markers().is_some())
    }

    fn at(segment: &'a [u8], tokens: &Tokens<'_>, start: usize, alignment: usize) -> Option<Self> {
        let count = size_at(segment, start)?;
        let bytes = segment.get(start + alignment..tokens.start)?;
        let possible = (1..=SYMBOL_LIMIT).contains(&count) && count * 2 <= bytes.len();
        let padded = segment.get(start + 4..start + alignment)?.iter().all(|&byte| byte == 0);
        (possible && padded).then_some(Self { start, count, alignment, bytes })
    }

    /// Whether the first names start with type letters.
    fn begin_well(&self, tokens: &Tokens<'_>) -> bool {
        let letter = |name: Option<&[u8]>| {
            let first = name.and_then(|name| tokens.first_byte(*name.first()?));
            first.is_some_and(|byte| byte.is_ascii_alphabetic())
        };
        self.iter().take(MARKER_STEP).all(|(_, name)| letter(name))
    }

    /// Each name's position and token numbers; `None` and the end where one is cut off.
    fn iter(&self) -> impl Iterator<Item = (usize, Option<&'a [u8]>)> {
        let bytes = self.bytes;
        let mut position = Some(0);
        core::iter::from_fn(move || {
            let start = position?;
            let name = name_at(bytes, start);
            position = name.map(|(_, end)| end);
            Some((start, name.map(|(name, _)| name)))
        })
        .take(self.count)
    }

    fn agree_with_markers(&self) -> Option<()> {
        let mut end = 0;
        let mut positions = Vec::new();
        for (number, (position, name)) in self.iter().enumerate() {
            if number % MARKER_STEP == 0 {
                positions.push(position);
            }
            let name = name?;
            end = position + name.len() + if name.len() < 128 { 1 } else { 2 };
        }
        let markers = end.next_multiple_of(self.alignment);
        for (number, &position) in positions.iter().enumerate() {
            if size_at(self.bytes, markers + number * 4)? != position {
                return None;
            }
        }
        let after = (markers + positions.len() * 4).next_multiple_of(self.alignment);
        let after_sequence =
            (after + self.count * SEQUENCE_LENGTH).next_multiple_of(self.alignment);
        [after, after_sequence].contains(&self.bytes.len()).then_some(())
    }

    /// All names, each with its type letter before it, in one text, and where each ends.
    pub fn expand(&self, tokens: &Tokens<'_>) -> Option<(String, Vec<usize>)> {
        let mut text = String::new();
        let mut ends = Vec::new();
        for (_, name) in self.iter() {
            let start = text.len();
            for &value in name? {
                text.push_str(tokens.string(value));
                if text.len() - start > NAME_LIMIT {
                    return None;
                }
            }
            if text.len() == start || text.len() > TEXT_LIMIT {
                return None;
            }
            ends.push(text.len());
        }
        Some((text, ends))
    }
}

/// The token numbers of the name at `start`, and where the next name starts.
fn name_at(bytes: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let low = usize::from(*bytes.get(start)?);
    let (length, first) = if low < 0x80 {
        (low, start + 1)
    } else {
        (low & 0x7f | usize::from(*bytes.get(start + 1)?) << 7, start + 2)
    };
    let name = bytes.get(first..)?.get(..length)?;
    Some((name, first + length))
}
