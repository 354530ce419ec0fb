//! Tests of the patch-site tables on images made here.

use super::*;
use crate::fake::{Era, Fake};
use alloc::string::ToString;
use alloc::vec;
use proptest::prelude::*;

fn sites_of(fake: &Fake) -> Result<Vec<Site>, ImageError> {
    let vmlinux = fake.vmlinux();
    let image = Image::parse(&vmlinux)?;
    let symbols = Symbols::find(&image)?;
    let layout = Layout::find(&image, &symbols)?;
    find(&image, &symbols, &layout).map(|(sites, _)| sites)
}

fn reason(fake: &Fake) -> &'static str {
    match sites_of(fake) {
        Err(ImageError::MalformedTable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_form_is_found_in_order() {
    let expected = vec![
        site(0x100, 0x120, SiteKind::JumpLabel, 5),
        site(0x108, 0x120, SiteKind::JumpLabel, 2),
        site(0x110, 0x120, SiteKind::JumpLabel, 2),
        site(0x118, 0x120, SiteKind::JumpLabel, 5),
        site(0x200, 0x1200, SiteKind::StaticCall, 5),
        site(0x208, 0x1200, SiteKind::StaticTailCall, 5),
        site(0x210, 0x1200, SiteKind::StaticConditional, 6),
        site(0x520, 0x300, SiteKind::TracerCall, 5),
        site(0x1200, 0x300, SiteKind::StaticTailCall, 5),
        site(0x1210, 0, SiteKind::StaticTailCall, 5),
        site(0x20_0000, 0x20_0010, SiteKind::JumpLabel, 2),
    ];
    assert_eq!(sites_of(&Fake::new(Era::V6_1)), Ok(expected));
}

#[test]
fn bytes_that_are_no_site_are_errors() {
    let with = |at: usize, byte: u8| {
        let mut fake = Fake::new(Era::V6_1);
        fake.text[at] = byte;
        reason(&fake)
    };
    assert_eq!(with(0x100, 0x48), "it names neither a NOP nor a jump");
    assert_eq!(with(0x111, 0x0f), "the jump it names goes elsewhere");
    assert_eq!(with(0x200, 0x48), "it names neither a call nor a jump");
    assert_eq!(with(0x203, 0x7f), "the function it calls is not in text");
    assert_eq!(with(0x208, 0xe8), "its tail-call flag contradicts the instruction");
    assert_eq!(with(0x1200, 0x90), "it is neither a jump nor a return");
    assert_eq!(with(0x1203, 0x7f), "it jumps out of text");
    assert_eq!(with(0x1211, 0x01), "it is neither a jump nor a return");
}

#[test]
fn tables_that_contradict_themselves_are_errors() {
    let mut fake = Fake::new(Era::V6_1);
    fake.jumps.push((0x100, 0x120));
    assert_eq!(sites_of(&fake).unwrap().len(), 11, "a duplicate counts once");
    fake.jumps.push((0x100, 0x130));
    assert_eq!(reason(&fake), "two sites overlap");
    let mut fake = Fake::new(Era::V6_1);
    fake.jumps[0].1 = 0x1f_ffff;
    assert_eq!(reason(&fake), "its target is not in text");
}

#[test]
fn a_table_must_end_where_an_entry_ends() {
    let mut fake = Fake::new(Era::V6_1);
    fake.calls.clear();
    let stop =
        fake.all_symbols().into_iter().find(|(_, text)| text == "R__stop___jump_table").unwrap();
    // The first symbol of a name counts.
    fake.symbols.push((stop.0 - 8, "R__stop___jump_table".to_string()));
    assert_eq!(reason(&fake), "its length is no multiple of its entry");
    fake.symbols.last_mut().unwrap().0 = 0xffff_ffff_8100_0000;
    assert_eq!(reason(&fake), "its end is not in the image");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_text_and_tables_give_ordered_sites_or_an_error(
        bytes in prop::collection::vec(prop::sample::select(&[0x90_u8, 0x66, 0xe8, 0xe9, 0xeb, 0x0f, 0x84, 0, 1][..]), 0x800),
        jumps in prop::collection::vec((0_u32..0x900, 0_u32..0x900), 0..6),
        calls in prop::collection::vec((0_u32..0x900, 0_u32..4), 0..6),
    ) {
        let mut fake = Fake::new(Era::V6_4);
        fake.text[..0x800].copy_from_slice(&bytes);
        fake.jumps = jumps;
        fake.calls = calls;
        if let Ok(sites) = sites_of(&fake) {
            for pair in sites.windows(2) {
                prop_assert!(pair[0].end() <= u64::from(pair[1].offset));
            }
        }
    }
}
