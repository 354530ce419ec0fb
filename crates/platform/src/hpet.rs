//! An HPET's page: a timer that can write a word of its owner's choice to an address of its owner's
//! choice, meant for interrupts (IA-PC HPET specification 1.0a, 2.3.8 and 2.3.9.2).
//!
//! Each half of a route is judged by itself, so that no mixture of an old half and a new one is ever
//! more than an interrupt; and a route is used only when its address is one by which CPUs are
//! interrupted.

use crate::message::{Source, is_interrupt, is_message_address};
use crate::verdict::{Refusal, Write};

/// Bytes that are decoded.
const DECODED: u64 = 0x400;
/// First of the timers, and bytes of each.
const TIMERS: u64 = 0x100;
const TIMER_BYTES: u64 = 0x20;
/// In a timer: what is written, and where.
const ROUTE_DATA: u64 = 0x10;
const ROUTE_ADDRESS: u64 = 0x14;
/// In its configuration: it writes, where it would have raised a line.
const USES_ROUTE: u32 = 1 << 14;

/// Judges a store; `present` reads the word at an offset.
pub fn judge(offset: u64, size: u8, value: u64, present: impl Fn(u64) -> u32) -> Write {
    let refused = Write::Refuse(Refusal::Message);
    let width = u64::from(size);
    if !matches!(size, 4 | 8) || !offset.is_multiple_of(width) || offset + width > DECODED {
        return refused;
    }
    let words = [value & 0xffff_ffff, value >> 32];
    if size == 4 && words[1] != 0 {
        return refused;
    }
    let mut words = (offset..offset + width).step_by(4).zip(words);
    if words.all(|(at, word)| is_allowed(at, u32::try_from(word).unwrap_or(0), &present)) {
        Write::Pass(value)
    } else {
        refused
    }
}

fn is_allowed(offset: u64, word: u32, present: impl Fn(u64) -> u32) -> bool {
    let Some(in_timers) = offset.checked_sub(TIMERS) else { return true };
    let timer = TIMERS + in_timers / TIMER_BYTES * TIMER_BYTES;
    match in_timers % TIMER_BYTES {
        0 => {
            let address = present(timer + ROUTE_ADDRESS);
            let data = present(timer + ROUTE_DATA);
            word & USES_ROUTE == 0
                || (is_message_address(address) && is_interrupt(data, Source::Device))
        }
        ROUTE_DATA => is_interrupt(word, Source::Device),
        ROUTE_ADDRESS => is_message_address(word),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn put(memory: &mut [u32], offset: u64, size: u8, value: u64) {
        let word = usize::try_from(offset / 4).expect("a page");
        memory[word] = u32::try_from(value & 0xffff_ffff).expect("masked");
        if size == 8 {
            memory[word + 1] = u32::try_from(value >> 32).expect("shifted");
        }
    }

    fn interesting() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            Just(0xfee0_0000_0000_4041),
            Just(0xfee0_1000),
            Just(0x4000),
            Just(0x10_0000_0000_0500),
            0_u64..0x1000,
        ]
    }

    proptest! {
        /// Whatever is written in whatever order, a timer never writes anything but an interrupt.
        #[test]
        fn a_timer_writes_interrupts_only(
            stores in prop::collection::vec((0x100_u64..0x180, any::<bool>(), interesting()), 1..200)
        ) {
            let mut memory: Vec<u32> = std::vec![0; 0x100];
            for (offset, wide, value) in stores {
                let size = if wide { 8 } else { 4 };
                let value = if wide { value } else { value & 0xffff_ffff };
                let read = |at: u64| memory[usize::try_from(at / 4).expect("a page")];
                if let Write::Pass(sent) = judge(offset, size, value, read) {
                    put(&mut memory, offset, size, sent);
                }
                for timer in (0x100..0x180).step_by(0x20) {
                    let read = |at: usize| memory[at / 4];
                    if read(timer) & 1 << 14 != 0 {
                        prop_assert_eq!(read(timer + 0x14) >> 20, 0xfee);
                        prop_assert!([0, 1, 4].contains(&(read(timer + 0x10) >> 8 & 7)));
                    }
                }
            }
        }
    }

    #[test]
    fn a_kernel_sets_its_timers_up() {
        let judged = |offset, size, value| judge(offset, size, value, |_| 0);
        for (offset, size, value) in
            [(0x10, 4, 3), (0xf0, 8, 0), (0x100, 4, 0x13c), (0x108, 4, 99), (0x114, 4, 0xfee0_1000)]
        {
            assert_eq!(judged(offset, size, value), Write::Pass(value));
        }
        for (offset, size, value) in [
            (0x114, 4, 0x10_0000),
            (0x100, 4, 0x4004),
            (0x110, 4, 0x500),
            (0x3fe, 4, 0),
            (0x400, 4, 0),
        ] {
            assert_eq!(judged(offset, size, value), Write::Refuse(Refusal::Message));
        }
    }
}
