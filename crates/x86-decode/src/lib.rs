//! Decodes the few guest instructions that a hypervisor on AMD SVM must complete or name itself:
//! CPUs without decode assists report that an instruction was intercepted, not what it was. Of all
//! others [`length()`] tells where they end.
//!
//! What always holds: bytes that [`decode`] does not know for certain give `None`, never a guess;
//! no more than [`MAX_LENGTH`] bytes are looked at; nothing is read but the arguments. Numbers in
//! comments are opcodes, `/r` a ModRM byte, `/0` one whose `reg` field is 0 (AMD64 Architecture
//! Programmer's Manual, volume 3, appendix A).

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod cursor;
mod length;
mod opcode;
mod operand;
#[cfg(test)]
mod oracle;

pub use length::length;

/// Longest instruction that the CPU executes, in bytes (AMD64 APM volume 3, section 1.1).
pub const MAX_LENGTH: usize = 15;

/// Code size of the guest's code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode and 16-bit protected mode.
    Bits16,
    /// 32-bit protected mode and compatibility mode.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// What of the guest's state an instruction's operands depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// General registers in the order of their encoding: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi,
    /// r8 to r15.
    pub gpr: [u64; 16],
    /// Address of the instruction, an offset in the code segment.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Bases of es, cs, ss, ds, fs, gs. In 64-bit mode the first four are taken for 0, as the CPU
    /// does.
    pub segment_base: [u64; 6],
    /// Code size.
    pub mode: Mode,
}

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Bytes, 1 to [`MAX_LENGTH`].
    pub length: u8,
    /// What it does.
    pub operation: Operation,
}

/// What an instruction does. Addresses are linear (the segment base is added); sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes the low `size` bytes of `value` and does nothing else: `mov` to memory from a
    /// register (88, 89), an immediate (C6 /0, C7 /0), the accumulator (A2, A3); `movnti` (0F C3).
    Store {
        /// First byte written.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// Zero above `size` bytes.
        value: u64,
    },
    /// Reads memory and writes none: `mov` (8A, 8B, A0, A1), `movzx`, `movsx`, `movsxd` to a
    /// register; `cmp`, `test`; `add`, `or`, `adc`, `sbb`, `and`, `sub`, `xor` to a register. For
    /// reports; what becomes of the value is not told.
    Load {
        /// First byte read.
        address: u64,
        /// 1, 2, 4 or 8.
        size: u8,
    },
    /// `movs` or `stos`. Afterwards rdi (and rsi, if there is a source) has moved by
    /// `size * count`, and rcx is 0 if `repeat`.
    StoreString {
        /// Bytes of one element: 1, 2, 4 or 8.
        size: u8,
        /// Elements that remain: rcx if `repeat`, else 1. May be 0.
        count: u64,
        /// `movs`: where the first element is read.
        source: Option<u64>,
        /// `stos`: the element, zero above `size` bytes. 0 for `movs`.
        value: u64,
        /// Where the first element is written.
        address: u64,
        /// Whether there is a repeat prefix.
        repeat: bool,
        /// Whether addresses fall from element to element (rflags.DF).
        backward: bool,
    },
    /// Reads memory and may write it back: `add`, `or`, `adc`, `sbb`, `and`, `sub`, `xor`, `inc`,
    /// `dec`, `not`, `neg`, shifts and rotations, `xchg`, `xadd`, `cmpxchg`, `bts`, `btr`, `btc`,
    /// locked or not. For reports; what would be written is not computed.
    ReadModifyWrite {
        /// First byte accessed.
        address: u64,
        /// 1, 2, 4, 8 or 16.
        size: u8,
    },
    /// `mov crN, reg`.
    MoveToControl {
        /// 0, 2, 3, 4 or 8.
        register: u8,
        /// Index into [`Registers::gpr`].
        gpr: u8,
    },
    /// `mov reg, crN`.
    MoveFromControl {
        /// 0, 2, 3, 4 or 8.
        register: u8,
        /// Index into [`Registers::gpr`].
        gpr: u8,
    },
    /// `lmsw`: loads the low 4 bits of CR0 (it can set PE, not clear it).
    LoadMachineStatus {
        /// The 16-bit operand.
        value: Selector,
    },
    /// `clts`: clears CR0.TS.
    ClearTaskSwitched,
    /// `lgdt`, `lidt`. In memory: a 16-bit limit, then a base of 8 bytes in 64-bit mode, else of
    /// 4.
    LoadTable {
        /// [`Table::Gdtr`] or [`Table::Idtr`].
        table: Table,
        /// Where limit and base are.
        address: u64,
    },
    /// `lldt`, `ltr`.
    LoadSelector {
        /// [`Table::Ldtr`] or [`Table::Tr`].
        table: Table,
        /// The 16-bit operand.
        selector: Selector,
    },
    /// `sgdt`, `sidt`, in memory as for [`Operation::LoadTable`]; `sldt`, `str`.
    StoreTable {
        /// Which register.
        table: Table,
        /// Where it is stored.
        destination: Destination,
    },
    /// An instruction whose operands, if any, are fixed registers.
    Simple(SimpleOp),
}

/// A register that locates a descriptor table or a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Global descriptor table.
    Gdtr,
    /// Interrupt descriptor table.
    Idtr,
    /// Local descriptor table: a selector.
    Ldtr,
    /// Task register: a selector.
    Tr,
}

/// A 16-bit operand that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The value, taken from a general register.
    Register(u16),
    /// Where the value is in memory.
    Memory(u64),
}

/// An operand that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A general register: its low `size` bytes, zero-extended to 64 bits if `size` is 4.
    Register {
        /// Index into [`Registers::gpr`].
        gpr: u8,
        /// 2, 4 or 8.
        size: u8,
    },
    /// Memory; 16 bits for `sldt` and `str`.
    Memory(u64),
}

/// Instructions without encoded operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SimpleOp {
    /// `cpuid`
    Cpuid,
    /// `rdmsr`
    ReadMsr,
    /// `wrmsr`
    WriteMsr,
    /// `rdtsc`
    ReadTsc,
    /// `rdtscp`
    ReadTscp,
    /// `rdpmc`
    ReadPmc,
    /// `xsetbv`
    Xsetbv,
    /// `invd`
    Invd,
    /// `wbinvd`
    Wbinvd,
    /// `hlt`
    Halt,
    /// `monitor`
    Monitor,
    /// `mwait`
    Mwait,
    /// `vmcall` (Intel)
    Vmcall,
    /// `vmmcall` (AMD)
    Vmmcall,
    /// `vmrun`
    Vmrun,
    /// `vmload`
    Vmload,
    /// `vmsave`
    Vmsave,
    /// `stgi`
    Stgi,
    /// `clgi`
    Clgi,
    /// `skinit`
    Skinit,
    /// `invlpga`
    Invlpga,
}

/// Decodes the instruction at the start of `bytes`. `None`: it is not one that [`Operation`]
/// lists, is cut short, or would fault.
///
/// Refused although valid: `movs` and `stos` with an address-size prefix, `movsxd` to a 16-bit
/// register, and `lgdt` and the like
/// with another operand size than the one [`Operation::LoadTable`] describes.
pub fn decode(bytes: &[u8], registers: &Registers) -> Option<Instruction> {
    let mut cursor = cursor::Cursor::new(bytes, registers)?;
    let operation = opcode::decode(&mut cursor)?;
    Some(Instruction { length: cursor.length()?, operation })
}
