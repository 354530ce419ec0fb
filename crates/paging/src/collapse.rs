//! Making large leaves out of small ones again.

use crate::span::Span;
use crate::{ENTRIES, Entry, Format, Level, Removed, TableMemory};
use addr::Hfn;

/// Collapses what `span` touches below `table`, from the leaves up, as long as `removed` has room.
pub(crate) fn collapse_below<F: Format, M: TableMemory>(
    memory: &mut M,
    removed: &mut Removed<F>,
    table: Hfn,
    level: Level,
    span: Span,
    largest: Level,
) {
    for slot in span.slots(level) {
        let entry = F::decode(memory.read(table, slot.index), level);
        let (Entry::Table(next), Some(below)) = (entry, level.below()) else { continue };
        collapse_below(memory, removed, next, below, slot.part, largest);
        if removed.is_full() {
            return;
        }
        if let Some(entry) = replacement::<F, M>(memory, next, below, level, largest) {
            memory.write(table, slot.index, entry);
            removed.push(next, below);
        }
    }
}

/// The one entry, of a table of level `level`, that does the work of a whole table of the level
/// below.
fn replacement<F: Format, M: TableMemory>(
    memory: &M,
    table: Hfn,
    below: Level,
    level: Level,
    largest: Level,
) -> Option<u64> {
    let decode = |index| F::decode(memory.read(table, index), below);
    match decode(0) {
        Entry::Empty => (1..ENTRIES).all(|index| decode(index) == Entry::Empty).then_some(0),
        Entry::Leaf { frame, rights } => {
            let expected =
                |index| Entry::Leaf { frame: frame.plus(index as u64 * below.frames()), rights };
            let fits = level <= largest.min(Level::Page1G)
                && frame.is_aligned(level.frames())
                && (1..ENTRIES).all(|index| decode(index) == expected(index));
            fits.then(|| F::leaf(frame, level, rights))
        }
        Entry::Table(_) | Entry::Shared(_) => None,
    }
}
