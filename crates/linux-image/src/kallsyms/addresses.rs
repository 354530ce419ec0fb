//! The addresses: one `s32` per symbol, in one of three encodings over the years. The encoding is
//! not declared anywhere; it is the one that puts `_text` where the ELF file has it.

use super::{Names, Tokens};
use crate::bytes::{i32_at, u64_at};
use crate::vmlinux::Segment;
use alloc::vec::Vec;

/// Bytes of the relative base.
const BASE_LENGTH: usize = 8;

/// How an offset makes an address.
#[derive(Clone, Copy, Debug)]
enum Encoding {
    /// Before 6.15, with SMP: not negative is absolute, negative counts down from base - 1.
    AbsolutePerCpu { base: u64 },
    /// 6.15 to 6.19, or without SMP: unsigned, from the base up.
    Relative { base: u64 },
    /// From 7.0: from the place of the offset itself.
    Place,
}

/// Decodes the addresses of all symbols. `known` is the number and address of one of them.
pub fn find(
    segment: &Segment<'_>,
    names: &Names<'_>,
    tokens: &Tokens<'_>,
    known: (usize, u64),
) -> Option<Vec<u64>> {
    let length = (names.count * 4).next_multiple_of(names.alignment);
    let before = names.start.checked_sub(BASE_LENGTH).and_then(|base| {
        let offsets = base.checked_sub(length)?;
        Some((offsets, base))
    });
    let behind = Some((tokens.end, tokens.end + length));
    [before, behind].into_iter().flatten().find_map(|(offsets, base)| {
        let base = u64_at(segment.bytes, base);
        let encodings = [
            base.map(|base| Encoding::AbsolutePerCpu { base }),
            base.map(|base| Encoding::Relative { base }),
            Some(Encoding::Place),
        ];
        let table = Offsets { segment, position: offsets };
        let encoding = encodings
            .into_iter()
            .flatten()
            .find(|&encoding| table.address(known.0, encoding) == Some(known.1))?;
        (0..names.count).map(|number| table.address(number, encoding)).collect()
    })
}

struct Offsets<'a> {
    segment: &'a Segment<'a>,
    position: usize,
}

impl Offsets<'_> {
    fn address(&self, number: usize, encoding: Encoding) -> Option<u64> {
        let position = self.position + number * 4;
        let offset = i32_at(self.segment.bytes, position)?;
        let wide = i64::from(offset);
        Some(match encoding {
            Encoding::AbsolutePerCpu { .. } if offset >= 0 => u64::from(offset.cast_unsigned()),
            Encoding::AbsolutePerCpu { base } => base.wrapping_sub(1).wrapping_add_signed(-wide),
            Encoding::Relative { base } => base.wrapping_add(u64::from(offset.cast_unsigned())),
            Encoding::Place => {
                self.segment.address.wrapping_add(position as u64).wrapping_add_signed(wide)
            }
        })
    }
}
