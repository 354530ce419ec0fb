//! The opcode maps: which instructions are known, and how each is read.
//!
//! Prefixes that would make an instruction another one, or invalid, are refused in the arm of the
//! opcode; a lock prefix is legal on [`Operation::ReadModifyWrite`] only.

use crate::cursor::{Cursor, Segment, sign_extend, truncate};
use crate::operand::{Offset, Operand};
use crate::{Destination, Mode, Operation, SimpleOp, Table};

/// Reads opcode and operands.
pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Option<Operation> {
    let opcode = cursor.byte()?;
    // Even opcodes work on bytes, odd ones on words.
    let size = if opcode & 1 == 0 { 1 } else { cursor.operand_size() };
    let operation = match opcode {
        0x0f => two_byte(cursor)?,
        // add, or, adc, sbb, and, sub, xor m, r; the eighth is cmp, which writes nothing.
        0x00..=0x37 if opcode & 7 <= 1 => modify_by_register(cursor, size)?,
        0x38 | 0x39 => load(cursor, size)?,
        // The same r, m.
        0x00..=0x3f if matches!(opcode & 7, 2 | 3) => load(cursor, size)?,
        // The same m, immediate.
        0x80 | 0x81 => arithmetic(cursor, size, size.min(4))?,
        0x83 => arithmetic(cursor, size, 1)?,
        0x82 if cursor.registers.mode != Mode::Bits64 => arithmetic(cursor, size, 1)?,
        // movsxd; arpl outside 64-bit mode. Vendors differ about the 16-bit form.
        0x63 if cursor.registers.mode == Mode::Bits64 && size != 2 => load(cursor, 4)?,
        // test m, r.
        0x84 | 0x85 => load(cursor, size)?,
        // xchg m, r.
        0x86 | 0x87 => modify_by_register(cursor, size)?,
        // mov m, r.
        0x88 | 0x89 => {
            let (register, place) = register_and_memory(cursor)?;
            store(cursor, &place, size, cursor.gpr_operand(register, size))
        }
        // mov r, m.
        0x8a | 0x8b => load(cursor, size)?,
        // mov accumulator, m; mov m, accumulator.
        0xa0..=0xa3 => {
            let offset = cursor.unsigned(cursor.address_size())?;
            let segment = cursor.prefixes.segment.unwrap_or(Segment::Ds);
            let address = cursor.segmented(segment, offset);
            if opcode < 0xa2 {
                Operation::Load { address, size }
            } else {
                Operation::Store { address, size, value: cursor.gpr_operand(0, size) }
            }
        }
        // movs, stos.
        0xa4 | 0xa5 | 0xaa | 0xab => string(cursor, size, opcode < 0xa8)?,
        // Shifts and rotations by an immediate, by 1, by cl; they take no lock prefix.
        0xc0 | 0xc1 | 0xd0..=0xd3 if cursor.prefixes.lock => return None,
        0xc0 | 0xc1 => modify(cursor, size, 0..=7, 1)?,
        0xd0..=0xd3 => modify(cursor, size, 0..=7, 0)?,
        // mov m, immediate.
        0xc6 | 0xc7 => {
            let modrm = cursor.modrm()?;
            let (0, Operand::Memory(place)) = (modrm.extension, modrm.rm) else { return None };
            let value = cursor.signed(size.min(4))?;
            store(cursor, &place, size, value)
        }
        0xf4 => simple(cursor, SimpleOp::Halt)?,
        0xf6 | 0xf7 => test_or_negate(cursor, size)?,
        // inc, dec.
        0xfe | 0xff => modify(cursor, size, 0..=1, 0)?,
        _ => return None,
    };
    let lockable = matches!(operation, Operation::ReadModifyWrite { .. });
    (lockable || !cursor.prefixes.lock).then_some(operation)
}

