//! iced-x86 as the oracle. In both directions: what [`decode`] says is what iced says, and what
//! iced finds to be one of our instructions is decoded.

use crate::{Destination, Mode, Operation, Registers, Selector, SimpleOp, Table, decode};
use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use proptest::prelude::*;
use proptest::sample::select;
use std::format;
use std::vec;
use std::vec::Vec;

fn bits(mode: Mode) -> u32 {
    match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    }
}

fn iced(bytes: &[u8], registers: &Registers) -> iced_x86::Instruction {
    let bytes = &bytes[..bytes.len().min(15)];
    Decoder::with_ip(bits(registers.mode), bytes, registers.rip, DecoderOptions::AMD).decode()
}

/// The value of a register as iced names it; segment registers stand for their base.
fn value_of(register: Register, registers: &Registers) -> u64 {
    if register.is_segment_register() {
        let base = registers.segment_base[register.number()];
        let flat =
            registers.mode == Mode::Bits64 && !matches!(register, Register::FS | Register::GS);
        return if flat { 0 } else { base };
    }
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return registers.gpr[register.full_register().number()] >> 8 & 0xff;
    }
    let value = registers.gpr[register.full_register().number()];
    match register.size() {
        8 => value,
        size => value & ((1 << (8 * size)) - 1),
    }
}

fn address_of(insn: &iced_x86::Instruction, operand: u32, registers: &Registers) -> u64 {
    let address = insn
        .virtual_address(operand, 0, |register, _, _| Some(value_of(register, registers)))
        .unwrap();
    if registers.mode == Mode::Bits64 { address } else { address & 0xffff_ffff }
}

fn truncate(value: u64, size: usize) -> u64 {
    value & (u64::MAX >> (64 - 8 * size))
}

fn is_modify(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Add | Or
            | Adc
            | Sbb
            | And
            | Sub
            | Xor
            | Inc
            | Dec
            | Not
            | Neg
            | Rol
            | Ror
            | Rcl
            | Rcr
            | Shl
            | Sal
            | Shr
            | Sar
            | Xchg
            | Xadd
            | Cmpxchg
            | Cmpxchg8b
            | Cmpxchg16b
            | Bts
            | Btr
            | Btc
    )
}

