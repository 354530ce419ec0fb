//! Facts about single places of text that a rule may ask for: where the kernel takes no kprobe,
//! and which instructions may fault.
//!
//! Sources: Linux kernel/kprobes.c (`populate_kprobe_blacklist`, `within_kprobe_blacklist`),
//! include/asm-generic/extable.h and arch/x86/include/asm/extable.h
//! (`struct exception_table_entry`).

use crate::ImageError;
use crate::bytes::u64_at;
use crate::kallsyms::{Symbol, Symbols};
use crate::kernel_table::{KernelTable, malformed, relative};
use crate::layout::Layout;
use crate::vmlinux::Image;
use abi::manifest::Span;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

const BLACKLIST: &str = "kprobe blacklist";
const EXCEPTIONS: &str = "exception table";
const BLACKLIST_ENTRY: usize = 8;
/// Bytes of a `struct exception_table_entry`: s32 instruction, s32 fixup, s32 type and data.
const EXCEPTION_ENTRY: usize = 12;
/// Parts of text that take no kprobe as a whole.
const AREAS: [[&str; 2]; 3] = [
    ["__entry_text_start", "__entry_text_end"],
    ["__kprobes_text_start", "__kprobes_text_end"],
    ["__noinstr_text_start", "__noinstr_text_end"],
];

/// Text in which the kernel accepts no kprobe, ascending and merged. What else the kernel refuses
/// (inside an instruction, at a patch site, at a `ud2` of a warning) follows from other tables.
///
/// # Errors
/// `MissingSymbol`, `MalformedTable`.
pub fn unprobed(
    image: &Image<'_>,
    symbols: &Symbols,
    layout: &Layout,
) -> Result<Vec<Span>, ImageError> {
    let mut spans = Vec::new();
    let mut add = |start: u64, end: u64| {
        let text = layout.text;
        let start = image.offset(start).unwrap_or(0).max(text.start);
        let end = image.offset(end).unwrap_or(text.end).min(text.end);
        if start < end {
            spans.push(Span { start, end });
        }
    };
    for [start, end] in AREAS {
        if let Some(address) = symbols.address_of(start) {
            add(address, symbols.required(end)?);
        }
    }
    let names = ["__start_kprobe_blacklist", "__stop_kprobe_blacklist"];
    let table = KernelTable::find(image, symbols, names, BLACKLIST)?;
    let mut listed = BTreeSet::new();
    for (address, entry) in table.entries(BLACKLIST_ENTRY)? {
        let function = u64_at(entry, 0).filter(|&function| image.offset(function).is_some());
        listed.insert(function.ok_or(malformed(BLACKLIST, address, "it is not in the image"))?);
    }
    // Parts that the compiler split off a listed function ("name.cold") are listed with it.
    let stem = |symbol: &Symbol<'_>| symbol.name.split_once('.').map(|(stem, _)| stem.len());
    let at_listed = |symbol: &Symbol<'_>| listed.contains(&symbol.address);
    let names: BTreeSet<&str> =
        symbols.iter().filter(at_listed).map(|symbol| symbol.name).collect();
    let mut starts: Vec<u64> = symbols.iter().map(|symbol| symbol.address).collect();
    starts.sort_unstable();
    for symbol in symbols.iter().filter(Symbol::is_text) {
        let stem = stem(&symbol).and_then(|length| symbol.name.get(..length));
        if at_listed(&symbol) || stem.is_some_and(|stem| names.contains(stem)) {
            let next = starts.partition_point(|&start| start <= symbol.address);
            add(symbol.address, starts.get(next).copied().unwrap_or(u64::MAX));
        }
    }
    Ok(merged(spans))
}

fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    spans.dedup_by(|next, kept| {
        let touch = next.start <= kept.end;
        if touch {
            kept.end = kept.end.max(next.end);
        }
        touch
    });
    spans
}

/// Instructions of text that may fault, ascending.
///
/// # Errors
/// `MissingSymbol`, `MalformedTable`.
pub fn faulting(
    image: &Image<'_>,
    symbols: &Symbols,
    layout: &Layout,
) -> Result<Vec<u32>, ImageError> {
    let names = ["__start___ex_table", "__stop___ex_table"];
    let table = KernelTable::find(image, symbols, names, EXCEPTIONS)?;
    let mut offsets = Vec::new();
    for (address, entry) in table.entries(EXCEPTION_ENTRY)? {
        let place = relative(address, entry, 0).and_then(|place| image.offset(place));
        let place = place.filter(|&at| at < layout.image_end);
        let place = place.ok_or(malformed(EXCEPTIONS, address, "it is not in the image"))?;
        if layout.text.contains(place.into()) {
            offsets.push(place);
        }
    }
    offsets.sort_unstable();
    offsets.dedup();
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn merging_keeps_every_byte_and_adds_none(
            spans in prop::collection::vec((0_u32..60, 1_u32..9), 0..12),
        ) {
            let spans: Vec<Span> =
                spans.into_iter().map(|(start, length)| Span { start, end: start + length }).collect();
            let merged = merged(spans.clone());
            prop_assert!(merged.windows(2).all(|w| w[0].end < w[1].start));
            let holds = |spans: &[Span], at| spans.iter().any(|span| span.contains(at));
            for at in 0..80 {
                prop_assert_eq!(holds(&spans, at), holds(&merged, at));
            }
        }
    }

    #[test]
    fn nothing_merges_to_nothing() {
        assert_eq!(merged(vec![]), vec![]);
    }
}