fn two_byte(cursor: &mut Cursor<'_>) -> Option<Operation> {
    let opcode = cursor.byte()?;
    let size = if opcode & 1 == 0 { 1 } else { cursor.operand_size() };
    Some(match opcode {
        0x00 => group_0f00(cursor)?,
        0x01 => group_0f01(cursor)?,
        0x06 => unprefixed(cursor).then_some(Operation::ClearTaskSwitched)?,
        0x08 => simple(cursor, SimpleOp::Invd)?,
        0x09 => simple(cursor, SimpleOp::Wbinvd)?,
        0x20 | 0x22 => {
            let (register, gpr) = cursor.register_pair()?;
            if !matches!(register, 0 | 2 | 3 | 4 | 8) || !unprefixed(cursor) {
                return None;
            }
            if opcode == 0x20 {
                Operation::MoveFromControl { register, gpr }
            } else {
                Operation::MoveToControl { register, gpr }
            }
        }
        0x30 => simple(cursor, SimpleOp::WriteMsr)?,
        0x31 => simple(cursor, SimpleOp::ReadTsc)?,
        0x32 => simple(cursor, SimpleOp::ReadMsr)?,
        0x33 => simple(cursor, SimpleOp::ReadPmc)?,
        0xa2 => simple(cursor, SimpleOp::Cpuid)?,
        // bts, btr, btc m, r.
        0xab | 0xb3 | 0xbb => modify_bit(cursor)?,
        // bts, btr, btc m, immediate; /4 is bt.
        0xba => {
            let size = cursor.operand_size();
            modify(cursor, size, 5..=7, 1)?
        }
        // movzx, movsx r, m8; r, m16.
        0xb6 | 0xbe => load(cursor, 1)?,
        0xb7 | 0xbf => load(cursor, 2)?,
        // cmpxchg, xadd m, r.
        0xb0 | 0xb1 | 0xc0 | 0xc1 => modify_by_register(cursor, size)?,
        // movnti; it has no 16-bit form.
        0xc3 => {
            let (register, place) = register_and_memory(cursor)?;
            unprefixed(cursor).then_some(())?;
            let size = if cursor.prefixes.wide() { 8 } else { 4 };
            store(cursor, &place, size, cursor.gpr_operand(register, size))
        }
        // cmpxchg8b, cmpxchg16b.
        0xc7 => {
            let size = if cursor.prefixes.wide() { 16 } else { 8 };
            modify(cursor, size, 1..=1, 0)?
        }
        _ => return None,
    })
}

/// 0F 00: the registers that hold a selector.
fn group_0f00(cursor: &mut Cursor<'_>) -> Option<Operation> {
    let modrm = cursor.modrm()?;
    let table = if modrm.extension & 1 == 0 { Table::Ldtr } else { Table::Tr };
    unrepeated(cursor).then_some(())?;
    match modrm.extension {
        0 | 1 => {
            let destination = match modrm.rm {
                Operand::Register(gpr) => {
                    Destination::Register { gpr, size: cursor.operand_size() }
                }
                Operand::Memory(place) => Destination::Memory(cursor.linear(&place)),
            };
            Some(Operation::StoreTable { table, destination })
        }
        2 | 3 => Some(Operation::LoadSelector { table, selector: cursor.selector(&modrm.rm) }),
        _ => None,
    }
}

/// 0F 01: the registers that hold a base and a limit, `lmsw`, and instructions that use a ModRM
/// byte with two registers as a third opcode byte.
fn group_0f01(cursor: &mut Cursor<'_>) -> Option<Operation> {
    let modrm = cursor.modrm()?;
    if modrm.extension == 6 {
        unrepeated(cursor).then_some(())?;
        return Some(Operation::LoadMachineStatus { value: cursor.selector(&modrm.rm) });
    }
    match modrm.rm {
        Operand::Memory(place) => {
            let table = if modrm.extension & 1 == 0 { Table::Gdtr } else { Table::Idtr };
            let whole_base = match cursor.registers.mode {
                Mode::Bits64 => unprefixed(cursor),
                _ => unrepeated(cursor) && cursor.operand_size() == 4,
            };
            let address = cursor.linear(&place);
            match modrm.extension {
                _ if !whole_base => None,
                0 | 1 => {
                    let destination = Destination::Memory(address);
                    Some(Operation::StoreTable { table, destination })
                }
                2 | 3 => Some(Operation::LoadTable { table, address }),
                _ => None,
            }
        }
        Operand::Register(rm) => {
            let operation = match (modrm.extension, rm & 7) {
                (0, 1) => SimpleOp::Vmcall,
                (1, 0) => SimpleOp::Monitor,
                (1, 1) => SimpleOp::Mwait,
                (2, 1) => SimpleOp::Xsetbv,
                (3, 0) => SimpleOp::Vmrun,
                (3, 1) => SimpleOp::Vmmcall,
                (3, 2) => SimpleOp::Vmload,
                (3, 3) => SimpleOp::Vmsave,
                (3, 4) => SimpleOp::Stgi,
                (3, 5) => SimpleOp::Clgi,
                (3, 6) => SimpleOp::Skinit,
                (3, 7) => SimpleOp::Invlpga,
                (7, 1) => SimpleOp::ReadTscp,
                _ => return None,
            };
            simple(cursor, operation)
        }
    }
}

/// Whether none of 66, F0, F2, F3 is there: they select another instruction, or none.
fn unprefixed(cursor: &Cursor<'_>) -> bool {
    unrepeated(cursor) && !cursor.prefixes.operand_size
}

