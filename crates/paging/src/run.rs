//! Runs: entries of one table that map consecutive frames and are otherwise equal. To recognise
//! one takes a comparison per entry, without decoding.

use crate::format::ADDRESS;
use crate::lowest::Lines;
use crate::memory::LINE;
use crate::{ENTRIES, Level, TableMemory};
use addr::Hfn;
use core::ops::Range;

/// Length of the run that begins with `entry`, a leaf at `index`, in a table of level `level`:
/// at least 1, at most `most` (itself at least 1) and never past the end of the table.
#[inline]
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
    let (rest, step) = (index + 1..end, 1 << level.shift());
    // Where frames are scattered there is no run; then this is all.
    if rest.is_empty() || memory.read(table, rest.start) != entry + step {
        return 1;
    }
    1 + alike(memory, table, rest, entry + step, step)
}

/// How many entries at the start of `range` are `first`, `first + step`, and so on.
fn alike<M: TableMemory>(
    memory: &M,
    table: Hfn,
    range: Range<usize>,
    first: u64,
    step: u64,
) -> usize {
    let expected = |index: usize| first + (index - range.start) as u64 * step;
    let is_alike = |index: &usize| memory.read(table, *index) == expected(*index);
    let Lines { head, mut lines, tail } = Lines::new(range.clone());
    let equal = head.clone().take_while(is_alike).count();
    if equal < head.len() {
        return equal;
    }
    let is_all_alike = |line: &usize| {
        let start = expected(*line * LINE);
        let entries = memory.read_line(table, *line).into_iter().zip(0_u64..);
        entries.fold(0, |any, (entry, offset)| any | entry ^ (start + offset * step)) == 0
    };
    let line = lines.find(|line| !is_all_alike(line));
    let start = line.map_or(tail.start, |line| line * LINE);
    start - range.start + (start..range.end).take_while(is_alike).count()
}
