//! The rules for kprobes against a text that was assembled by hand: the model knows where its
//! instructions begin because it put them there.

use super::super::model::{FUNCTIONS, Memory, manifest_words, sites};
use super::*;
use abi::manifest::Manifest;
use proptest::prelude::*;
use std::vec::Vec;
use zerocopy::IntoBytes;

/// Instructions of every length from 1 to 10.
const INSTRUCTIONS: [&[u8]; 12] = [
    &[0x55],
    &[0x66, 0x90],
    &[0x48, 0x89, 0xe5],
    &[0x48, 0x83, 0xec, 0xcc],
    &[0xb8, 0xcc, 0xcc, 0xcc, 0xcc],
    &[0x0f, 0x85, 1, 2, 3, 4],
    &[0x48, 0x8b, 0x05, 0xcc, 0xcc, 0xcc, 0xcc],
    &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    &[0x48, 0xc7, 0xc0, 0xcc, 0, 0, 0],
    &[0x48, 0xb8, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc],
    &[0xc3],
    &[0xcc],
];

struct Model {
    words: Vec<u64>,
    memory: Memory,
    probes: Probes,
    /// Offsets at which instructions begin, ascending, all in the first function.
    starts: Vec<u64>,
    end: u64,
}

impl Model {
    /// A function of these instructions, by index, at the first entry.
    fn new(instructions: &[usize]) -> Self {
        let mut memory = Memory::new();
        let mut starts = Vec::new();
        let mut at = FUNCTIONS[0] as usize;
        for &index in instructions {
            let code = INSTRUCTIONS[index % INSTRUCTIONS.len()];
            memory.text[at..at + code.len()].copy_from_slice(code);
            starts.push(at as u64);
            at += code.len();
        }
        Self { words: manifest_words(), memory, probes: Probes::new(), starts, end: at as u64 }
    }

    fn write(&mut self, allowed: Patching, offset: u64, bytes: &[u8]) -> Result<Legal, Refused> {
        let manifest = Manifest::resident(self.words.as_bytes()).unwrap();
        let legal = self.probes.judge(&manifest, allowed, &self.memory, offset, bytes)?;
        let start = usize::try_from(offset).unwrap();
        self.memory.text[start..start + bytes.len()].copy_from_slice(bytes);
        Ok(legal)
    }
}

#[test]
fn a_probe_is_put_once_and_removed_by_its_own_byte() {
    let mut model = Model::new(&[0, 2, 4, 10]);
    let before = model.memory.text.clone();
    let at = model.starts[2];
    assert_eq!(model.write(Patching::ALL, at, &[0xcc]), Ok(Legal::Probe));
    assert_eq!(model.write(Patching::ALL, at, &[0xcc]), Ok(Legal::Unchanged));
    for byte in (0..=u8::MAX).filter(|byte| ![0xb8, 0xcc].contains(byte)) {
        assert_eq!(model.write(Patching::ALL, at, &[byte]), Err(Refused::IllegalBytes));
    }
    // The instruction behind it still begins where it did, and its own second byte is none.
    assert_eq!(model.write(Patching::ALL, at + 1, &[0xcc]), Err(Refused::InsideInstruction));
    assert_eq!(model.write(Patching::ALL, model.starts[3], &[0xcc]), Ok(Legal::Probe));
    assert_eq!(model.write(Patching::ALL, at, &[0xb8]), Ok(Legal::ProbeRemoved));
    assert_eq!(model.write(Patching::ALL, model.starts[3], &[0xc3]), Ok(Legal::ProbeRemoved));
    assert_eq!(model.memory.text, before);
}

#[test]
fn an_optimised_probe_is_refused() {
    let mut model = Model::new(&[0, 2, 4, 10]);
    let at = model.starts[1];
    model.write(Patching::ALL, at, &[0xcc]).unwrap();
    for bytes in [&[1, 2, 3, 4][..], &[1], &[0xcc, 0xcc]] {
        assert!(model.write(Patching::ALL, at + 1, bytes).is_err());
    }
    assert_eq!(model.write(Patching::ALL, at, &[0xe9]), Err(Refused::IllegalBytes));
}

