//! An I/O APIC's page: a register that selects, and a window on what is selected (Intel 82093AA, 3.1;
//! ICH9, 13.5).
//!
//! Hardware decodes the low eight bits of an address, so that every register is there sixteen times.

use crate::message::{Source, is_interrupt};
use crate::verdict::{Refusal, Write};

/// Offset of the register that selects.
pub const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// End of interrupt, in newer ones.
const END: u64 = 0x40;
const DECODED: u64 = 0xff;
/// First of the entries, two words each, low ones first.
const ENTRIES: u32 = 0x10;
/// What a writer decides of an entry's low word; delivery status and remote IRR are the hardware's.
const ENTRY_BITS: u64 = 0x1_afff;

/// Judges a store; `selected` reads the register that selects.
pub fn judge(offset: u64, size: u8, value: u64, selected: impl FnOnce() -> u32) -> Write {
    let refused = Write::Refuse(Refusal::Message);
    let is_alias = offset & !DECODED != 0;
    if size != 4 || is_alias || value >> 32 != 0 {
        return refused;
    }
    let word = u32::try_from(value).unwrap_or(u32::MAX);
    match offset {
        SELECT | END => Write::Pass(value & DECODED),
        WINDOW => match selected() & 0xff {
            low if low >= ENTRIES && low.is_multiple_of(2) => {
                if is_interrupt(word, Source::IoApic) {
                    Write::Pass(value & ENTRY_BITS)
                } else {
                    refused
                }
            }
            _ => Write::Pass(value),
        },
        _ => refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_the_hardware_is_what_was_judged() {
        for offset in 0..0x1000_u64 {
            for size in [1, 2, 4, 8] {
                for selected in [0, 0x10, 0x11, 0x3e, 0x110] {
                    for value in [0, 0x500, 0x1_0500, 0x200, 0x600, 0x7fe0_0500, 0x1_0020] {
                        let verdict = judge(offset, size, value, || selected);
                        let Write::Pass(sent) = verdict else { continue };
                        assert_eq!((offset & 0xff, size), (offset, 4));
                        let is_entry = selected & 0xff >= 0x10 && selected & 1 == 0;
                        let sends = offset == 0x10 && is_entry;
                        assert!(!sends || ![2, 3, 5, 6].contains(&(sent >> 8 & 7)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_kernel_sets_its_entries_up() {
        let pass = |offset, value, selected| judge(offset, 4, value, || selected);
        assert_eq!(pass(0x00, 0x12, 0), Write::Pass(0x12));
        assert_eq!(pass(0x10, 0x1_0000, 0x12), Write::Pass(0x1_0000));
        assert_eq!(pass(0x10, 0xffff_ffff, 0x13), Write::Pass(0xffff_ffff));
        assert_eq!(pass(0x10, 0xa921, 0x12), Write::Pass(0xa921));
        assert_eq!(pass(0x10, 0x700, 0x10), Write::Pass(0x700));
        assert_eq!(pass(0x40, 0x21, 0), Write::Pass(0x21));
        assert_eq!(pass(0x10, 0x1_0500, 0x12), Write::Refuse(Refusal::Message));
        assert_eq!(pass(0x110, 0x1_0500, 0x12), Write::Refuse(Refusal::Message));
    }
}
