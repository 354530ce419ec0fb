//! The local APIC's page, and the addresses behind it by which CPUs are interrupted.
//!
//! An allow-list of registers (SDM 3A, table 11-1; APM volume 2, table 16-2). A register takes an
//! aligned store of four bytes at its own offset and nothing else: hardware rounds other offsets, and
//! emulators take a store to the first sixteen bytes for a message.

use crate::message::{Source, is_interrupt};
use crate::verdict::{Refusal, Write};

/// Offset of the register with the APIC's number.
pub const ID: u64 = 0x20;
/// Offset of the command register's low half; writing it sends.
pub const COMMAND: u64 = 0x300;

/// Bits of the command register that a writer decides: vector, delivery, destination mode, level,
/// trigger, shorthand. The delivery status (bit 12) is the hardware's.
const COMMAND_BITS: u64 = 0xc_cfff;

#[derive(Clone, Copy)]
enum Rule {
    /// Any value.
    Free,
    /// Only the value that is there: the hypervisor addresses its own messages by it.
    Constant,
    /// A message that is sent at once.
    Command,
    /// A message that is sent later.
    Vector,
}

/// The registers that may be written: first, last, and what of them; 16 bytes apart.
const REGISTERS: &[(u64, u64, Rule)] = &[
    (ID, ID, Rule::Constant),
    // Task priority.
    (0x80, 0x80, Rule::Free),
    // End of interrupt.
    (0xb0, 0xb0, Rule::Free),
    // Logical destination, its format, spurious vector.
    (0xd0, 0xf0, Rule::Free),
    // Error status.
    (0x280, 0x280, Rule::Free),
    // Corrected machine checks.
    (0x2f0, 0x2f0, Rule::Vector),
    (COMMAND, COMMAND, Rule::Command),
    // Destination of the next command.
    (0x310, 0x310, Rule::Free),
    // Timer, thermal, performance, two pins, errors.
    (0x320, 0x370, Rule::Vector),
    // The timer's count and divisor.
    (0x380, 0x380, Rule::Free),
    (0x3e0, 0x3e0, Rule::Free),
    // AMD: specific end of interrupt; the vectors of threshold interrupts and sampling.
    (0x420, 0x420, Rule::Free),
    (0x500, 0x530, Rule::Vector),
];

/// Judges a store of `size` bytes at `offset` from the start of the window; `present` reads the
/// register at an offset.
pub fn judge(offset: u64, size: u8, value: u64, present: impl Fn(u64) -> u32) -> Write {
    let refused = Write::Refuse(Refusal::Message);
    if size != 4 || !offset.is_multiple_of(16) || value >> 32 != 0 {
        return refused;
    }
    let row = REGISTERS.iter().find(|(first, last, _)| (*first..=*last).contains(&offset));
    let Some((_, _, rule)) = row else { return refused };
    let message = u32::try_from(value).unwrap_or(u32::MAX);
    match rule {
        Rule::Free => Write::Pass(value),
        Rule::Command if is_interrupt(message, Source::Command) => {
            Write::Pass(value & COMMAND_BITS)
        }
        Rule::Vector if is_interrupt(message, Source::Vector) => Write::Pass(value),
        Rule::Constant | Rule::Vector if present(offset) == message => Write::Done,
        Rule::Constant | Rule::Vector | Rule::Command => refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What hardware makes of a store: which register it reaches, if any. Offsets are rounded, and
    /// all that is not a register is a message (QEMU, hw/intc/apic.c).
    fn reached(offset: u64) -> Option<u64> {
        let register = offset & 0xff0;
        (offset < 0x1000 && register != 0).then_some(register)
    }

    fn judged(offset: u64, size: u8, value: u64) -> Write {
        judge(offset, size, value, |_| 0)
    }

    #[test]
    fn what_reaches_the_hardware_is_what_was_judged() {
        for offset in 0..0x1_0000_u64 {
            for size in [1, 2, 4, 8] {
                for value in [0, 0x500, 0x4500, 0x608, 0x200, 0x300, 0x1030, 0xfd, 0x400, 0x1_0700]
                {
                    let Write::Pass(sent) = judged(offset, size, value) else { continue };
                    assert_eq!((reached(offset), size), (Some(offset), 4));
                    let is_message = offset == 0x300 || (0x320..=0x370).contains(&offset);
                    assert!(!is_message || ![2, 3, 5, 6].contains(&(sent >> 8 & 7)));
                    assert!(offset != 0x300 || sent & 1 << 12 == 0, "the status is not sent");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_store_is_a_reset(offset in 0..0x10_0000_u64, size in prop::sample::select(&[1_u8, 2, 4, 8]), value: u64) {
            if let Write::Pass(sent) = judged(offset, size, value) {
                prop_assert_eq!(reached(offset), Some(offset));
                if offset == COMMAND {
                    prop_assert!(![5, 6].contains(&(sent >> 8 & 7)));
                }
            }
        }
    }

    #[test]
    fn a_kernel_sets_its_apic_up() {
        for (offset, value) in [
            (0x80, 0),
            (0xb0, 0),
            (0xd0, 0x100_0000),
            (0xe0, 0xffff_ffff),
            (0xf0, 0x1ff),
            (0x280, 0),
            (0x310, 0x100_0000),
            (0x300, 0x8fd),
            (0x300, 0x400),
            (0x320, 0x200ec),
            (0x340, 0x400),
            (0x350, 0x1_0700),
            (0x360, 0x400),
            (0x370, 0xfe),
            (0x380, 1000),
            (0x3e0, 0xb),
        ] {
            assert_eq!(judged(offset, 4, value), Write::Pass(value), "{offset:#x}");
        }
        assert_eq!(judged(0x300, 4, 0x1030), Write::Pass(0x30));
        assert_eq!(judge(0x20, 4, 3 << 24, |_| 3 << 24), Write::Done);
        assert_eq!(judge(0x330, 4, 0x200, |_| 0x200), Write::Done, "as the firmware left it");
        for (offset, value) in [(0x20, 1 << 24), (0x330, 0x200), (0x300, 0x4500), (0x300, 0x4608)] {
            assert_eq!(judged(offset, 4, value), Write::Refuse(Refusal::Message));
        }
    }
}
