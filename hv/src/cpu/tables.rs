//! Descriptor tables of the hypervisor: a GDT and a TSS per CPU, one IDT for all.
//!
//! The IDT's gates lead to `traps.s`. Interrupts are off but while a task runs, so the only vectors
//! ever taken besides are the hypervisor's own faults and the NMI, whose handler is the vendor's.

use super::stack;
use abi::MAX_CPUS;
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use x86_defs::vector;

global_asm!(include_str!("traps.s"), options(raw));

/// Selector of the hypervisor's code segment.
pub const CODE: u16 = 0x08;
/// Selector of its data segment.
pub const DATA: u16 = 0x10;
/// Selector of each CPU's task-state segment.
pub const TSS: u16 = 0x18;
/// Vectors.
const VECTORS: usize = 256;
const NMI: usize = vector::NMI as usize;
/// The one by which a task may enter the hypervisor.
const CALL: usize = abi::task::VECTOR as usize;
/// Entries of a GDT. Behind the TSS are the data and code segments of tasks (`task/switch.s`).
const SEGMENTS: usize = 7;

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct TaskState {
    reserved1: u32,
    privilege_stacks: [u64; 3],
    reserved2: u64,
    interrupt_stacks: [u64; 7],
    reserved3: [u16; 5],
    io_map: u16,
}

/// An I/O map that begins behind the segment's limit denies every port (APM 12.2.5).
#[expect(clippy::cast_possible_truncation, reason = "it is 104 bytes")]
const TASK_STATE_BYTES: u16 = size_of::<TaskState>() as u16;

#[repr(C, align(16))]
#[derive(Clone, Copy)]
struct CpuTables {
    gdt: [u64; SEGMENTS],
    tss: TaskState,
}

#[repr(C, align(16))]
struct Idt([[u64; 2]; VECTORS]);

struct Shared<T>(UnsafeCell<T>);
// SAFETY: each CPU writes its own element once, before it uses it; the IDT is written by the first
// CPU before any other starts.
unsafe impl<T> Sync for Shared<T> {}

static TABLES: Shared<[CpuTables; MAX_CPUS]> = Shared(UnsafeCell::new(
    [const {
        CpuTables {
            gdt: [
                0,
                0x00af_9b00_0000_ffff,
                0x00cf_9300_0000_ffff,
                0,
                0,
                0x00cf_f300_0000_ffff,
                0x00af_fb00_0000_ffff,
            ],
            tss: TaskState {
                reserved1: 0,
                privilege_stacks: [0; 3],
                reserved2: 0,
                interrupt_stacks: [0; 7],
                reserved3: [0; 5],
                io_map: TASK_STATE_BYTES,
            },
        }
    }; MAX_CPUS],
));
static IDT: Shared<Idt> = Shared(UnsafeCell::new(Idt([[0; 2]; VECTORS])));

unsafe extern "C" {
    static trap_stubs: [[u8; 16]; VECTORS];
}

/// Fills the IDT; `nmi` is the address of the handler of NMIs. Called once, by the first CPU, before
/// [`load`].
pub fn fill_idt(nmi: u64) {
    // SAFETY: only this function writes the IDT and no CPU has loaded it yet.
    let idt = unsafe { &mut *IDT.0.get() };
    for (number, gate) in idt.0.iter_mut().enumerate() {
        let handler = if number == NMI {
            nmi
        } else {
            (&raw const trap_stubs).addr() as u64 + number as u64 * 16
        };
        // Interrupt gate, present; its DPL, and its IST stack (APM 4.8.4).
        let kind: u64 = match number {
            NMI => 0x8e02,
            CALL => 0xee01,
            _ => 0x8e01,
        };
        *gate = [
            (handler & 0xffff)
                | u64::from(CODE) << 16
                | kind << 32
                | (handler >> 16 & 0xffff) << 48,
            handler >> 32,
        ];
    }
}

/// Loads GDT, TSS and IDT on CPU `cpu`, which is the caller.
pub fn load(cpu: usize) {
    let all = TABLES.0.get().cast::<CpuTables>();
    // SAFETY: `cpu` is below MAX_CPUS and each CPU touches its own element only.
    let tables = unsafe { &mut *all.add(cpu.min(MAX_CPUS - 1)) };
    tables.tss.interrupt_stacks = [stack::trap_top(cpu), stack::nmi_top(cpu), 0, 0, 0, 0, 0];
    let base = (&raw const tables.tss).addr() as u64;
    let limit = size_of::<TaskState>() as u64 - 1;
    tables.gdt[3] = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    tables.gdt[4] = base >> 32;
    let gdt = Pointer::new((&raw const tables.gdt).addr() as u64, size_of::<[u64; SEGMENTS]>());
    // SAFETY: the table is static and holds the segments in use at the same selectors.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const gdt, options(nostack)) };
    let idt = Pointer::new(IDT.0.get().addr() as u64, size_of::<Idt>());
    // SAFETY: the table is static and every gate leads to code of the hypervisor.
    unsafe { asm!("lidt [{}]", in(reg) &raw const idt, options(nostack)) };
    // SAFETY: the selector names the TSS descriptor just written.
    unsafe { asm!("ltr {:x}", in(reg) TSS, options(nostack)) };
}

/// Addresses of a CPU's tables.
pub struct Places {
    /// GDT.
    pub gdt: u64,
    /// IDT.
    pub idt: u64,
    /// TSS.
    pub tss: u64,
}

/// Where the tables of CPU `cpu` are.
pub fn places(cpu: usize) -> Places {
    let own = TABLES.0.get().cast::<CpuTables>().wrapping_add(cpu.min(MAX_CPUS - 1));
    let base = own.addr();
    Places {
        gdt: (base + offset_of!(CpuTables, gdt)) as u64,
        idt: IDT.0.get().addr() as u64,
        tss: (base + offset_of!(CpuTables, tss)) as u64,
    }
}

/// Operand of LGDT and LIDT.
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

impl Pointer {
    #[expect(clippy::cast_possible_truncation, reason = "both tables are smaller than 64 KiB")]
    const fn new(base: u64, bytes: usize) -> Self {
        Self { limit: (bytes - 1) as u16, base }
    }
}

/// A fault inside the hypervisor: report and power off.
#[unsafe(no_mangle)]
extern "C" fn trap_fatal(vector: u64, error: u64, rip: u64, address: u64) -> ! {
    #[cfg(feature = "planted")]
    crate::planted::survive();
    let why = if stack::has_overflowed(address) { ": a stack is too small" } else { "" };
    crate::report::fatal(format_args!(
        "fault {vector} inside the hypervisor at {rip:#x}, error code {error:#x}, address {address:#x}{why}"
    ))
}
