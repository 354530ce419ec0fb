//! Trampolines of BPF programs.
//!
//! Where a BPF program is attached to a function (systemd's does so to security hooks), Linux's JIT
//! makes a *trampoline* in a page of the module range, and the function calls that directly in place
//! of the tracer (`__arch_prepare_bpf_trampoline`, arch/x86/net/bpf_jit_comp.c; read: sources from 6.1
//! to a 6.17 or later). Kernels with `DYNAMIC_FTRACE_WITH_JMP` (7.2 has it, 6.12 not) jump there if the
//! trampoline does not call the rest of the function; its head is the same.
//!
//! Its body depends on the function and on the programs, so there is no template for it. What passes
//! here has the head of all of them:
//!
//! - `endbr64`, or none;
//! - `push rbp; mov rbp, rsp; sub rsp, SIZE`, where SIZE is a multiple of 8;
//! - `push rax`, or none;
//! - `push rbx` (before Linux 6.4), or `mov [rbp - DISTANCE], rbx`, inside the frame.
//!
//! The accounting of calls that `retbleed=stuff` puts in front is not known.

use super::Memory;
use abi::manifest::Manifest;

/// Bytes that are read: the longest head, and less than the 64 to which trampolines are aligned, so
/// that they are in one page.
const READ: usize = 32;
/// Largest frame. Linux allows 12 arguments, and takes some more words.
const MOST: i32 = 512;
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
/// `push rbp; mov rbp, rsp`.
const FRAME: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];
const PUSH_RAX: [u8; 1] = [0x50];
const PUSH_RBX: [u8; 1] = [0x53];
/// `sub rsp`, with a byte and with four.
const SUB_RSP: [[u8; 3]; 2] = [[0x48, 0x83, 0xec], [0x48, 0x81, 0xec]];
/// `mov [rbp + DISTANCE], rbx`, with a byte and with four.
const SAVE_RBX: [[u8; 3]; 2] = [[0x48, 0x89, 0x5d], [0x48, 0x89, 0x9d]];

/// Whether the code at `target`, counted from `_text`, begins as a BPF trampoline does, and is outside
/// the image.
pub fn is_trampoline(manifest: &Manifest<'_>, memory: &mut dyn Memory, target: i64) -> bool {
    let mut code = [0; READ];
    let outside = !(0..i64::from(manifest.header().image_end)).contains(&target);
    outside && memory.code(target, &mut code).is_some() && has_head(&code).is_some()
}

fn has_head(code: &[u8]) -> Option<()> {
    let code = code.strip_prefix(&ENDBR64).unwrap_or(code);
    let (size, code) = operand(code.strip_prefix(&FRAME)?, SUB_RSP)?;
    let whole_words = (8..=MOST).contains(&size) && size % 8 == 0;
    whole_words.then_some(())?;
    let code = code.strip_prefix(&PUSH_RAX).unwrap_or(code);
    if code.starts_with(&PUSH_RBX) {
        return Some(());
    }
    let (distance, _) = operand(code, SAVE_RBX)?;
    (-size..0).contains(&distance).then_some(())
}

/// The operand behind one of two forms of an instruction, with a byte and with four, and what follows.
fn operand(code: &[u8], [short, long]: [[u8; 3]; 2]) -> Option<(i32, &[u8])> {
    if let Some(rest) = code.strip_prefix(&short) {
        let (byte, rest) = rest.split_first()?;
        return Some((byte.cast_signed().into(), rest));
    }
    let (bytes, rest) = code.strip_prefix(&long)?.split_first_chunk()?;
    Some((i32::from_le_bytes(*bytes), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::vec::Vec;

    /// Every head for a frame of this size with `rbx` saved at `distance`, written out.
    fn heads(size: u8, distance: u8) -> Vec<Vec<u8>> {
        let mut heads = Vec::new();
        for start in [&[][..], &[0xf3, 0x0f, 0x1e, 0xfa]] {
            for frame in [&[0x48, 0x83, 0xec, size][..], &[0x48, 0x81, 0xec, size, 0, 0, 0]] {
                for rax in [&[][..], &[0x50]] {
                    for save in [
                        &[0x53][..],
                        &[0x48, 0x89, 0x5d, distance],
                        &[0x48, 0x89, 0x9d, distance, 0xff, 0xff, 0xff],
                    ] {
                        let mut head = start.to_vec();
                        head.extend([0x55, 0x48, 0x89, 0xe5]);
                        for part in [frame, rax, save] {
                            head.extend(part);
                        }
                        heads.push(head);
                    }
                }
            }
        }
        heads
    }

    #[test]
    fn every_head_passes_and_no_part_of_one() {
        for head in heads(0x48, 0xc0) {
            assert_eq!(has_head(&head), Some(()), "{head:x?}");
            for length in 0..head.len() {
                assert_eq!(has_head(&head[..length]), None, "{:x?}", &head[..length]);
            }
        }
    }

    #[test]
    fn sizes_and_distances_have_limits() {
        let passes = |size: u8, distance: u8| {
            let save = [0x48, 0x89, 0x5d, distance];
            let head = [&[0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, size], &save[..]].concat();
            has_head(&head).is_some()
        };
        for (size, distance, expected) in [
            (0x48, 0xb8, true),
            (0x48, 0xb7, false),
            (0x48, 0x00, false),
            (0x48, 0x08, false),
            (0x49, 0xc0, false),
            (0x00, 0xff, false),
            (0xf8, 0xff, false),
        ] {
            assert_eq!(passes(size, distance), expected, "{size:x} {distance:x}");
        }
        let long = |size: i32| {
            let [a, b, c, d] = size.to_le_bytes();
            let head = [0x55, 0x48, 0x89, 0xe5, 0x48, 0x81, 0xec, a, b, c, d, 0x53];
            has_head(&head).is_some()
        };
        assert!(long(512));
        assert!([520, i32::MAX, i32::MIN, -8].into_iter().all(|size| !long(size)));
    }

    /// With one byte changed it is refused, or begins with another head.
    #[test]
    fn one_byte() {
        // In all of them the first distance has one byte.
        let short =
            |head: &Vec<u8>| !head.windows(2).any(|w| w == [0x48, 0x81] || w == [0x89, 0x9d]);
        let frames = (8..=120_u8).step_by(8);
        let all: HashSet<Vec<u8>> = frames
            .flat_map(|size| (1..=size).flat_map(move |down| heads(size, down.wrapping_neg())))
            .filter(short)
            .collect();
        for head in heads(0x48, 0xc0).iter().filter(|head| short(head)) {
            for (at, change) in (0..head.len()).flat_map(|at| (1..=u8::MAX).map(move |c| (at, c))) {
                let mut code = head.clone();
                code[at] ^= change;
                let known = (0..=code.len()).any(|length| all.contains(&code[..length]));
                assert_eq!(has_head(&code).is_some(), known, "{code:x?}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes(code in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = has_head(&code);
        }
    }
}
