//! The length of any instruction of 64-bit mode, whatever it does: enough to tell where instructions
//! begin in code that is known to be code.
//!
//! Maps: AMD64 APM volume 3, appendix A; Intel SDM volume 2, appendix A and 2.3.5 (VEX), 2.7 (EVEX).

use crate::MAX_LENGTH;

/// What follows an opcode.
#[derive(Clone, Copy)]
enum Form {
    /// This many bytes of immediate.
    Plain(usize),
    /// A ModRM operand, then this many bytes of immediate.
    ModRm(usize),
    /// A ModRM byte that names two registers, whatever its mode.
    Registers,
    /// `test` with an immediate of this many bytes where the ModRM byte's extension is 0 or 1, else
    /// none.
    Group3(usize),
}

use Form::{Group3, ModRm, Plain, Registers};

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// SIB and displacement behind a ModRM byte (AMD64 APM volume 3, 1.4).
    fn address(&mut self, modrm: u8) -> Option<()> {
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let base = match (mode, rm) {
            (3, _) => return Some(()),
            (_, 4) => self.next()? & 7,
            _ => rm,
        };
        self.at += match mode {
            0 if base == 5 => 4,
            1 => 1,
            2 => 4,
            _ => 0,
        };
        Some(())
    }
}

/// Bytes of the instruction at the start of `bytes`, of which 15 or more should be given. `None`: it
/// is none, is cut short, or is of a kind about which vendors differ (a near branch with an
/// operand-size prefix, XOP, SSE4A, UD0) or that no kernel holds (APX).
pub fn length(bytes: &[u8]) -> Option<u8> {
    let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
    let mut reader = Reader { bytes, at: 0 };
    let (mut narrow, mut short_address, mut repeat, mut rex) = (false, false, false, 0);
    let opcode = loop {
        match reader.next()? {
            0x66 => narrow = true,
            0x67 => short_address = true,
            0xf2 | 0xf3 => repeat = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 => {}
            byte @ 0x40..=0x4f => {
                rex = byte;
                // A REX byte counts only right before the opcode.
                continue;
            }
            opcode => break opcode,
        }
        rex = 0;
    };
    let wide = rex & 8 != 0;
    // "z": never 8 bytes.
    let z = if narrow && !wide { 2 } else { 4 };
    let form = match opcode {
        0xc4 | 0xc5 | 0x62 if narrow || repeat || rex != 0 => return None,
        0xc5 => {
            reader.next()?;
            extended(1, reader.next()?, false)?
        }
        0xc4 => {
            let map = reader.next()? & 0x1f;
            reader.next()?;
            extended(map, reader.next()?, false)?
        }
        0x62 => {
            let map = reader.next()? & 7;
            reader.at += 2;
            extended(map, reader.next()?, true)?
        }
        0x0f => two_byte(&mut reader, narrow, repeat)?,
        // The only operand is an address of 8 bytes, or 4.
        0xa0..=0xa3 => Plain(if short_address { 4 } else { 8 }),
        0xb8..=0xbf if wide => Plain(8),
        // Where vendors agree the distance has 4 bytes.
        0xe8 | 0xe9 if narrow => return None,
        0xe8 | 0xe9 => Plain(4),
        other => one_byte(other, z)?,
    };
    let immediate = match form {
        Plain(immediate) => immediate,
        Registers => {
            reader.next()?;
            0
        }
        ModRm(immediate) => {
            let modrm = reader.next()?;
            // 8F with another extension is XOP.
            (opcode != 0x8f || modrm >> 3 & 7 == 0).then_some(())?;
            reader.address(modrm)?;
            immediate
        }
        Group3(immediate) => {
            let modrm = reader.next()?;
            reader.address(modrm)?;
            if modrm >> 3 & 7 <= 1 { immediate } else { 0 }
        }
    };
    let length = reader.at + immediate;
    if length <= bytes.len() { u8::try_from(length).ok() } else { None }
}

fn one_byte(opcode: u8, z: usize) -> Option<Form> {
    Some(match opcode {
        0x00..=0x3f => match opcode & 7 {
            0..=3 => ModRm(0),
            4 => Plain(1),
            5 => Plain(z),
            // Pushes of segment registers, and decimal arithmetic.
            _ => return None,
        },
        0x50..=0x5f | 0x6c..=0x6f | 0x90..=0x99 | 0x9b..=0x9f => Plain(0),
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe | 0xff => ModRm(0),
        0x68 | 0xa9 | 0xb8..=0xbf => Plain(z),
        0x69 | 0x81 | 0xc7 => ModRm(z),
        0x6a | 0x70..=0x7f | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xe0..=0xe7 | 0xeb => Plain(1),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => ModRm(1),
        0xa4..=0xa7 | 0xaa..=0xaf | 0xc3 | 0xc9 | 0xcb | 0xcc | 0xcf | 0xd7 => Plain(0),
        0xec..=0xef | 0xf1 | 0xf4 | 0xf5 | 0xf8..=0xfd => Plain(0),
        0xc2 | 0xca => Plain(2),
        0xc8 => Plain(3),
        0xf6 => Group3(1),
        0xf7 => Group3(z),
        _ => return None,
    })
}

