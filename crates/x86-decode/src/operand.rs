//! The ModRM byte and what follows it (AMD64 APM volume 3, section 1.4), and linear addresses.

use crate::cursor::{Cursor, Segment, truncate};
use crate::{Mode, Selector};

const RBX: u8 = 3;
const RSP: u8 = 4;
const RBP: u8 = 5;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// A decoded ModRM byte.
pub(crate) struct ModRm {
    /// The `reg` field with REX.R.
    pub reg: u8,
    /// The `reg` field alone, where it extends the opcode.
    pub extension: u8,
    /// The `rm` field.
    pub rm: Operand,
}

/// What the `rm` field names.
pub(crate) enum Operand {
    /// A general register, 0 to 15.
    Register(u8),
    /// A place in memory.
    Memory(Offset),
}

/// A place in memory, before it is known where the instruction ends.
pub(crate) struct Offset {
    segment: Segment,
    offset: u64,
    /// `offset` counts from the end of the instruction.
    rip_relative: bool,
}

impl Cursor<'_> {
    /// The next bytes as ModRM, SIB and displacement.
    pub fn modrm(&mut self) -> Option<ModRm> {
        let byte = self.byte()?;
        let (mode, extension, rm) = (byte >> 6, byte >> 3 & 7, byte & 7);
        let rm = match (mode, self.address_size()) {
            (3, _) => Operand::Register(rm | self.prefixes.base_high()),
            (_, 2) => Operand::Memory(self.memory16(mode, rm)?),
            _ => Operand::Memory(self.memory(mode, rm)?),
        };
        Some(ModRm { reg: extension | self.prefixes.reg_high(), extension, rm })
    }

    /// The next bytes as a ModRM byte whose `mode` is ignored: two registers.
    pub fn register_pair(&mut self) -> Option<(u8, u8)> {
        let byte = self.byte()?;
        Some((byte >> 3 & 7 | self.prefixes.reg_high(), byte & 7 | self.prefixes.base_high()))
    }

    fn memory(&mut self, mode: u8, rm: u8) -> Option<Offset> {
        let mut rip_relative = false;
        let (base, index) = match (mode, rm) {
            (_, RSP) => self.sib(mode)?,
            (0, RBP) => {
                rip_relative = self.registers.mode == Mode::Bits64;
                (None, 0)
            }
            _ => (Some(rm | self.prefixes.base_high()), 0),
        };
        let displacement = match (mode, base) {
            (1, _) => self.signed(1)?,
            (2, _) | (_, None) => self.signed(4)?,
            _ => 0,
        };
        let start = base.map_or(0, |base| self.gpr(base));
        let segment = if matches!(base, Some(RSP | RBP)) { Segment::Ss } else { Segment::Ds };
        let offset = start.wrapping_add(index).wrapping_add(displacement);
        Some(Offset { segment, offset, rip_relative })
    }

    /// Base register, if any, and scaled index.
    fn sib(&mut self, mode: u8) -> Option<(Option<u8>, u64)> {
        let byte = self.byte()?;
        let index = byte >> 3 & 7 | self.prefixes.index_high();
        let scaled = if index == RSP { 0 } else { self.gpr(index) << (byte >> 6) };
        let base = byte & 7;
        let absent = mode == 0 && base == RBP;
        Some(((!absent).then_some(base | self.prefixes.base_high()), scaled))
    }

    fn memory16(&mut self, mode: u8, rm: u8) -> Option<Offset> {
        let (base, index) = match rm {
            0 => (Some(RBX), Some(RSI)),
            1 => (Some(RBX), Some(RDI)),
            2 => (Some(RBP), Some(RSI)),
            3 => (Some(RBP), Some(RDI)),
            4 => (None, Some(RSI)),
            5 => (None, Some(RDI)),
            6 if mode == 0 => (None, None),
            6 => (Some(RBP), None),
            _ => (Some(RBX), None),
        };
        let displacement = match (mode, base, index) {
            (1, ..) => self.signed(1)?,
            (2, ..) | (_, None, None) => self.signed(2)?,
            _ => 0,
        };
        let value = |register: Option<u8>| register.map_or(0, |register| self.gpr(register));
        let segment = if base == Some(RBP) { Segment::Ss } else { Segment::Ds };
        let offset = value(base).wrapping_add(value(index)).wrapping_add(displacement);
        Some(Offset { segment, offset, rip_relative: false })
    }

    /// The linear address of `place`. To be asked once the whole instruction was read.
    pub fn linear(&self, place: &Offset) -> u64 {
        self.linear_plus(place, 0)
    }

    /// The linear address `distance` bytes after `place`.
    pub fn linear_plus(&self, place: &Offset, distance: u64) -> u64 {
        let start = if place.rip_relative {
            self.registers.rip.wrapping_add(self.length().map_or(0, u64::from))
        } else {
            0
        };
        let offset = start.wrapping_add(place.offset).wrapping_add(distance);
        self.segmented(self.prefixes.segment.unwrap_or(place.segment), offset)
    }

    /// The linear address of `offset` in `segment`.
    pub fn segmented(&self, segment: Segment, offset: u64) -> u64 {
        let offset = truncate(offset, self.address_size());
        let base = self.registers.segment_base.get(segment as usize).copied().unwrap_or(0);
        match (self.registers.mode, segment) {
            (Mode::Bits64, Segment::Fs | Segment::Gs) => base.wrapping_add(offset),
            (Mode::Bits64, _) => offset,
            _ => truncate(base.wrapping_add(offset), 4),
        }
    }

    /// `operand` as 16 bits that are read.
    pub fn selector(&self, operand: &Operand) -> Selector {
        match operand {
            Operand::Register(gpr) => {
                let [low, high, ..] = self.gpr(*gpr).to_le_bytes();
                Selector::Register(u16::from_le_bytes([low, high]))
            }
            Operand::Memory(place) => Selector::Memory(self.linear(place)),
        }
    }
}
