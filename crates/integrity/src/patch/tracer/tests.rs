//! Copies of the model's tracers with one thing changed.

use super::super::model::{
    CALL_AT, COPIES, LOAD_AT, Memory, TEST_AT, TRACERS, copy, manifest_words, tracer,
};
use super::*;
use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::IntoBytes;

fn accepts(index: usize, code: Vec<u8>) -> bool {
    let words = manifest_words();
    let manifest = Manifest::resident(words.as_bytes()).unwrap();
    let mut memory = Memory::new();
    memory.elsewhere = [(COPIES[index], code)].into();
    is_copy(&manifest, Patching::ALL, &mut memory, COPIES[index])
}

/// `code` with the branch at `at` leading to `target`.
fn leading(index: usize, at: usize, target: i64) -> Vec<u8> {
    let mut code = copy(index, COPIES[index]);
    let distance = target - COPIES[index] - i64::try_from(at).unwrap() - 5;
    let distance = i32::try_from(distance).unwrap().to_le_bytes();
    code[at + 1..at + 5].copy_from_slice(&distance);
    code
}

#[test]
fn the_kernels_own_copies_pass() {
    for (index, at) in COPIES.into_iter().enumerate() {
        assert!(accepts(index, copy(index, at)));
        let end = tracer(index).len();
        // A return thunk, and another function.
        for (target, passes) in [(0x20_0000, true), (0x9_1230, true), (0x9_1231, false)] {
            let mut code = leading(index, end, target);
            code[end] = JUMP;
            assert_eq!(accepts(index, code), passes, "{target:#x}");
        }
    }
}

#[test]
fn a_copy_calls_functions_only() {
    for (target, passes) in [(0x40, true), (0x41, false), (0, false), (-0x1000, false)] {
        assert_eq!(accepts(0, leading(0, CALL_AT, target)), passes, "{target:#x}");
    }
}

#[test]
fn the_tracer_itself_and_what_is_cut_off_are_no_copies() {
    // The jump is still in it, and no return behind it.
    assert!(!accepts(1, tracer(1)));
    let mut code = copy(0, COPIES[0]);
    code.truncate(tracer(0).len());
    assert!(!accepts(0, code));
    // Code inside the image is none, even if it is equal.
    let words = manifest_words();
    let manifest = Manifest::resident(words.as_bytes()).unwrap();
    let mut memory = Memory::new();
    memory.elsewhere = [(0x1000, copy(0, 0x1000))].into();
    assert!(!is_copy(&manifest, Patching::ALL, &mut memory, 0x1000));
    assert!(!is_copy(&manifest, Patching::ALL, &mut memory, i64::MAX));
    assert!(!is_copy(&manifest, Patching::ALL, &mut memory, i64::MIN));
}

#[test]
fn only_the_first_load_is_another() {
    let words = manifest_words();
    let manifest = Manifest::resident(words.as_bytes()).unwrap();
    let mut memory = Memory::new();
    let start = TRACERS[0].start as usize + 0x30;
    let load = [0x48, 0x8b, 0x15, 1, 2, 3, 4];
    memory.text[start..start + 7].copy_from_slice(&load);
    memory.elsewhere[0].1[0x30..0x37].copy_from_slice(&load);
    assert!(is_copy(&manifest, Patching::ALL, &mut memory, COPIES[0]));
    memory.elsewhere[0].1[0x34] = 9;
    assert!(!is_copy(&manifest, Patching::ALL, &mut memory, COPIES[0]));
}

#[test]
fn a_field_does_not_hide_the_call() {
    let words = manifest_words();
    let manifest = Manifest::resident(words.as_bytes()).unwrap();
    let mut memory = Memory::new();
    // A first load whose distance the call stands in.
    for code in [&mut memory.text[TRACERS[0].start as usize..], &mut memory.elsewhere[0].1[..]] {
        code[LOAD_AT..LOAD_AT + 3].fill(0x90);
        code[LOAD_AT + 3..LOAD_AT + 7].fill(0x90);
        code[CALL_AT - 4..CALL_AT - 1].copy_from_slice(&LOAD);
    }
    assert!(!is_copy(&manifest, Patching::ALL, &mut memory, COPIES[0]));
}

proptest! {
    /// One byte changed is a copy no more, unless it tells where the passed pointer is, or is behind
    /// the return.
    #[test]
    fn one_byte(index in 0_usize..2, at in any::<prop::sample::Index>(), change in 1_u8..) {
        let mut code = copy(index, COPIES[index]);
        let at = at.index(code.len());
        code[at] ^= change;
        let free = (LOAD_AT + 3..LOAD_AT + 7).contains(&at) || at > tracer(index).len();
        // The functions of the model are further apart than one byte of a distance tells.
        prop_assert_eq!(accepts(index, code), free, "byte {:#x}", at);
    }

    /// Any code passes only if it is that of the tracer outside of the fields.
    #[test]
    fn any_code(index in 0_usize..2, parts in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let mut code = copy(index, COPIES[index]);
        for (at, byte) in parts {
            let at = at.index(code.len());
            code[at] = byte;
        }
        let own = tracer(index);
        let fixed = |at: &usize| {
            let (load, call) = (LOAD_AT + 3..LOAD_AT + 7, CALL_AT + 1..CALL_AT + 5);
            let jump = TEST_AT + 3..TEST_AT + 5;
            !load.contains(at) && !call.contains(at) && (index == 0 || !jump.contains(at))
        };
        let equal = (0..own.len()).filter(fixed).all(|at| own[at] == code[at]);
        if accepts(index, code.clone()) {
            prop_assert!(equal);
            prop_assert!(matches!(code[own.len()], RETURN | JUMP));
        }
    }
}
