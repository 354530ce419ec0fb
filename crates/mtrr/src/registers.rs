//! From the registers to ranges.

use crate::{FIXED_BLOCKS, MOST_RANGES, MemoryType, MemoryTypes, MtrrError};
use addr::{Addr, FrameRange, GuestPhysical, PAGE_SIZE};
use arrayvec::ArrayVec;
use x86_defs::msr::{self, mtrr_cap, mtrr_default, mtrr_variable};

/// Pairs of registers between the first variable range and the first fixed one.
const MOST_VARIABLE: u32 = (msr::MTRR_FIXED[0] - msr::MTRR_VARIABLE) / 2;
const _: () = assert!(MOST_VARIABLE as usize == MOST_RANGES);

impl MemoryTypes {
    /// The types that the registers of a CPU give, read by `read`; `None` if they are switched
    /// off. The CPU has such registers (CPUID leaf 1, EDX bit 12), and physical addresses of
    /// `address_bits`, 32 to 52.
    ///
    /// # Errors
    /// The registers are set as no firmware should set them.
    pub fn of_mtrrs(
        mut read: impl FnMut(u32) -> u64,
        address_bits: u32,
    ) -> Result<Option<Self>, MtrrError> {
        let (cap, default) = (read(msr::MTRR_CAP), read(msr::MTRR_DEFAULT));
        if default & mtrr_default::ENABLE == 0 {
            return Ok(None);
        }
        let has_fixed = cap & mtrr_cap::FIXED != 0 && default & mtrr_default::FIXED != 0;
        let count = (cap & mtrr_cap::VARIABLE).to_le_bytes()[0];
        let mut ranges = ArrayVec::new();
        for index in 0..u32::from(count) {
            if index == MOST_VARIABLE {
                return Err(MtrrError::TooMany);
            }
            let base = read(msr::MTRR_VARIABLE + 2 * index);
            let mask = read(msr::MTRR_VARIABLE + 2 * index + 1);
            if mask & mtrr_variable::VALID != 0 {
                let range = range(base, mask, address_bits).ok_or(MtrrError::Holes(index))?;
                ranges
                    .try_push((range, type_of(base & mtrr_variable::TYPE)))
                    .map_err(|_| MtrrError::TooMany)?;
            }
        }
        Ok(Some(Self {
            fixed: has_fixed.then(|| fixed(&mut read)),
            ranges,
            default: type_of(default & mtrr_default::TYPE),
        }))
    }
}

/// The types of the first MiB, block by block.
fn fixed(read: &mut impl FnMut(u32) -> u64) -> [MemoryType; FIXED_BLOCKS] {
    let mut types = [MemoryType::Uncacheable; FIXED_BLOCKS];
    for (eight, register) in types.chunks_mut(8).zip(msr::MTRR_FIXED) {
        for (memory_type, number) in eight.iter_mut().zip(read(register).to_le_bytes()) {
            *memory_type = type_of(u64::from(number));
        }
    }
    types
}

/// The CPU refuses to take reserved types, so that none should be found.
fn type_of(number: u64) -> MemoryType {
    MemoryType::from_number(number).unwrap_or(MemoryType::Uncacheable)
}

/// The frames whose addresses agree with `base` in all bits of `mask`; `None` if they do not lie
/// in one piece. Bits that are missing at the top of the mask only, a known mistake of firmware
/// that was made for fewer address bits, are taken for set.
fn range(base: u64, mask: u64, address_bits: u32) -> Option<FrameRange<GuestPhysical>> {
    let all = (1 << address_bits) - PAGE_SIZE;
    let mask = mask & all;
    let size = if mask == 0 { all + PAGE_SIZE } else { mask & mask.wrapping_neg() };
    let highest = mask.checked_ilog2().map_or(0, |bit| (2_u64 << bit) - 1);
    if mask != !(size - 1) & highest & all {
        return None;
    }
    let start = Addr::new(base & all & !(size - 1));
    Some(FrameRange::with_count(start.frame(), size / PAGE_SIZE))
}
