//! Damaged kernels, one damage after another, at every place that decides something: cut off,
//! numbers at their extremes. The answer is a manifest or an error, never a panic. Random damage is
//! tried by the property tests of each module, memory by `tests/memory.rs`.

use crate::fake::{Era, Fake, bzimage, lz4};
use crate::{ImageError, SymbolTable, inspect, manifest};
use alloc::vec::Vec;

/// Everything that reads a kernel.
fn read(file: &[u8]) -> Result<(), ImageError> {
    let inspected = inspect(file).map(drop);
    match manifest(file) {
        Ok(bytes) => {
            assert!(SymbolTable::from_manifest(&bytes).is_ok());
            inspected
        }
        Err(error) => {
            assert_eq!(inspected, Err(error.clone()));
            Err(error)
        }
    }
}

/// A kernel with everything in it that is read.
fn fake(era: Era) -> Fake {
    let mut fake = Fake::new(era);
    fake.name("system_certificate_list", &[0x30, 0x82, 0, 2, 1, 2]);
    fake.name("system_certificate_list_size", &6_u64.to_le_bytes());
    fake.name("sig_enforce", &[0]);
    fake
}

#[test]
fn a_bzimage_cut_off_anywhere_is_an_error() {
    let file = fake(Era::V6_4).bzimage();
    // The setup code and its header byte by byte, then the payload in steps.
    let places = (0..0x260).chain((0x260..file.len()).step_by(61)).chain([file.len() - 1]);
    for length in places {
        assert!(read(&file[..length]).is_err(), "{length}");
    }
    assert_eq!(read(&file), Ok(()));
}

#[test]
fn fields_of_the_setup_header_at_their_extremes() {
    let good = fake(Era::V6_4).bzimage();
    for (at, length) in [(0x1f1, 1), (0x206, 2), (0x20e, 2), (0x248, 4), (0x24c, 4)] {
        for value in
            [0_u32, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, i32::MAX as u32, u32::MAX - 1, u32::MAX]
        {
            let mut bad = good.clone();
            bad[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
            let _ = read(&bad);
        }
    }
}

#[test]
fn a_vmlinux_cut_off_anywhere_is_no_panic() {
    for era in [Era::V6_1, Era::V7_2] {
        let vmlinux = fake(era).vmlinux();
        let places = (0..0x200).chain((0x200..vmlinux.len()).step_by(97));
        for length in places {
            let _ = read(&bzimage(&lz4(&vmlinux[..length])));
        }
    }
}

#[test]
fn every_number_of_a_vmlinux_at_its_extremes() {
    for era in [Era::V6_1, Era::V7_2] {
        let good = fake(era).vmlinux();
        // Headers; then read-only data with all tables, and the section headers; not the text.
        let tables = 64 + 56 * 3 + 3 + 0x2000;
        let places: Vec<usize> =
            (0..64 + 56 * 3).step_by(2).chain((tables..good.len() - 4).step_by(4)).collect();
        for at in places {
            for value in [0, 1, i32::MAX as u32, 0x8000_0000, u32::MAX] {
                let mut bad = good.clone();
                bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
                let _ = read(&bzimage(&lz4(&bad)));
            }
        }
    }
}