/// The address that a modification accesses: that of its operand, except that `bts` and its kin
/// find the bit first.
fn modified_address(insn: &iced_x86::Instruction, registers: &Registers) -> u64 {
    let address = address_of(insn, 0, registers);
    let bit_string = matches!(insn.mnemonic(), Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.op1_kind() == OpKind::Register;
    if !bit_string {
        return address;
    }
    let size = insn.op1_register().size();
    let unused = 64 - 8 * size;
    let bit = (value_of(insn.op1_register(), registers) << unused).cast_signed() >> unused;
    // By a division that rounds down, word by word.
    let words = i128::from(bit).div_euclid(8 * size as i128);
    let distance = i64::try_from(words * size as i128).unwrap().cast_unsigned();
    // The offset wraps at the address size, the segment base does not.
    let segment = value_of(insn.memory_segment(), registers);
    let offset_bits = match insn.memory_displ_size().max(address_size(insn)) {
        2 => 16,
        4 => 32,
        _ => 64,
    };
    let offset = address.wrapping_sub(segment).wrapping_add(distance);
    let offset = if offset_bits == 64 { offset } else { offset & ((1 << offset_bits) - 1) };
    let linear = segment.wrapping_add(offset);
    if registers.mode == Mode::Bits64 { linear } else { linear & 0xffff_ffff }
}

fn address_size(insn: &iced_x86::Instruction) -> u32 {
    let of = |register: Register| u32::try_from(register.size()).unwrap();
    let register = match (insn.memory_base(), insn.memory_index()) {
        (Register::None, Register::None) => return 0,
        (Register::None, index) => index,
        (base, _) => base,
    };
    of(register)
}

fn simple(mnemonic: Mnemonic) -> Option<SimpleOp> {
    Some(match mnemonic {
        Mnemonic::Cpuid => SimpleOp::Cpuid,
        Mnemonic::Rdmsr => SimpleOp::ReadMsr,
        Mnemonic::Wrmsr => SimpleOp::WriteMsr,
        Mnemonic::Rdtsc => SimpleOp::ReadTsc,
        Mnemonic::Rdtscp => SimpleOp::ReadTscp,
        Mnemonic::Rdpmc => SimpleOp::ReadPmc,
        Mnemonic::Xsetbv => SimpleOp::Xsetbv,
        Mnemonic::Invd => SimpleOp::Invd,
        Mnemonic::Wbinvd => SimpleOp::Wbinvd,
        Mnemonic::Hlt => SimpleOp::Halt,
        Mnemonic::Monitor => SimpleOp::Monitor,
        Mnemonic::Mwait => SimpleOp::Mwait,
        Mnemonic::Vmcall => SimpleOp::Vmcall,
        Mnemonic::Vmmcall => SimpleOp::Vmmcall,
        Mnemonic::Vmrun => SimpleOp::Vmrun,
        Mnemonic::Vmload => SimpleOp::Vmload,
        Mnemonic::Vmsave => SimpleOp::Vmsave,
        Mnemonic::Stgi => SimpleOp::Stgi,
        Mnemonic::Clgi => SimpleOp::Clgi,
        Mnemonic::Skinit => SimpleOp::Skinit,
        Mnemonic::Invlpga => SimpleOp::Invlpga,
        _ => return None,
    })
}

/// What iced says about bytes that [`decode`] should know; `None` if it should not.
fn expected(insn: &iced_x86::Instruction, registers: &Registers) -> Option<Operation> {
    use Mnemonic::*;
    let memory = |operand| insn.op_kind(operand) == OpKind::Memory;
    let size = u8::try_from(insn.memory_size().size()).unwrap_or(0);
    let selector = |operand| match insn.op_kind(operand) {
        OpKind::Memory => Selector::Memory(address_of(insn, operand, registers)),
        _ => {
            let value = truncate(value_of(insn.op_register(operand), registers), 2);
            Selector::Register(u16::try_from(value).unwrap())
        }
    };
    let control = |operand| {
        (insn.op_kind(operand) == OpKind::Register && insn.op_register(operand).is_cr())
            .then(|| u8::try_from(insn.op_register(operand).number()).unwrap())
    };
    let gpr = |operand| u8::try_from(insn.op_register(operand).number()).unwrap();
    Some(match insn.mnemonic() {
        _ if insn.is_invalid() => return None,
        Mov if control(0).is_some() => {
            Operation::MoveToControl { register: control(0)?, gpr: gpr(1) }
        }
        Mov if control(1).is_some() => {
            Operation::MoveFromControl { register: control(1)?, gpr: gpr(0) }
        }
        Mov | Movnti if memory(0) => {
            let value = match insn.op1_kind() {
                OpKind::Register if insn.op1_register().is_segment_register() => return None,
                OpKind::Register => value_of(insn.op1_register(), registers),
                _ => insn.immediate(1),
            };
            let value = truncate(value, usize::from(size));
            Operation::Store { address: address_of(insn, 0, registers), size, value }
        }
        Mov if memory(1) && insn.op0_register().is_segment_register() => return None,
        Mov | Movzx | Movsx | Movsxd | Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Test
            if memory(1) =>
        {
            Operation::Load { address: address_of(insn, 1, registers), size }
        }
        Cmp | Test if memory(0) => {
            Operation::Load { address: address_of(insn, 0, registers), size }
        }
        Movsb | Movsw | Movsd | Movsq | Stosb | Stosw | Stosd | Stosq
            if insn.is_string_instruction() =>
        {
            let moves = matches!(insn.mnemonic(), Movsb | Movsw | Movsd | Movsq);
            let repeat = insn.has_rep_prefix() || insn.has_repne_prefix();
            let address_bytes = match insn.op0_kind() {
                OpKind::MemoryESDI => 2,
                OpKind::MemoryESEDI => 4,
                _ => 8,
            };
            Operation::StoreString {
                size,
                count: if repeat { truncate(registers.gpr[1], address_bytes) } else { 1 },
                source: moves.then(|| address_of(insn, 1, registers)),
                value: if moves { 0 } else { value_of(insn.op1_register(), registers) },
                address: address_of(insn, 0, registers),
                repeat,
                backward: registers.rflags & 0x400 != 0,
            }
        }
        mnemonic if is_modify(mnemonic) && memory(0) => {
            Operation::ReadModifyWrite { address: modified_address(insn, registers), size }
        }
        Lmsw => Operation::LoadMachineStatus { value: selector(0) },
        Clts => Operation::ClearTaskSwitched,
        Lgdt => {
            Operation::LoadTable { table: Table::Gdtr, address: address_of(insn, 0, registers) }
        }
        Lidt => {
            Operation::LoadTable { table: Table::Idtr, address: address_of(insn, 0, registers) }
        }
        Lldt => Operation::LoadSelector { table: Table::Ldtr, selector: selector(0) },
        Ltr => Operation::LoadSelector { table: Table::Tr, selector: selector(0) },
        mnemonic @ (Sgdt | Sidt | Sldt | Str) => {
            let table = match mnemonic {
                Sgdt => Table::Gdtr,
                Sidt => Table::Idtr,
                Sldt => Table::Ldtr,
                _ => Table::Tr,
            };
            let destination = if memory(0) {
                Destination::Memory(address_of(insn, 0, registers))
            } else {
                let size = u8::try_from(insn.op0_register().size()).unwrap();
                Destination::Register { gpr: gpr(0), size }
            };
            Operation::StoreTable { table, destination }
        }
        mnemonic => Operation::Simple(simple(mnemonic)?),
    })
}

/// Whether the documentation of [`decode`], or of its prefix rules, lets it refuse a known
/// instruction.
fn may_refuse(operation: &Operation, bytes: &[u8], length: usize, mode: Mode) -> bool {
    let prefixes = &bytes[..length];
    let prefixes = &prefixes[..prefixes
        .iter()
        .position(|byte| match byte {
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 => false,
            0x40..=0x4f => mode != Mode::Bits64,
            _ => true,
        })
        .unwrap_or(length)];
    let has = |any: &[u8]| prefixes.iter().any(|byte| any.contains(byte));
    match operation {
        Operation::Store { .. } => bytes[prefixes.len()] == 0x0f && has(&[0x66, 0xf2, 0xf3]),
        Operation::ReadModifyWrite { .. } => false,
        // movsxd to a 16-bit register.
        Operation::Load { .. } => {
            let wide = matches!(prefixes.last(), Some(0x48..=0x4f));
            mode == Mode::Bits64 && bytes[prefixes.len()] == 0x63 && has(&[0x66]) && !wide
        }
        Operation::StoreString { .. } => has(&[0x67]),
        Operation::LoadTable { .. }
        | Operation::StoreTable { table: Table::Gdtr | Table::Idtr, .. } => {
            mode == Mode::Bits16 || has(&[0x66, 0xf0, 0xf2, 0xf3])
        }
        _ => has(&[0x66, 0xf0, 0xf2, 0xf3]),
    }
}

/// Both directions for one byte string.
fn check(bytes: &[u8], registers: &Registers) -> Result<bool, TestCaseError> {
    let insn = iced(bytes, registers);
    let text = || format!("{:?} {:x?}", insn.code(), &bytes[..insn.len()]);
    let expected = expected(&insn, registers);
    match decode(bytes, registers) {
        Some(ours) => {
            prop_assert_eq!(Some(ours.operation), expected, "{}", text());
            prop_assert_eq!(usize::from(ours.length), insn.len(), "{}", text());
            prop_assert!(
                decode(&bytes[..insn.len() - 1], registers).is_none(),
                "decoded although cut short: {}",
                text()
            );
            Ok(true)
        }
        None => {
            let refusable =
                expected.is_none_or(|op| may_refuse(&op, bytes, insn.len(), registers.mode));
            prop_assert!(refusable, "not decoded: {}", text());
            Ok(false)
        }
    }
}

fn any_registers() -> impl Strategy<Value = Registers> {
    (
        any::<[u64; 16]>(),
        any::<[u64; 6]>(),
        any::<u64>(),
        any::<bool>(),
        select(vec![Mode::Bits16, Mode::Bits32, Mode::Bits64, Mode::Bits64]),
    )
        .prop_map(|(mut gpr, mut segment_base, rip, backward, mode)| {
            let mut rip = rip;
            if mode != Mode::Bits64 {
                gpr.iter_mut().for_each(|value| *value &= 0xffff_ffff);
                segment_base.iter_mut().for_each(|value| *value &= 0xffff_ffff);
                rip &= if mode == Mode::Bits32 { 0xffff_0000 } else { 0xff00 };
            }
            let rflags = if backward { 0x402 } else { 2 };
            Registers { gpr, rip, rflags, segment_base, mode }
        })
}

const PREFIXES: [u8; 11] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];

