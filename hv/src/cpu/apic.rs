//! The local APIC in xAPIC mode, as far as the hypervisor uses it: INIT, SIPI and NMI to other
//! CPUs, and the guest's own register writes after they were checked (APM 16).

use crate::cpu::instructions::{read_msr, spin_hint};
use crate::memory::APIC_WINDOW;
use x86_defs::msr;

/// Guest-physical and host-physical address of the registers; the hypervisor refuses to start if
/// the firmware put them elsewhere.
pub const BASE: u64 = 0xfee0_0000;

/// Byte offsets of registers.
pub mod register {
    /// Interrupt command, low half; writing it sends.
    pub const ICR_LOW: u64 = 0x300;
    /// Interrupt command, high half: the destination.
    pub const ICR_HIGH: u64 = 0x310;
    pub(super) const ID: u64 = 0x20;
    /// Vectors in service, 32 per register, the registers 16 bytes apart.
    pub(super) const IN_SERVICE: u64 = 0x100;
    /// How the timer interrupts.
    pub(super) const LVT_TIMER: u64 = 0x320;
    /// What the timer counts down from; writing it starts the timer.
    pub(super) const TIMER_INITIAL: u64 = 0x380;
    /// Where it is, 0 when it has run out.
    pub(super) const TIMER_CURRENT: u64 = 0x390;
}

/// Delivery modes of the interrupt command register, bits 10:8.
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_INIT: u32 = 5 << 8;
const DELIVERY_STARTUP: u32 = 6 << 8;
const ASSERT: u32 = 1 << 14;
const PENDING: u32 = 1 << 12;

/// Whether an interrupt command would reset or start a CPU.
pub const fn would_free_a_cpu(command: u32) -> bool {
    matches!(command & 7 << 8, DELIVERY_INIT | DELIVERY_STARTUP)
}

/// Whether the APIC is where the hypervisor needs it: enabled, xAPIC mode, at [`BASE`].
pub fn is_usable() -> bool {
    let value = read_msr(msr::APIC_BASE);
    value & !0xfff == BASE
        && value & msr::apic_base::ENABLE != 0
        && value & msr::apic_base::EXTD == 0
}

/// Reads a register of this CPU's APIC.
pub fn read(offset: u64) -> u32 {
    // SAFETY: the page is mapped uncached at APIC_WINDOW; offsets are register offsets below 4096,
    // and reading an APIC register has no effect on memory.
    unsafe { (APIC_WINDOW.plus(offset & 0xff0).raw() as *const u32).read_volatile() }
}

/// Writes a register of this CPU's APIC. The interrupt command register can reset CPUs: callers
/// pass on a guest's command only after [`would_free_a_cpu`].
pub fn write(offset: u64, value: u32) {
    // SAFETY: as for `read`; a write raises interrupts at most, never changes memory.
    unsafe { (APIC_WINDOW.plus(offset & 0xff0).raw() as *mut u32).write_volatile(value) };
}

/// Id of this CPU.
pub fn id() -> u32 {
    read(register::ID) >> 24
}

fn send(destination: u32, command: u32) {
    // The guest may be between its own two writes, so the high half is put back.
    let high = read(register::ICR_HIGH);
    wait_until_sent();
    write(register::ICR_HIGH, destination << 24);
    write(register::ICR_LOW, command);
    wait_until_sent();
    write(register::ICR_HIGH, high);
}

fn wait_until_sent() {
    while read(register::ICR_LOW) & PENDING != 0 {
        spin_hint();
    }
}

/// Sends a non-maskable interrupt.
pub fn send_nmi(destination: u32) {
    send(destination, DELIVERY_NMI | ASSERT);
}

/// Sends INIT.
pub fn send_init(destination: u32) {
    send(destination, DELIVERY_INIT | ASSERT);
}

/// Sends SIPI: the CPU starts in real mode at `page` * 4096.
pub fn send_startup(destination: u32, page: u8) {
    send(destination, DELIVERY_STARTUP | ASSERT | u32::from(page));
}

/// Whether this CPU has accepted an interrupt with this vector, and the guest has not ended it yet.
pub fn is_in_service(vector: u8) -> bool {
    let register = register::IN_SERVICE + u64::from(vector / 32) * 0x10;
    read(register) >> (vector % 32) & 1 != 0
}

/// Whether the guest has given this CPU's timer a vector, so that it runs or can be borrowed.
pub fn has_timer() -> bool {
    read(register::LVT_TIMER) & 0xff >= 16
}

/// The guest's timer, which was not running, lent for a while.
#[must_use = "the timer is the guest's again when this is dropped"]
pub struct BorrowedTimer {
    lvt: u32,
}

impl BorrowedTimer {
    const MASKED: u32 = 1 << 16;
    const MODE: u32 = 3 << 17;
    const ONE_SHOT: u32 = 0;
    const DEADLINE: u32 = 2 << 17;

    /// Has this CPU interrupted once, after some milliseconds, by the guest's own timer vector, if
    /// the guest has set that up and its timer does not run.
    pub fn start() -> Option<Self> {
        const COUNT: u32 = 4_000_000;
        let lvt = read(register::LVT_TIMER);
        let runs = match lvt & Self::MODE {
            Self::DEADLINE => read_msr(msr::TSC_DEADLINE) != 0,
            _ => read(register::TIMER_CURRENT) != 0,
        };
        if runs || !has_timer() {
            return None;
        }
        write(register::LVT_TIMER, lvt & !(Self::MASKED | Self::MODE));
        write(register::TIMER_INITIAL, COUNT);
        Some(Self { lvt })
    }
}

impl Drop for BorrowedTimer {
    /// A guest that waits for its timer gets the interrupt: the timer may have run out so recently
    /// that the interrupt had not been raised yet (in QEMU that is not one step), and was lost by
    /// starting it anew. To a kernel it is at worst a tick that comes too early.
    fn drop(&mut self) {
        if self.lvt & (Self::MASKED | Self::MODE) != Self::ONE_SHOT {
            write(register::TIMER_INITIAL, 0);
            write(register::LVT_TIMER, self.lvt);
        }
    }
}
