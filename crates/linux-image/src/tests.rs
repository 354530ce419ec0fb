//! The whole way, from fake bzImages.

use crate::fake::{BASE, ERAS, Era, Fake, bzimage, elf, lz4};
use crate::{ImageError, Summary, SymbolTable, compression, manifest};
use abi::manifest::{Header, Manifest, ManifestError, Span};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

/// Runs `check` on the manifest in memory that is aligned for it.
fn parsed(bytes: &[u8], check: impl FnOnce(&Manifest<'_>)) {
    let mut words = vec![0_u64; bytes.len().div_ceil(8)];
    words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    check(&Manifest::parse(&words.as_bytes()[..bytes.len()]).unwrap());
}

#[test]
fn a_kernel_of_every_era_has_a_manifest() {
    for era in ERAS {
        let file = Fake::new(era).bzimage();
        assert_eq!(compression(&file).unwrap().to_string(), "lz4");
        let bytes = manifest(&file).unwrap();
        parsed(&bytes, |manifest| {
            let header = manifest.header();
            assert_eq!(header.text, Span { start: 0, end: 0x2000 });
            assert_eq!(header.init_text, Span { start: 0x20_0000, end: 0x20_1000 });
            assert_eq!(header.rodata, Span { start: 0x2000, end: 0x10_0000 });
            assert_eq!((header.link_base, header.image_end), (BASE, 0x30_0000));
            assert_eq!((header.entry_syscall, header.return_thunk), (0x80, 0x400));
            assert_eq!(header.return_zero, 0);
            assert!(manifest.belongs_to(file.len() as u64, abi::digest(&file)));
            assert_eq!(manifest.sites().len(), 11);
            assert_eq!(manifest.traced(), [0x300, 0x324]);
            assert_eq!(manifest.faulting(), [0x402, 0x412]);
            let caller = Span { start: 0x500, end: 0x540 };
            assert_eq!(header.tracers, [caller, Span::default()]);
            // A listed function, the part split off it, and the entry code with a listed address.
            let unprobed = [(0x300, 0x310), (0x600, 0x680), (0x700, 0x710)];
            let unprobed = unprobed.map(|(start, end)| Span { start, end });
            assert_eq!(manifest.unprobed(), unprobed);
            assert!(manifest.is_function_entry(0x300) && manifest.is_function_entry(0x320));
            assert!(!manifest.is_function_entry(0x310), "padding is no entry");
            assert!(!manifest.is_function_entry(0x20_0000), "init text is not text");
            let tables = [
                header.sites,
                header.functions,
                header.traced,
                header.faulting,
                header.unprobed,
                header.symbols,
            ];
            assert!(tables.iter().all(|table| table.offset % 4 == 0));
            assert!(tables.is_sorted_by_key(|table| table.offset));
            assert_eq!(header.symbols.offset, header.resident_length);
            assert_eq!(header.symbols.offset + header.symbols.count, header.total_length);
        });
    }
}

#[test]
fn a_summary_counts() {
    let bytes = manifest(&Fake::new(Era::V6_4).bzimage()).unwrap();
    let summary = Summary::from_manifest(&bytes).unwrap();
    assert_eq!(summary.release, "6.1.0-test #1 SMP Test 6.1.1-1 (2026-01-01)");
    assert_eq!((summary.jump_labels, summary.static_calls), (5, 1));
    assert_eq!((summary.static_tail_calls, summary.static_conditionals), (3, 1));
    assert_eq!(summary.symbols, Fake::new(Era::V6_4).all_symbols().len() - 1, "no padding");
    assert_eq!(summary.total_length as usize, bytes.len());
    assert_eq!((summary.tracer_calls, summary.traced), (1, 2));
    assert_eq!((summary.faulting, summary.unprobed), (2, 3));
    // _text (also _stext), entry_SYSCALL_64, first, second, thunk, __fentry__, three of the tracer,
    // two marks of the entry code, first.cold, third, two trampolines.
    assert_eq!(summary.functions, 15);
}

#[test]
fn symbols_are_named() {
    let bytes = manifest(&Fake::new(Era::V6_1).bzimage()).unwrap();
    let symbols = SymbolTable::from_manifest(&bytes).unwrap();
    assert_eq!(symbols.lookup(0x31f), Some(("first", 0x1f)), "padding has no name");
    assert_eq!(symbols.lookup(0x320), Some(("second", 0)));
    assert_eq!(symbols.lookup(0x3ff), Some(("second", 0xdf)));
    assert_eq!(symbols.lookup(0), Some(("_text", 0)));
    assert_eq!(symbols.lookup(0x2f_ffff), Some(("_einittext", 0x2f_ffff - 0x20_0100)));
    assert_eq!(symbols.lookup(0x30_0000), None);
    assert_eq!(symbols.lookup(u64::MAX), None);
    assert_eq!(symbols.find("first"), Some(0x300));
    assert_eq!(symbols.find("nothing"), None);
    assert!(!symbols.is_empty());
}

#[test]
fn what_is_wrong_is_said() {
    let error = |payload: &[u8]| manifest(&bzimage(payload)).unwrap_err().to_string();
    assert_eq!(manifest(b"\x7fELF"), Err(ImageError::NotABzImage));
    assert!(error(b"nothing.").contains("no compression method"));
    assert!(error(&lz4(b"no ELF file")).contains("no x86-64 vmlinux"));
    assert!(error(&lz4(&elf(&[(0x1000, b"low")]))).contains("no segment at a kernel address"));
    assert!(error(&lz4(&elf(&[(BASE, b"no tables")]))).contains("CONFIG_KALLSYMS_ALL"));
    let many = [(BASE, &b"many"[..]); 17];
    assert!(error(&lz4(&elf(&many))).contains("too many segments"));
    let mut fake = Fake::new(Era::V6_1);
    // A second one comes first in the table, and is out of place.
    fake.symbols.push((BASE, "Dentry_SYSCALL_64".to_string()));
    assert!(manifest(&fake.bzimage()).is_ok(), "its place is in text");
    fake.symbols.push((BASE - 1, "D__end_rodata".to_string()));
    assert_eq!(manifest(&fake.bzimage()), Err(ImageError::MissingSymbol("__end_rodata")));
}

#[test]
fn a_damaged_manifest_is_refused() {
    let good = manifest(&Fake::new(Era::V6_1).bzimage()).unwrap();
    let error = |bytes: &[u8]| SymbolTable::from_manifest(bytes).unwrap_err();
    assert_eq!(error(b"short"), ImageError::Manifest(ManifestError::NotAManifest));
    assert_eq!(error(&good[..good.len() - 1]), ImageError::Manifest(ManifestError::Truncated));
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    assert_eq!(error(&bad), ImageError::Manifest(ManifestError::Damaged));
    // With a digest that fits, the symbols themselves are checked.
    let (mut header, _) = Header::read_from_prefix(&good[..]).unwrap();
    header.symbols.count -= 1;
    let mut bad = good.clone();
    bad[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    header.digest = abi::digest(&bad[abi::manifest::UNDIGESTED..]);
    bad[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    assert_eq!(error(&bad), ImageError::Manifest(ManifestError::Malformed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn lookup_agrees_with_a_scan(offsets in prop::collection::vec(0_u64..0x1000, 1..40), at in 0_u64..0x1100) {
        let mut fake = Fake::new(Era::V6_15);
        fake.symbols.extend(offsets.iter().map(|o| (BASE + 0x10_0000 + o, std::format!("d{o}"))));
        let bytes = manifest(&fake.bzimage()).unwrap();
        let symbols = SymbolTable::from_manifest(&bytes).unwrap();
        let at = 0x10_0000 + at;
        let all = fake.all_symbols();
        let nearest = all.iter().map(|(address, _)| address - BASE).filter(|&o| o <= at).max().unwrap();
        let (_, text) = all.iter().find(|(address, _)| address - BASE == nearest).unwrap();
        prop_assert_eq!(symbols.lookup(at), Some((&text[1..], at - nearest)));
    }

    #[test]
    fn a_damaged_kernel_is_no_panic(
        era in prop::sample::select(&ERAS[..]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        header in any::<bool>(),
    ) {
        let mut vmlinux = Fake::new(era).vmlinux();
        let reach = if header { 300 } else { vmlinux.len() };
        for (at, value) in damage {
            let at = at.index(reach);
            vmlinux[at] = value;
        }
        if let Ok(bytes) = manifest(&bzimage(&lz4(&vmlinux))) {
            parsed(&bytes, |_| ());
            prop_assert!(Summary::from_manifest(&bytes).is_ok());
        }
    }

    #[test]
    fn damaged_bytes_are_no_manifest(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut bytes = manifest(&Fake::new(Era::V6_1).bzimage()).unwrap();
        // What precedes the digest is checked field by field, the rest by the digest.
        let at = 24 + at.index(bytes.len() - 24);
        bytes[at] ^= flip;
        prop_assert!(SymbolTable::from_manifest(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let _ = manifest(&bytes);
        let _ = Summary::from_manifest(&bytes);
        let _ = compression(&bytes);
    }
}