/// Opcodes of our instructions, with ModRM or without.
const OPCODES: [&[u8]; 86] = [
    &[0x00],
    &[0x01],
    &[0x02],
    &[0x03],
    &[0x08],
    &[0x09],
    &[0x0a],
    &[0x10],
    &[0x11],
    &[0x18],
    &[0x19],
    &[0x20],
    &[0x21],
    &[0x28],
    &[0x29],
    &[0x30],
    &[0x31],
    &[0x33],
    &[0x38],
    &[0x39],
    &[0x3a],
    &[0x3b],
    &[0x63],
    &[0x80],
    &[0x81],
    &[0x83],
    &[0x84],
    &[0x85],
    &[0x86],
    &[0x87],
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0xa0],
    &[0xa1],
    &[0xa2],
    &[0xa3],
    &[0xa4],
    &[0xa5],
    &[0xaa],
    &[0xab],
    &[0xc0],
    &[0xc1],
    &[0xc6],
    &[0xc7],
    &[0xd0],
    &[0xd1],
    &[0xd2],
    &[0xd3],
    &[0xf4],
    &[0xf6],
    &[0xf7],
    &[0xfe],
    &[0xff],
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x06],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0x30],
    &[0x0f, 0x31],
    &[0x0f, 0x32],
    &[0x0f, 0x33],
    &[0x0f, 0xa2],
    &[0x0f, 0xab],
    &[0x0f, 0xb0],
    &[0x0f, 0xb1],
    &[0x0f, 0xb3],
    &[0x0f, 0xb6],
    &[0x0f, 0xb7],
    &[0x0f, 0xba],
    &[0x0f, 0xbb],
    &[0x0f, 0xbe],
    &[0x0f, 0xbf],
    &[0x0f, 0xc0],
    &[0x0f, 0xc1],
    &[0x0f, 0xc3],
    &[0x0f, 0xc7],
    // Neighbours that are not ours.
    &[0x8c],
    &[0x8e],
    &[0x8f],
    &[0x0f, 0xa3],
    &[0x0f, 0x21],
];

