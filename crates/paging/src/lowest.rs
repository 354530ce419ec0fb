//! The lowest tables, whose entries are leaves of 4 KiB or empty: nearly all time goes into their
//! loops, which take the entries of a cache line together.

use crate::format::ADDRESS;
use crate::memory::LINE;
use crate::span::Span;
use crate::{Format, Level, TableMemory};
use addr::Hfn;
use core::ops::Range;

/// Indices of a table, cut at its cache lines.
pub(crate) struct Lines {
    /// Those before the first whole line.
    pub head: Range<usize>,
    /// Whole lines, by their numbers.
    pub lines: Range<usize>,
    /// Those behind the last whole line.
    pub tail: Range<usize>,
}

impl Lines {
    pub fn new(all: Range<usize>) -> Self {
        let start = all.start.next_multiple_of(LINE).min(all.end);
        let end = (all.end / LINE * LINE).max(start);
        let lines = start.div_ceil(LINE)..end / LINE;
        Self { head: all.start..start, lines, tail: end..all.end }
    }
}

/// The indices of a span in the one lowest table that spans all of it.
fn indices(span: Span) -> Range<usize> {
    let first = Level::Page4K.index(span.start);
    first..first + addr::length(span.end - span.start)
}

/// The first page of the span that is not mapped.
pub(crate) fn first_hole<F: Format, M: TableMemory>(
    memory: &M,
    table: Hfn,
    span: Span,
) -> Option<u64> {
    let all = |line: [u64; LINE]| line.into_iter().fold(F::MAPPED, |all, entry| all & entry) != 0;
    first(memory, table, span, |line| !all(line), |entry| entry & F::MAPPED == 0)
}

/// The first page of the span that is mapped.
pub(crate) fn first_leaf<F: Format, M: TableMemory>(
    memory: &M,
    table: Hfn,
    span: Span,
) -> Option<u64> {
    let any = |line: [u64; LINE]| line.into_iter().fold(0, |any, entry| any | entry) & F::MAPPED;
    first(memory, table, span, |line| any(line) != 0, |entry| entry & F::MAPPED != 0)
}

/// The first page of the span whose entry is as asked, which `has_any` tells of eight entries.
fn first<M: TableMemory>(
    memory: &M,
    table: Hfn,
    span: Span,
    has_any: impl Fn([u64; LINE]) -> bool,
    is_one: impl Fn(u64) -> bool,
) -> Option<u64> {
    let all = indices(span);
    let is_one = |index: &usize| is_one(memory.read(table, *index));
    let Lines { mut head, mut lines, tail } = Lines::new(all.clone());
    let found = head.find(is_one).or_else(|| {
        let line = lines.find(|line| has_any(memory.read_line(table, *line)));
        let start = line.map_or(tail.start, |line| line * LINE);
        (start..all.end).find(is_one)
    });
    Some(span.start + (found? - all.start) as u64)
}

/// Gives the pages of the span, all of which are mapped, new rights.
pub(crate) fn protect<F: Format, M: TableMemory>(
    memory: &mut M,
    table: Hfn,
    span: Span,
    rights: F::Rights,
) {
    let flags = F::flags(Level::Page4K, rights);
    let Lines { head, lines, tail } = Lines::new(indices(span));
    for line in lines {
        let old = memory.read_line(table, line);
        memory.write_line(table, line, old.map(|entry| entry & ADDRESS | flags));
    }
    for index in head.chain(tail) {
        let old = memory.read(table, index);
        memory.write(table, index, old & ADDRESS | flags);
    }
}

/// Unmaps the pages of the span.
pub(crate) fn unmap<M: TableMemory>(memory: &mut M, table: Hfn, span: Span) {
    for index in indices(span) {
        memory.write(table, index, 0);
    }
}

/// Maps the pages of the span to consecutive frames from `output` on.
pub(crate) fn map<F: Format, M: TableMemory>(
    memory: &mut M,
    table: Hfn,
    span: Span,
    output: Hfn,
    rights: F::Rights,
) {
    let first = F::leaf(output, Level::Page4K, rights);
    for (index, offset) in indices(span).zip(0_u64..) {
        memory.write(table, index, first + (offset << addr::PAGE_SHIFT));
    }
}
