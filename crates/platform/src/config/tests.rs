//! Against what hardware makes of a write: bytes of a configuration space that change.

use super::*;
use crate::chipset::{self, Chipset};
use proptest::prelude::*;

/// The first 256 bytes of a function.
#[derive(Clone)]
struct Space([u8; 256]);

impl Space {
    fn read(&self, offset: u16) -> u32 {
        let at = usize::from(offset);
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    fn write(&mut self, offset: u16, size: u8, value: u64) {
        for (index, byte) in value.to_le_bytes().iter().take(usize::from(size)).enumerate() {
            self.0[usize::from(offset) + index] = *byte;
        }
    }

    /// A device with a base address for ports, and message-signalled interrupts at 0x50.
    fn device(wide: bool) -> Self {
        let mut space = Self([0; 256]);
        space.write(4, 4, 1 << 20);
        space.write(0x10, 4, 0xc001);
        space.write(0x34, 1, 0x40);
        space.write(0x40, 2, 0x5009);
        space.write(0x50, 4, 0x0005 | if wide { 0x80_0000 } else { 0 });
        space
    }

    fn judge(&self, chipset: &Chipset, register: Register, size: u8, value: u64) -> Write {
        let judged = |ports: RangeInclusive<u32>| *ports.start() <= 0xcff && *ports.end() >= 0xcf8;
        judge(chipset, judged, register, size, value, |offset| self.read(offset))
    }
}

const DEVICE: Function = Function::new(0, 3, 0);

fn at(function: Function, offset: u16) -> Register {
    Register { function, offset }
}

#[test]
fn a_selector_selects_what_was_judged() {
    for address in [0x8000_0060_u32, 0x8f00_0063, 0xff00_f844, 0x8001_1a10, 0x0000_0060] {
        let Some(register) = Register::selected(address) else {
            assert_eq!(address >> 31, 0);
            continue;
        };
        assert_eq!(register.selector(), address & 0x80ff_fffc);
        assert_eq!(Register::selected(register.selector()), Some(register));
    }
}

#[test]
fn the_host_bridge_keeps_its_decoding() {
    for chipset in chipset::KNOWN {
        for offset in 0x40..0x100_u16 {
            for size in [1, 2, 4] {
                let judged =
                    Space([0; 256]).judge(chipset, at(Function::new(0, 0, 0), offset), size, 1);
                assert_eq!(judged, Write::Refuse(Refusal::Platform), "{offset:#x} {size}");
                let same =
                    Space([0; 256]).judge(chipset, at(Function::new(0, 0, 0), offset), size, 0);
                let fits = offset % 4 + u16::from(size) <= 4;
                assert_eq!(same, if fits { Write::Done } else { judged });
            }
        }
        // A write that begins before what is guarded and reaches into it.
        for rule in chipset.rules {
            let first = rule.first;
            if first % 4 != 0 && first > 0x40 {
                let judged =
                    Space([0; 256]).judge(chipset, at(rule.function, first & !3), 4, 0xffff_ffff);
                assert_eq!(judged, Write::Refuse(Refusal::Platform), "{first:#x}");
            }
        }
    }
}

#[test]
fn devices_are_set_up() {
    let unknown = &chipset::UNKNOWN;
    for wide in [false, true] {
        let space = Space::device(wide);
        let data = if wide { 0x5c } else { 0x58 };
        for (offset, size, value) in [
            (0x04, 2, 0x507),
            (0x10, 4, 0xffff_ffff),
            (0x10, 4, 0xc041),
            (0x14, 4, 0xfebf_0000),
            (0x3c, 1, 11),
            (0x44, 2, 3),
            (0x52, 2, 1),
            (0x54, 4, 0xfee0_1004),
            (data, 2, 0x4021),
            (0x90, 4, 7),
        ] {
            let judged = space.judge(unknown, at(DEVICE, offset), size, value);
            assert_eq!(judged, Write::Pass(value), "{offset:#x}");
        }
        for (offset, size, value) in [
            (0x54, 4, 0x10_0000),
            (0x57, 1, 0x12),
            (data, 2, 0x500),
            (data + 1, 1, 5),
            (data, 4, 0x200),
        ] {
            let judged = space.judge(unknown, at(DEVICE, offset), size, value);
            assert_eq!(judged, Write::Refuse(Refusal::Message), "{offset:#x}");
        }
        for value in [0xcf9, 0xc01, 0xcf1] {
            let judged = space.judge(unknown, at(DEVICE, 0x10), 4, value);
            assert_eq!(judged, Write::Refuse(Refusal::Platform));
        }
    }
}

#[test]
fn a_list_of_capabilities_without_an_end_ends() {
    let mut space = Space::device(false);
    space.write(0x40, 2, 0x4009);
    let judged = space.judge(&chipset::UNKNOWN, at(DEVICE, 0x54), 4, 1);
    assert_eq!(judged, Write::Pass(1));
}

proptest! {
    /// Whatever is written in whatever pieces, the device's message is an interrupt.
    #[test]
    fn a_message_is_an_interrupt(
        wide: bool,
        writes in prop::collection::vec((0x50_u16..0x60, prop::sample::select(&[1_u8, 2, 4]), any::<u32>()), 1..100)
    ) {
        let mut space = Space::device(wide);
        for (offset, size, value) in writes {
            let value = u64::from(value) & ((1_u64 << (size * 8)) - 1);
            let verdict = space.judge(&chipset::UNKNOWN, at(DEVICE, offset), size, value);
            // The first two words of the capability are read-only, but for the switch.
            if let Write::Pass(sent) = verdict && offset >= 0x54 {
                space.write(offset, size, sent);
            }
            let address = space.read(0x54);
            let data = space.read(if wide { 0x5c } else { 0x58 });
            prop_assert!(address == 0 || address >> 20 == 0xfee);
            prop_assert!([0, 1, 4].contains(&(data >> 8 & 7)));
        }
    }
}