#[test]
fn a_denied_probe_is_refused() {
    let mut model = Model::new(&[0, 2]);
    let denied = Patching { kprobes: false, ..Patching::ALL };
    assert_eq!(model.write(denied, model.starts[1], &[0xcc]), Err(Refused::Policy));
}

#[test]
fn no_more_than_a_list_of_probes() {
    let mut model = Model::new(&[0; MOST + 1]);
    for at in model.starts.clone().into_iter().take(MOST) {
        assert_eq!(model.write(Patching::ALL, at, &[0xcc]), Ok(Legal::Probe));
    }
    let last = *model.starts.last().unwrap();
    assert_eq!(model.write(Patching::ALL, last, &[0xcc]), Err(Refused::TooMany));
}

#[test]
fn a_breakpoint_at_a_site_hides_no_boundary() {
    // A five-byte site between two instructions, with the first step of a patch made: decoded as it
    // stands, its tail would swallow what comes behind.
    let site = sites().into_iter().find(|site| site.length == 5 && site.kind == 2).unwrap();
    let mut model = Model::new(&[]);
    let entry = FUNCTIONS.into_iter().rfind(|&entry| entry <= site.offset).unwrap();
    let (start, end) = (site.offset as usize, usize::try_from(site.end()).unwrap());
    model.memory.text[entry as usize..start].fill(0x90);
    model.memory.text[start..end].copy_from_slice(&[0xcc, 0x48, 0xb8, 0, 0]);
    model.memory.text[end..end + 20].fill(0x90);
    let too_far = u64::from(site.offset - entry) > LONGEST;
    let expected = if too_far { Err(Refused::InsideInstruction) } else { Ok(Legal::Probe) };
    assert_eq!(model.write(Patching::ALL, site.end(), &[0xcc]), expected);
}

#[test]
fn text_ends_somewhere() {
    let mut model = Model::new(&[]);
    let end = u64::from(super::super::model::TEXT_END);
    assert_eq!(model.write(Patching::ALL, end, &[0xcc]), Err(Refused::NoSite));
    assert_eq!(model.write(Patching::ALL, u64::MAX, &[0xcc]), Err(Refused::NoSite));
    // Before the first function nothing is known.
    assert_eq!(model.write(Patching::ALL, 1, &[0xcc]), Err(Refused::InsideInstruction));
}

proptest! {
    /// Whatever is written: text is what it was but for `int3` at beginnings of instructions, and
    /// there whoever removes them all gets the old text.
    #[test]
    fn accepted_writes_keep_the_invariant(
        instructions in prop::collection::vec(0_usize..12, 1..60),
        writes in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::sample::select(&[0xcc_u8, 0xcc, 0xcc, 0x55, 0x48, 0xb8, 0x0f, 0x66, 0xc3, 0x90][..]), 1_usize..3),
            1..200,
        ),
    ) {
        let mut model = Model::new(&instructions);
        let before = model.memory.text.clone();
        let span = usize::try_from(model.end).unwrap() - FUNCTIONS[0] as usize;
        for (at, byte, length) in writes {
            let offset = u64::from(FUNCTIONS[0]) + at.index(span) as u64;
            let bytes = [byte; 2];
            let begins = model.starts.contains(&offset);
            let probed = model.probes.original(offset).is_some();
            let answer = model.write(Patching::ALL, offset, &bytes[..length]);
            match answer {
                Ok(Legal::Probe) => prop_assert!(begins && byte == 0xcc && length == 1),
                Ok(Legal::ProbeRemoved | Legal::Unchanged) => prop_assert!(probed),
                Ok(other) => prop_assert!(false, "{other:?}"),
                Err(_) => prop_assert!(!(begins && byte == 0xcc && length == 1)),
            }
            let touched = addr::length(offset)..addr::length(offset) + length;
            for at in touched {
                let (now, then) = (model.memory.text[at], before[at]);
                prop_assert!(now == then || (now == 0xcc && model.starts.contains(&(at as u64))));
            }
        }
        for at in model.starts.clone() {
            let original = before[usize::try_from(at).unwrap()];
            if model.probes.original(at).is_some() && original != 0xcc {
                prop_assert_eq!(model.write(Patching::ALL, at, &[original]), Ok(Legal::ProbeRemoved));
            }
        }
        prop_assert_eq!(&model.memory.text, &before);
    }
}
