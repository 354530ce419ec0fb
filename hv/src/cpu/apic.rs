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
    const ID: u64 = 0x20;
    pub(super) const fn id() -> u64 {
        ID
    }
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
    read(register::id()) >> 24
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
