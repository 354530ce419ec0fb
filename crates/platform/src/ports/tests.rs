//! Against a model of the hardware behind the ports.

use super::*;
use crate::chipset::q35;
use proptest::prelude::*;

fn ports() -> Ports {
    let acpi = Acpi { power: [0x604, 0], off: Some([0, 0]), reset: Some((0xcf9, 0x0f)) };
    Ports::new(&q35::CHIPSET, acpi)
}

fn write(port: u16, size: u8, value: u32) -> Write {
    ports().write(Access { port, size }, value)
}

#[test]
fn rows_are_whole_and_apart() {
    let ports = ports();
    for (index, row) in ports.rows().iter().enumerate() {
        assert!(row.first <= row.last && !row.why.is_empty() && !row.reference.is_empty());
        let later = ports.rows().iter().skip(index + 1);
        assert!(later.into_iter().all(|other| other.first > row.last || row.first > other.last));
    }
    assert_eq!(ports.judged().filter(|port| *port == 0xcf9).count(), 1);
}

#[test]
fn every_way_to_reset_resets() {
    for (port, value) in [
        (0x64, 0xfe),
        (0x64, 0xf0),
        (0x92, 0x01),
        (0x92, 0x03),
        (0xcf9, 0x06),
        (0xcf9, 0x0e),
        (0xcf9, 0x0f),
    ] {
        assert_eq!(write(port, 1, value), Write::Reset, "{port:#x} {value:#x}");
    }
    for (port, value) in [(0x64, 0xff), (0x64, 0x60), (0x64, 0xae), (0xcf9, 0x02), (0x92, 0x02)] {
        assert_eq!(write(port, 1, value), Write::Pass, "{port:#x} {value:#x}");
    }
    for (port, value) in [(0x64, 0xdd), (0x64, 0xd1), (0x64, 0xfd), (0x92, 0x00)] {
        assert_eq!(write(port, 1, value), Write::Refuse, "{port:#x} {value:#x}");
    }
    // A reset register of its own.
    let acpi = Acpi { reset: Some((0x1234, 7)), ..Acpi::default() };
    let mut other = Ports::new(&crate::chipset::UNKNOWN, acpi);
    assert_eq!(other.write(Access { port: 0x1234, size: 1 }, 7), Write::Reset);
    assert_eq!(other.write(Access { port: 0x1234, size: 1 }, 6), Write::Pass);
}

#[test]
fn the_machine_switches_off_and_does_not_sleep() {
    assert_eq!(write(0x604, 2, 0x2000), Write::Pass);
    assert_eq!(write(0x605, 1, 0x20), Write::Pass);
    assert_eq!(write(0x604, 2, 1), Write::Pass);
    for kind in 1..8 {
        assert_eq!(write(0x604, 2, 0x2000 | kind << 10), Write::Refuse);
        assert_eq!(write(0x605, 1, 0x20 | kind << 2), Write::Refuse);
        assert_eq!(write(0x604, 2, kind << 10), Write::Pass, "without the bit it does nothing");
    }
    assert_eq!(write(0x603, 2, 0), Write::Refuse);
    assert_eq!(write(0x603, 4, 0), Write::Refuse);
    assert_eq!(write(0x604, 4, 0x2400), Write::Refuse);
    let unknown = Acpi { power: [0x604, 0x704], ..Acpi::default() };
    let mut ports = Ports::new(&q35::CHIPSET, unknown);
    assert_eq!(ports.write(Access { port: 0x704, size: 2 }, 0x2000), Write::Refuse);
}

#[test]
fn the_firmware_is_never_told_to_go_on_elsewhere() {
    let mut ports = ports();
    let at = |port| Access { port, size: 1 };
    for index in [0x70, 0x72, 0x74, 0x76] {
        assert_eq!(ports.write(at(index), 0x8f), Write::Pass);
        assert_eq!(ports.write(at(index + 1), 0x0a), Write::Done);
        assert_eq!(ports.read(at(index + 1)), Read::Value(0x0a));
        assert_eq!(ports.write(at(index), 0x0e), Write::Pass);
        assert_eq!(ports.write(at(index + 1), 0x0a), Write::Pass);
        assert_eq!(ports.read(at(index + 1)), Read::Pass);
    }
    assert_eq!(ports.write(Access { port: 0x70, size: 2 }, 0x0a0f), Write::Refuse);
}

