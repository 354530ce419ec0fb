//! Tests of the function tracer's tables on images made here.

use super::*;
use crate::fake::{BASE, Era, Fake};
use alloc::vec;
use proptest::prelude::*;

fn trace_of(fake: &Fake) -> Result<Trace, ImageError> {
    let vmlinux = fake.vmlinux();
    let image = Image::parse(&vmlinux)?;
    let symbols = Symbols::find(&image)?;
    let layout = Layout::find(&image, &symbols)?;
    Trace::find(&image, &symbols, &layout)
}

fn reason(fake: &Fake) -> &'static str {
    match trace_of(fake) {
        Err(ImageError::MalformedTable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn without(prefix: &str) -> Fake {
    let mut fake = Fake::new(Era::V6_4);
    fake.symbols.retain(|(_, text)| !text[1..].starts_with(prefix));
    fake
}

#[test]
fn places_outside_text_are_left_out() {
    let trace = trace_of(&Fake::new(Era::V6_4)).unwrap();
    assert_eq!(trace.traced, [0x300, 0x324]);
    assert_eq!(trace.calls, [site(0x520, 0x300, SiteKind::TracerCall, 5)]);
}

#[test]
fn a_kernel_without_a_tracer_has_nothing() {
    let trace = trace_of(&without("ftrace_")).unwrap();
    assert_eq!((trace.calls, trace.tracers), (vec![], [Span::default(); 2]));
    let mut fake = Fake::new(Era::V6_4);
    fake.traced.clear();
    let trace = trace_of(&fake).unwrap();
    assert!(trace.traced.is_empty() && trace.calls.is_empty());
}

#[test]
fn what_cannot_be_traced_is_an_error() {
    let with = |at: usize, byte: u8| {
        let mut fake = Fake::new(Era::V6_4);
        fake.text[at] = byte;
        reason(&fake)
    };
    let no_place = "it names no place that can be traced";
    assert_eq!(with(0x300, 0x48), no_place);
    assert_eq!(with(0x325, 0x58), no_place, "a call, but not of __fentry__");
    assert_eq!(with(0x520, 0xe9), "its call does not call a function");
    assert_eq!(with(0x523, 0x7f), "its call does not call a function");
    assert_eq!(reason(&without("__fentry__")), no_place);
}

#[test]
fn a_tracer_must_be_whole() {
    let missing = |name| trace_of(&without(name)).unwrap_err();
    assert_eq!(missing("ftrace_caller_end"), ImageError::MissingSymbol("ftrace_caller_end"));
    let mut fake = Fake::new(Era::V6_4);
    let call = fake.symbols.iter_mut().find(|(_, text)| text == "Tftrace_call").unwrap();
    call.0 = BASE + 0x540;
    fake.symbols.sort_by_key(|&(address, _)| address);
    assert_eq!(reason(&fake), "its call is not inside it");
}

#[test]
fn places_do_not_overlap() {
    let mut fake = Fake::new(Era::V6_4);
    fake.traced.push(BASE + 0x300);
    assert_eq!(trace_of(&fake).unwrap().traced.len(), 2, "a duplicate counts once");
    // The last two bytes of one NOP are the first of another.
    fake.text[0x303..0x308].copy_from_slice(&[0x0f, 0x1f, 0x44, 0, 0]);
    fake.text[0x300..0x305].copy_from_slice(&[0xe8, 0x7b, 1, 0x0f, 0x1f]);
    fake.traced = vec![BASE + 0x303];
    assert_eq!(trace_of(&fake).unwrap().traced, [0x303]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_table_gives_places_apart_or_an_error(
        places in prop::collection::vec(0_u64..0x40, 0..8),
        nops in prop::collection::vec(0_usize..0x40, 0..12),
    ) {
        let mut fake = Fake::new(Era::V7_2);
        for at in nops {
            fake.text[0x800 + at..0x805 + at].copy_from_slice(&[0x0f, 0x1f, 0x44, 0, 0]);
        }
        fake.traced = places.iter().map(|at| BASE + 0x800 + at).collect();
        if let Ok(trace) = trace_of(&fake) {
            for pair in trace.traced.windows(2) {
                prop_assert!(pair[0] + TRACED_LENGTH <= pair[1]);
            }
            for at in places {
                prop_assert!(trace.traced.iter().any(|&offset| u64::from(offset) == 0x800 + at));
            }
        }
    }
}
