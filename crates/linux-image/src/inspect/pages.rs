//! Pages that Ravelin locks as text although not every byte of them is text.
//!
//! What the sections tell: parts of the last page that follow `_etext`, and sections that are no
//! code but share a page with text. Constants *inside* `.text` cannot be told from instructions
//! in a kernel without debugging information, so they are not listed.

use super::Section;
use crate::layout::Layout;
use alloc::string::String;
use alloc::vec::Vec;

const PAGE: u64 = 4096;

/// Bytes that are no text, in pages that are locked as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPages {
    /// What they are: a section's name, or "after _etext" for bytes of no section but text's own.
    pub what: String,
    /// First such byte, counted from `_text`.
    pub offset: u64,
    /// Number of such bytes.
    pub length: u64,
    /// Number of pages that they touch.
    pub pages: u64,
}

/// All such bytes, by what they are.
pub fn shared(sections: &[Section], layout: &Layout) -> Vec<SharedPages> {
    let locked = layout.outward(layout.text);
    let (start, end) = (u64::from(locked.start), u64::from(locked.end));
    let mut shared = Vec::new();
    let mut add = |what: &str, from: u64, to: u64| {
        let (from, to) = (from.max(start), to.min(end));
        if from < to {
            let pages = to.div_ceil(PAGE) - from / PAGE;
            shared.push(SharedPages { what: what.into(), offset: from, length: to - from, pages });
        }
    };
    let other = |section: &&Section| !section.executable || section.writable;
    for section in sections.iter().filter(other) {
        add(&section.name, section.offset.into(), section.end());
    }
    add("after _etext", layout.text.end.into(), end);
    shared
}

#[cfg(test)]
mod tests {
    use super::*;
    use abi::manifest::Span;
    use alloc::vec;

    #[test]
    fn the_last_page_and_foreign_sections_are_shared() {
        let span = |start, end| Span { start, end };
        let layout = Layout {
            text: span(0, 0x5100),
            init_text: span(0, 0),
            rodata: span(0, 0),
            ro_after_init: span(0, 0),
            image_end: 0x10_0000,
            entry_syscall: 0,
        };
        let section = |name: &str, offset, length, executable| Section {
            name: name.into(),
            offset,
            length,
            writable: false,
            executable,
            in_file: true,
        };
        let sections = [
            section(".text", 0, 0x5100, true),
            section(".tables", 0x5200, 0x3000, false),
            section(".far", 0x9000, 0x3000, false),
        ];
        let expected = vec![
            SharedPages { what: ".tables".into(), offset: 0x5200, length: 0xe00, pages: 1 },
            SharedPages { what: "after _etext".into(), offset: 0x5100, length: 0xf00, pages: 1 },
        ];
        assert_eq!(shared(&sections, &layout), expected);
    }
}