/// Whether none of F0, F2, F3 is there.
fn unrepeated(cursor: &Cursor<'_>) -> bool {
    !cursor.prefixes.repeat && !cursor.prefixes.lock
}

fn simple(cursor: &Cursor<'_>, operation: SimpleOp) -> Option<Operation> {
    unprefixed(cursor).then_some(Operation::Simple(operation))
}

fn store(cursor: &Cursor<'_>, place: &Offset, size: u8, value: u64) -> Operation {
    Operation::Store { address: cursor.linear(place), size, value: truncate(value, size) }
}

/// ModRM with a memory operand; gives its `reg` field too.
fn register_and_memory(cursor: &mut Cursor<'_>) -> Option<(u8, Offset)> {
    let modrm = cursor.modrm()?;
    match modrm.rm {
        Operand::Memory(place) => Some((modrm.reg, place)),
        Operand::Register(_) => None,
    }
}

/// ModRM with a memory operand, which is read.
fn load(cursor: &mut Cursor<'_>, size: u8) -> Option<Operation> {
    let (_, place) = register_and_memory(cursor)?;
    Some(Operation::Load { address: cursor.linear(&place), size })
}

fn modify_by_register(cursor: &mut Cursor<'_>, size: u8) -> Option<Operation> {
    let (_, place) = register_and_memory(cursor)?;
    Some(Operation::ReadModifyWrite { address: cursor.linear(&place), size })
}

/// An opcode that ModRM extends, with a memory operand and an immediate whose bytes depend on the
/// extension; gives extension and address.
fn extended(cursor: &mut Cursor<'_>, immediate: impl FnOnce(u8) -> u8) -> Option<(u8, u64)> {
    let modrm = cursor.modrm()?;
    let Operand::Memory(place) = modrm.rm else { return None };
    cursor.unsigned(immediate(modrm.extension))?;
    Some((modrm.extension, cursor.linear(&place)))
}

/// An opcode that ModRM extends, with an immediate of `immediate` bytes.
fn modify(
    cursor: &mut Cursor<'_>,
    size: u8,
    extensions: core::ops::RangeInclusive<u8>,
    immediate: u8,
) -> Option<Operation> {
    let (extension, address) = extended(cursor, |_| immediate)?;
    extensions.contains(&extension).then_some(Operation::ReadModifyWrite { address, size })
}

/// add, or, adc, sbb, and, sub, xor, cmp with an immediate of `immediate` bytes.
fn arithmetic(cursor: &mut Cursor<'_>, size: u8, immediate: u8) -> Option<Operation> {
    let (extension, address) = extended(cursor, |_| immediate)?;
    Some(match extension {
        7 => Operation::Load { address, size },
        _ => Operation::ReadModifyWrite { address, size },
    })
}

/// test with an immediate, not, neg. (mul, imul, div, idiv are not ours.)
fn test_or_negate(cursor: &mut Cursor<'_>, size: u8) -> Option<Operation> {
    let tests = |extension| extension <= 1;
    let immediate = |extension| if tests(extension) { size.min(4) } else { 0 };
    let (extension, address) = extended(cursor, immediate)?;
    match extension {
        _ if tests(extension) => Some(Operation::Load { address, size }),
        2 | 3 => Some(Operation::ReadModifyWrite { address, size }),
        _ => None,
    }
}

/// A bit, numbered by a register, of a string of bits that starts at the memory operand.
fn modify_bit(cursor: &mut Cursor<'_>) -> Option<Operation> {
    let size = cursor.operand_size();
    let (register, place) = register_and_memory(cursor)?;
    let bit = sign_extend(cursor.gpr(register), size).cast_signed();
    let words = bit.div_euclid(8 * i64::from(size));
    let distance = words.wrapping_mul(i64::from(size)).cast_unsigned();
    Some(Operation::ReadModifyWrite { address: cursor.linear_plus(&place, distance), size })
}

fn string(cursor: &Cursor<'_>, size: u8, moves: bool) -> Option<Operation> {
    if cursor.prefixes.address_size {
        return None;
    }
    let repeat = cursor.prefixes.repeat;
    let source = cursor.prefixes.segment.unwrap_or(Segment::Ds);
    Some(Operation::StoreString {
        size,
        count: if repeat { truncate(cursor.gpr(1), cursor.address_size()) } else { 1 },
        source: moves.then(|| cursor.segmented(source, cursor.gpr(6))),
        value: if moves { 0 } else { cursor.gpr_operand(0, size) },
        address: cursor.segmented(Segment::Es, cursor.gpr(7)),
        repeat,
        backward: cursor.registers.rflags & RFLAGS_DF != 0,
    })
}

/// Direction flag.
const RFLAGS_DF: u64 = 1 << 10;