/// Prefixes, perhaps a REX byte, one of [`OPCODES`], and bytes for whatever follows.
fn any_instruction() -> impl Strategy<Value = Vec<u8>> {
    (
        prop::collection::vec(select(PREFIXES.to_vec()), 0..4),
        prop::option::of(0x40u8..0x50),
        select(OPCODES.to_vec()),
        any::<[u8; 12]>(),
    )
        .prop_map(|(prefixes, rex, opcode, rest)| {
            let mut bytes = prefixes;
            bytes.extend(rex);
            bytes.extend(opcode);
            bytes.extend(rest);
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn instructions_agree(bytes in any_instruction(), registers in any_registers()) {
        check(&bytes, &registers)?;
    }

    #[test]
    fn random_bytes_agree(bytes in any::<[u8; 16]>(), registers in any_registers()) {
        check(&bytes, &registers)?;
    }
}

fn some_registers(mode: Mode) -> Registers {
    let mut gpr = [0; 16];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mask = if mode == Mode::Bits64 { u64::MAX } else { 0xffff_ffff };
    gpr.fill_with(|| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed & mask
    });
    let segment_base = [0x1_0000, 0x2_0000, 0x3_0000, 0x4_0000, 0x5_0000, 0x6_0000];
    Registers { gpr, rip: 0x8000_0000 & mask, rflags: 2, segment_base, mode }
}

/// Every ModRM byte, every SIB byte, every REX byte, both address sizes.
#[test]
fn every_addressing_form() {
    let mut decoded = 0;
    for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
        let registers = some_registers(mode);
        let rexes = if mode == Mode::Bits64 { 0x3f..=0x4f } else { 0x3f..=0x3f };
        for (prefix, rex, modrm) in [None, Some(0x67)].into_iter().flat_map(|prefix| {
            let rexes = rexes.clone();
            rexes.flat_map(move |rex| (0..=0xc7u8).map(move |modrm| (prefix, rex, modrm)))
        }) {
            for sib in 0..=u8::MAX {
                let mut bytes = Vec::from_iter(prefix);
                bytes.extend((rex >= 0x40).then_some(rex));
                bytes.extend([0x89, modrm, sib, 0x81, 0x92, 0xa3, 0xb4, 0, 0, 0]);
                let ours = check(&bytes, &registers).unwrap();
                assert_eq!(ours, modrm < 0xc0, "{bytes:x?}");
                decoded += u32::from(ours);
            }
        }
    }
    // 2 address sizes, 192 memory forms, 256 SIB bytes: 1, 1 and 17 times.
    assert_eq!(decoded, 2 * 192 * 256 * 19);
}

/// Every opcode byte of both maps with every kind of ModRM byte, plain and under each prefix.
#[test]
fn every_opcode() {
    for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
        let registers = some_registers(mode);
        let prefixes = PREFIXES.iter().chain(&[0x48]).map(|prefix| vec![*prefix]);
        for prefix in prefixes.chain([vec![]]) {
            for opcode in 0..=u8::MAX {
                // All pairs of registers; memory without and with SIB byte or displacement.
                let interesting = |modrm: &u8| {
                    *modrm >= 0xc0 || (*modrm < 0x80 && matches!(modrm & 7, 1 | 4 | 5))
                };
                for modrm in (0..=u8::MAX).filter(interesting) {
                    for map in [&[][..], &[0x0f]] {
                        let rest = [opcode, modrm, 0x12, 0xf3, 0x34, 0x85, 0x56, 0x67, 0x78];
                        let bytes = [&prefix, map, &rest].concat();
                        check(&bytes, &registers).unwrap();
                    }
                }
            }
        }
    }
}

#[test]
fn instructions_longer_than_the_cpu_takes_are_refused() {
    let registers = some_registers(Mode::Bits64);
    for prefixes in 0..20 {
        let mut bytes = vec![0x2e; prefixes];
        bytes.extend([0x48, 0x89, 0x07]);
        assert_eq!(decode(&bytes, &registers).is_some(), prefixes <= 12);
    }
    assert_eq!(decode(&[], &registers), None);
}
