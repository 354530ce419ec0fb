//! Runs: entries of one table that map consecutive frames and are otherwise equal. To recognise
//! one takes a comparison per entry, without decoding.

use crate::format::ADDRESS;
use crate::{ENTRIES, Level, TableMemory};
use addr::Hfn;

/// Length of the run that begins with `entry`, a leaf at `index`, in a table of level `level`:
/// at least 1, at most `most` (itself at least 1) and never past the end of the table.
pub(crate) fn run_length<M: TableMemory>(
    memory: &M,
    (table, level): (Hfn, Level),
    index: usize,
    entry: u64,
    most: u64,
) -> usize {
    // The frame must not run over into other bits.
    let frames = 1 + ((ADDRESS - (entry & ADDRESS)) >> level.shift());
    let end = ENTRIES.min(index.saturating_add(addr::length(most.min(frames))));
    let mut expected = entry;
    let mut next = index + 1;
    while next < end {
        expected += 1 << level.shift();
        if memory.read(table, next) != expected {
            break;
        }
        next += 1;
    }
    next - index
}