#[test]
fn configuration_is_reached_by_what_was_selected() {
    let mut ports = ports();
    let address = Access { port: 0xcf8, size: 4 };
    let data = |within: u16, size| Access { port: 0xcfc + within, size };
    assert_eq!(ports.write(data(0, 4), 1), Write::Done, "nothing is selected");
    assert_eq!(ports.write(address, 0x8f00_fa60), Write::Done);
    assert_eq!(ports.read(address), Read::Value(0x8f00_fa60));
    let Write::Config(register) = ports.write(data(2, 2), 5) else { panic!("configuration") };
    assert_eq!((register.function.number(), register.offset), (0xfa, 0x62));
    assert_eq!(ports.read(data(2, 2)), Read::Config(register));
    assert_eq!(ports.read(Access { port: 0xcfe, size: 4 }), Read::Value(u32::MAX));
    assert_eq!(ports.write(Access { port: 0xcfe, size: 4 }, 0), Write::Refuse);
    assert_eq!(
        ports.write(Access { port: 0xcfb, size: 1 }, 1),
        Write::Done,
        "how Linux looks for it"
    );
    assert_eq!(ports.write(Access { port: 0xcf8, size: 2 }, 0x0600), Write::Refuse);
    assert_eq!(ports.write(Access { port: 0xcf9, size: 2 }, 6), Write::Refuse);
}

#[test]
fn the_firmware_does_not_offer_to_write_memory() {
    let mut ports = ports();
    assert_eq!(ports.write(Access { port: 0x510, size: 2 }, 1), Write::Pass);
    let data = Access { port: 0x511, size: 1 };
    assert_eq!(ports.read(data), Read::Without(2));
    assert_eq!(ports.read(data), Read::Pass);
    assert_eq!(ports.write(Access { port: 0x518, size: 4 }, 0x1000), Write::Refuse);
}

proptest! {
    /// No sequence of writes of any width masks address line 20, sends the machine to sleep, resets
    /// it unseen, or selects what was not judged.
    #[test]
    fn nothing_gets_round_the_judgement(
        writes in prop::collection::vec((prop_oneof![
            0x5e_u16..0x7a, 0x8e_u16..0x96, 0xcf0_u16..0xd04, 0x600_u16..0x60a, 0xcd6_u16..0xce0, any::<u16>()
        ], prop::sample::select(&[1_u8, 2, 4]), any::<u32>()), 1..60)
    ) {
        let mut ports = ports();
        let judged: std::vec::Vec<u16> = ports.judged().collect();
        let mut selected = None;
        for (port, size, value) in writes {
            let value = if size == 4 { value } else { value & ((1 << (size * 8)) - 1) };
            let covered = (0..u32::from(size)).map(|at| u32::from(port) + at);
            let exits = covered.clone().any(|at| judged.iter().any(|port| u32::from(*port) == at));
            // What does not exit the guest does by itself.
            let verdict = if exits { ports.write(Access { port, size }, value) } else { Write::Pass };
            if verdict != Write::Pass {
                continue;
            }
            for (at, byte) in covered.zip(value.to_le_bytes()) {
                match at {
                    0x64 => prop_assert!(![0xd1, 0xdd].contains(&byte) && (byte < 0xf0 || byte & 3 == 3)),
                    0x92 => prop_assert_eq!(byte & 3, 2),
                    0xcf9 => prop_assert_eq!(byte & 4, 0),
                    0xcf8 | 0xcfa..=0xcff | 0xe9 | 0x514..=0x51b => prop_assert!(false, "{:#x}", at),
                    0x605 => prop_assert!(byte & 0x20 == 0 || byte >> 2 & 7 == 0),
                    0xcdc => prop_assert_eq!(byte & 0x18, 0),
                    0x70 | 0x72 | 0x74 | 0x76 => selected = Some((at, byte & 0x7f)),
                    0x71 | 0x73 | 0x75 | 0x77 => prop_assert_ne!(selected, Some((at - 1, 0x0f))),
                    _ => {}
                }
            }
        }
    }
}