fn two_byte(reader: &mut Reader<'_>, narrow: bool, repeat: bool) -> Option<Form> {
    Some(match reader.next()? {
        0x38 => {
            reader.next()?;
            ModRm(0)
        }
        0x3a => {
            reader.next()?;
            ModRm(1)
        }
        // SSE4A has these with two immediates.
        0x78 | 0x79 if narrow || repeat => return None,
        0x80..=0x8f if narrow => return None,
        0x80..=0x8f => Plain(4),
        0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x35 | 0x37 | 0x77 => Plain(0),
        0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf => Plain(0),
        0x20..=0x23 => Registers,
        0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => ModRm(1),
        0x04 | 0x0a | 0x0c | 0x24..=0x27 | 0x36 | 0x39 | 0x3b..=0x3f => return None,
        0x7a | 0x7b | 0xa6 | 0xa7 | 0xff => return None,
        _ => ModRm(0),
    })
}

/// An opcode of a VEX or EVEX map.
fn extended(map: u8, opcode: u8, evex: bool) -> Option<Form> {
    Some(match (map, opcode) {
        (1, 0x77) if !evex => Plain(0),
        (1, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) | (3, _) => ModRm(1),
        (1 | 2, _) => ModRm(0),
        (5 | 6, _) if evex => ModRm(0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};
    use proptest::prelude::*;
    use std::vec::Vec;

    fn iced(bytes: &[u8]) -> Option<u8> {
        let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        (!instruction.is_invalid()).then(|| u8::try_from(instruction.len()).unwrap())
    }

    /// What the two say of an instruction that is one must be the same.
    fn agree(bytes: &[u8]) -> Result<(), TestCaseError> {
        if let (Some(own), Some(other)) = (length(bytes), iced(bytes)) {
            prop_assert_eq!(own, other, "{:x?}", bytes);
        }
        Ok(())
    }

    #[test]
    fn every_opcode_of_every_map() {
        let prefixes: [&[u8]; 8] =
            [&[], &[0x66], &[0x48], &[0x66, 0x48], &[0xf3], &[0xf2], &[0x67], &[0x41]];
        let maps: [&[u8]; 6] =
            [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a], &[0xc5, 0xf8], &[0xc4, 0xe2, 0x79]];
        let mut known = 0;
        for (prefix, map) in prefixes.iter().flat_map(|p| maps.iter().map(move |m| (p, m))) {
            for opcode in 0..=u8::MAX {
                for modrm in [0x00, 0x05, 0x0c, 0x44, 0x45, 0x84, 0x88, 0xc0, 0xd1, 0xf8] {
                    let bytes = [*prefix, map, &[opcode, modrm, 0x25], &[0x11; 16]].concat();
                    let bytes = &bytes[..16];
                    agree(bytes).unwrap();
                    known += usize::from(length(bytes).is_some() && iced(bytes).is_some());
                }
            }
        }
        assert!(known > 30_000, "only {known} instructions compared");
    }

    #[test]
    fn compiled_code() {
        // This program itself, at any offset: what both take for an instruction.
        let program = std::fs::read("/proc/self/exe").unwrap();
        let mut compared = 0;
        for window in program.windows(16).step_by(7).take(2_000_000) {
            if let Some(other) = iced(window)
                && let Some(own) = length(window)
            {
                assert_eq!(own, other, "{window:x?}");
                compared += 1;
            }
        }
        assert!(compared > 100_000, "only {compared} instructions compared");
    }

    #[test]
    fn what_is_cut_short_is_none() {
        let whole = [0x48, 0xc7, 0x84, 0x24, 1, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(length(&whole), Some(12));
        for end in 0..whole.len() {
            assert_eq!(length(&whole[..end]), None);
        }
        assert_eq!(length(&[0x66; 16]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 15)) {
            agree(&bytes)?;
        }

        #[test]
        fn what_is_refused_is_refused_on_purpose(bytes in prop::collection::vec(any::<u8>(), 15)) {
            if length(&bytes).is_none() && let Some(other) = iced(&bytes) {
                let rest: Vec<u8> = bytes[..usize::from(other)].to_vec();
                let prefix = |b: &u8| matches!(b, 0x66 | 0x67 | 0xf2 | 0xf3 | 0xf0 | 0x26 | 0x2e
                    | 0x36 | 0x3e | 0x64 | 0x65 | 0x40..=0x4f);
                let opcode: Vec<u8> = rest.iter().copied().skip_while(prefix).take(2).collect();
                let on_purpose = matches!(opcode.as_slice(),
                    [0xe8 | 0xe9, ..] | [0x0f, 0x80..=0x8f | 0x78 | 0x79 | 0xff | 0xa6 | 0xa7]
                    | [0x8f, ..] | [0x62, ..] | [0xc4 | 0xc5, ..]);
                prop_assert!(on_purpose, "{:x?}", rest);
            }
        }
    }
}
