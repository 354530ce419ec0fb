//! What BPF's compiler leaves in memory.
//!
//! Linux puts compiled BPF programs into mappings in the module range that are executable from the
//! start and that it writes through an alias (`bpf_prog_pack_alloc`, kernel/bpf/core.c; since 5.18). A
//! mapping is first filled with `int3`; each program in it begins with a `struct bpf_binary_header`, of
//! which only the size is written over that, in multiples of 64 bytes. So the first bytes of such a
//! mapping tell it from a module's text, which begins with an instruction.
//!
//! This recognises what an honest kernel does. Who controls the kernel can make the first bytes what he
//! likes, and with them a module's pages, since modules are not authenticated.

/// Bytes at the start of a mapping that [`is_bpf`] looks at.
pub const LOOKED_AT: usize = 64;
/// The longest program that Linux makes room for, and more.
const LONGEST: u32 = 64 << 20;
const UNIT: u32 = 64;
const FILL: u8 = 0xcc;

/// Whether a mapping that starts with `bytes` is one for BPF programs.
pub fn is_bpf(bytes: &[u8; LOOKED_AT]) -> bool {
    let (size, rest) = match bytes {
        [a, b, c, d, rest @ ..] => (u32::from_le_bytes([*a, *b, *c, *d]), rest),
    };
    let header = size > 0 && size <= LONGEST && size.is_multiple_of(UNIT);
    // Behind the size are four bytes of padding up to the code's alignment.
    let padded = rest.iter().take(4).all(|byte| *byte == FILL);
    // The place of a program that was removed, or of none yet.
    let empty = bytes.iter().all(|byte| *byte == FILL);
    (header && padded) || empty
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn start(size: u32, padding: u8) -> [u8; LOOKED_AT] {
        let mut bytes = [0x90; LOOKED_AT];
        bytes[..4].copy_from_slice(&size.to_le_bytes());
        bytes[4..8].fill(padding);
        bytes
    }

    #[test]
    fn headers_and_room_are_recognised() {
        for size in [64, 128, 4096, 2 << 20, 64 << 20] {
            assert!(is_bpf(&start(size, 0xcc)), "{size}");
            assert!(!is_bpf(&start(size, 0x90)) && !is_bpf(&start(size + 1, 0xcc)), "{size}");
        }
        assert!(is_bpf(&[0xcc; LOOKED_AT]));
        assert!(!is_bpf(&start(0, 0xcc)) && !is_bpf(&start((64 << 20) + 64, 0xcc)));
    }

    #[test]
    fn functions_are_not() {
        // endbr64; the tracer's NOP; push; sub rsp; xor; call; jmp; ret and int3.
        for first in [
            &[0xf3, 0x0f, 0x1e, 0xfa, 0xcc, 0xcc, 0xcc, 0xcc][..],
            &[0x0f, 0x1f, 0x44, 0x00, 0x00, 0x55],
            &[0x55, 0x48, 0x89, 0xe5],
            &[0x48, 0x83, 0xec, 0x40],
            &[0x31, 0xc0, 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc],
            &[0xe8, 0x00, 0x00, 0x00, 0x00],
            &[0xe9, 0x40, 0x00, 0x00, 0x00],
            &[0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc],
        ] {
            let mut bytes = [0xcc; LOOKED_AT];
            bytes[..first.len()].copy_from_slice(first);
            assert!(!is_bpf(&bytes), "{first:x?}");
        }
    }

    proptest! {
        /// Whatever a program's constants are: they come behind the header.
        #[test]
        fn the_code_does_not_matter(units in 1_u32..1000, code: [u8; 32]) {
            let mut bytes = start(units * 64, 0xcc);
            bytes[32..].copy_from_slice(&code);
            prop_assert!(is_bpf(&bytes));
        }
    }
}
