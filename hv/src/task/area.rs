//! What of a task is in the CPU while it runs, kept while it does not; and why it stopped.

use crate::cpu::apic;
use addr::{Hfn, Hva};
use core::arch::global_asm;
use x86_defs::{rflags, vector};

global_asm!(include_str!("../cpu/registers.s"), include_str!("switch.s"), options(raw));

unsafe extern "C" {
    fn task_enter(area: *mut Area);
}

/// x87 and SSE state as FXSAVE writes it (APM volume 2, 11.4.4).
#[repr(C, align(16))]
struct Fx([u8; 512]);

impl Fx {
    /// All exceptions masked, registers empty.
    const INITIAL: Self = {
        let mut bytes = [0; 512];
        // Control word 0x037f; MXCSR, at 24, 0x1f80.
        (bytes[0], bytes[1]) = (0x7f, 0x03);
        (bytes[24], bytes[25]) = (0x80, 0x1f);
        Self(bytes)
    };
}

/// Registers of a task; `switch.s` knows this layout.
#[repr(C)]
pub struct Area {
    /// By encoding.
    pub gpr: [u64; 16],
    /// Next instruction.
    pub rip: u64,
    rflags: u64,
    root: u64,
    vector: u64,
    error: u64,
    address: u64,
    host_rsp: u64,
    host_cr3: u64,
    fx: Fx,
    guest_fx: Fx,
}

/// How a task runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Until something stops it; interrupts do.
    Free,
    /// For one instruction, with interrupts held off.
    OneStep,
}

/// Why a task stopped.
#[derive(Clone, Copy, Debug)]
pub enum Stopped {
    /// It makes a call.
    Call,
    /// One instruction was executed.
    Stepped,
    /// An interrupt has arrived, and was accepted: it is the guest's.
    Interrupt(u8),
    /// It did what it may not.
    Fault {
        /// The exception.
        vector: u64,
        /// Its error code.
        error: u64,
        /// CR2, for a page fault.
        address: Hva,
    },
}

const RDI: usize = 7;
const RSP: usize = 4;

impl Area {
    /// At the first instruction.
    pub const fn new(root: Hfn, entry: u64, stack: u64, info: u64) -> Self {
        let mut gpr = [0; 16];
        (gpr[RSP], gpr[RDI]) = (stack, info);
        Self {
            gpr,
            rip: entry,
            rflags: rflags::RESERVED,
            root: root.start().raw(),
            vector: 0,
            error: 0,
            address: 0,
            host_rsp: 0,
            host_cr3: 0,
            fx: Fx::INITIAL,
            guest_fx: Fx::INITIAL,
        }
    }

    /// Runs the task on the calling CPU, where `stack::set_task` has named this area.
    pub fn enter(&mut self, pace: Pace) -> Stopped {
        let keep = !(rflags::IF | rflags::TF | rflags::IOPL | rflags::NT | rflags::RF);
        let pace_flags = if pace == Pace::Free { rflags::IF } else { rflags::TF };
        self.rflags = self.rflags & keep | rflags::RESERVED | pace_flags;
        // SAFETY: the area is in the image, which every table maps; the root is that of a table
        // that links the image, so that the code and stacks in use stay mapped. The task runs at
        // CPL 3: all that it can reach are its own pages.
        unsafe { task_enter(self) };
        let address = Hva::new(self.address);
        match self.vector {
            number if number == u64::from(abi::task::VECTOR) => Stopped::Call,
            number if number == u64::from(vector::DB) && pace == Pace::OneStep => Stopped::Stepped,
            number if is_interrupt(number) => Stopped::Interrupt(number.to_le_bytes()[0]),
            vector => Stopped::Fault { vector, error: self.error, address },
        }
    }
}

/// Whether a vector is an interrupt's. From 16 to 31 it can be either.
fn is_interrupt(vector: u64) -> bool {
    let [number, ..] = vector.to_le_bytes();
    vector >= 32 || vector >= 16 && apic::is_in_service(number)
}
