//! Tests of the decoder on tables made here.

use super::*;
use crate::fake::{BASE, ERAS, Era, Fake, FakeSymbol, elf, kallsyms};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

fn found(symbols: &Symbols) -> Vec<FakeSymbol> {
    let text = |symbol: Symbol<'_>| [&char::from(symbol.kind).to_string(), symbol.name].concat();
    symbols.iter().map(|symbol| (symbol.address, text(symbol))).collect()
}

fn find(vmlinux: &[u8]) -> Result<Vec<FakeSymbol>, ImageError> {
    Symbols::find(&Image::parse(vmlinux)?).map(|symbols| found(&symbols))
}

#[test]
fn every_layout_is_decoded() {
    for era in ERAS {
        let fake = Fake::new(era);
        assert_eq!(find(&fake.vmlinux()), Ok(fake.all_symbols()), "{era:?}");
    }
}

#[test]
fn per_cpu_symbols_are_absolute() {
    let mut fake = Fake::new(Era::V6_1);
    fake.symbols.push((0x1_2340, "Acurrent_task".to_string()));
    assert_eq!(find(&fake.vmlinux()), Ok(fake.all_symbols()));
}

#[test]
fn names_may_be_long() {
    let mut fake = Fake::new(Era::V6_4);
    for length in [126, 127, 128, 255, 256, 500] {
        fake.symbols.push((BASE + length as u64, ["t", &"x".repeat(length)].concat()));
    }
    assert_eq!(find(&fake.vmlinux()), Ok(fake.all_symbols()));
    fake.symbols.push((BASE, ["t", &"x".repeat(600)].concat()));
    assert!(matches!(find(&fake.vmlinux()), Err(ImageError::NoSymbols(_))));
}

#[test]
fn what_is_missing_is_named() {
    let text = |bytes: &[u8]| find(&elf(&[(BASE, bytes)])).unwrap_err().to_string();
    assert!(text(&[0; 4096]).contains("no token table"));
    let symbols = vec![(BASE, "T_stext".to_string())];
    assert!(text(&kallsyms(Era::V6_4, &symbols, BASE)).contains("no _text"));
    let symbols = vec![(BASE + 0x1000, "T_text".to_string())];
    assert!(text(&kallsyms(Era::V6_4, &symbols, BASE)).contains("where it is linked"));
    let tables = kallsyms(Era::V6_1, &vec![(BASE, "T_text".to_string()); 300], BASE);
    let names = tables.windows(4).position(|window| window == 300_u32.to_le_bytes()).unwrap();
    let mut damaged = tables.clone();
    damaged[names] = 0x2d;
    assert!(text(&damaged).contains("no names"));
}

fn symbols() -> impl Strategy<Value = Vec<FakeSymbol>> {
    let symbol = (0_u64..1 << 24, "[tTdDbBrRwW][a-zA-Z0-9_.$]{1,40}");
    prop::collection::vec(symbol, 0..700).prop_map(|mut symbols| {
        symbols.push((0, "T_text".to_string()));
        symbols.sort_by_key(|&(offset, _)| offset);
        symbols.into_iter().map(|(offset, text)| (BASE + offset, text)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_symbols_come_back(symbols in symbols(), era in prop::sample::select(&ERAS[..]), pages in 0_usize..4) {
        let mut bytes = vec![0xcc; pages * 4096];
        bytes.extend(kallsyms(era, &symbols, BASE + bytes.len() as u64));
        prop_assert_eq!(find(&elf(&[(BASE, &bytes)])), Ok(symbols));
    }

    #[test]
    fn damage_is_no_panic(
        symbols in symbols(),
        era in prop::sample::select(&ERAS[..]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        keep in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = kallsyms(era, &symbols, BASE);
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if cut {
            bytes.truncate(keep.index(bytes.len()));
        }
        if let Ok(found) = find(&elf(&[(BASE, &bytes)])) {
            prop_assert!(found.len() <= bytes.len() / 2);
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(prop::sample::select(&[0_u8, 1, 2, 8, b'T', 255][..]), 0..8192)) {
        let _ = find(&elf(&[(BASE, &bytes)]));
    }
}
