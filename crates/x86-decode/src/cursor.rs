//! Reads an instruction front to back: prefixes first, then one field after the other.
//!
//! The prefixes are complete when a [`Cursor`] exists, and every read past the end of the bytes or
//! past [`MAX_LENGTH`] gives `None`.

use crate::{MAX_LENGTH, Mode, Registers};

/// Index into [`Registers::segment_base`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// Everything that may stand before an opcode.
#[derive(Clone, Copy, Default)]
pub(crate) struct Prefixes {
    /// 66.
    pub operand_size: bool,
    /// 67.
    pub address_size: bool,
    /// F0.
    pub lock: bool,
    /// F2 or F3.
    pub repeat: bool,
    /// The last segment override that has an effect.
    pub segment: Option<Segment>,
    /// The REX byte; 0 without.
    pub rex: u8,
}

impl Prefixes {
    /// REX.W: 64-bit operands.
    pub const fn wide(self) -> bool {
        self.rex & 8 != 0
    }
    /// REX.R: bit 3 of the ModRM `reg` field.
    pub const fn reg_high(self) -> u8 {
        (self.rex & 4) << 1
    }
    /// REX.X: bit 3 of the SIB `index` field.
    pub const fn index_high(self) -> u8 {
        (self.rex & 2) << 2
    }
    /// REX.B: bit 3 of the ModRM `rm` or SIB `base` field.
    pub const fn base_high(self) -> u8 {
        (self.rex & 1) << 3
    }
}

/// A position in an instruction whose prefixes were read.
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    pub registers: &'a Registers,
    pub prefixes: Prefixes,
}

impl<'a> Cursor<'a> {
    /// Reads the prefixes.
    pub fn new(bytes: &'a [u8], registers: &'a Registers) -> Option<Self> {
        let bytes = bytes.get(..MAX_LENGTH).unwrap_or(bytes);
        let mut cursor = Self { bytes, at: 0, registers, prefixes: Prefixes::default() };
        cursor.read_prefixes()?;
        Some(cursor)
    }

    fn read_prefixes(&mut self) -> Option<()> {
        let long = self.registers.mode == Mode::Bits64;
        loop {
            let byte = *self.bytes.get(self.at)?;
            // A REX byte counts only right before the opcode.
            let rex = core::mem::take(&mut self.prefixes.rex);
            match byte {
                0x26 => self.override_segment(Segment::Es),
                0x2e => self.override_segment(Segment::Cs),
                0x36 => self.override_segment(Segment::Ss),
                0x3e => self.override_segment(Segment::Ds),
                0x64 => self.override_segment(Segment::Fs),
                0x65 => self.override_segment(Segment::Gs),
                0x66 => self.prefixes.operand_size = true,
                0x67 => self.prefixes.address_size = true,
                0xf0 => self.prefixes.lock = true,
                0xf2 | 0xf3 => self.prefixes.repeat = true,
                0x40..=0x4f if long => self.prefixes.rex = byte,
                _ => {
                    self.prefixes.rex = rex;
                    return Some(());
                }
            }
            self.at += 1;
        }
    }

    fn override_segment(&mut self, segment: Segment) {
        let ignored =
            self.registers.mode == Mode::Bits64 && !matches!(segment, Segment::Fs | Segment::Gs);
        if !ignored {
            self.prefixes.segment = Some(segment);
        }
    }

    /// The next byte.
    pub fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    /// The next `size` bytes (at most 8) as a little-endian number.
    pub fn unsigned(&mut self, size: u8) -> Option<u64> {
        let mut number = [0; 8];
        for byte in number.get_mut(..usize::from(size))? {
            *byte = self.byte()?;
        }
        Some(u64::from_le_bytes(number))
    }

    /// The next `size` bytes (1 to 8) as a little-endian number, its sign extended to 64 bits.
    pub fn signed(&mut self, size: u8) -> Option<u64> {
        self.unsigned(size).map(|number| sign_extend(number, size))
    }

    /// Bytes read so far.
    pub fn length(&self) -> Option<u8> {
        u8::try_from(self.at).ok()
    }

    /// Bytes of an operand that is not a byte: 2, 4 or 8.
    pub fn operand_size(&self) -> u8 {
        let short = self.prefixes.operand_size != (self.registers.mode == Mode::Bits16);
        match (self.prefixes.wide(), short) {
            (true, _) => 8,
            (false, true) => 2,
            (false, false) => 4,
        }
    }

    /// Bytes of an offset in a segment: 2, 4 or 8.
    pub fn address_size(&self) -> u8 {
        match (self.registers.mode, self.prefixes.address_size) {
            (Mode::Bits64, false) => 8,
            (Mode::Bits64, true) | (Mode::Bits32, false) | (Mode::Bits16, true) => 4,
            (Mode::Bits32, true) | (Mode::Bits16, false) => 2,
        }
    }

    /// General register `index` (0 to 15), whole.
    pub fn gpr(&self, index: u8) -> u64 {
        self.registers.gpr.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// The low `size` bytes of general register `index` as an operand of that size. Without REX,
    /// byte registers 4 to 7 are ah, ch, dh, bh.
    pub fn gpr_operand(&self, index: u8, size: u8) -> u64 {
        if size == 1 && self.prefixes.rex == 0 && index >= 4 {
            return truncate(self.gpr(index - 4) >> 8, 1);
        }
        truncate(self.gpr(index), size)
    }
}

/// The low `size` bytes (1 to 8) of `number`.
pub(crate) const fn truncate(number: u64, size: u8) -> u64 {
    number & (u64::MAX >> (64 - 8 * size as u32))
}

/// The low `size` bytes (1 to 8) of `number`, its sign extended to 64 bits.
pub(crate) const fn sign_extend(number: u64, size: u8) -> u64 {
    let unused = 64 - 8 * size as u32;
    ((number << unused).cast_signed() >> unused).cast_unsigned()
}
