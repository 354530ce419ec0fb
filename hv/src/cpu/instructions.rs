//! The privileged instructions that the hypervisor executes, one small function each.

use core::arch::asm;

/// Reads a model-specific register.
pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading changes no memory. Callers name MSRs that every CPU with SVM has, so the
    // instruction does not fault.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The value must be legal for the register and must not take away what running Rust relies on:
/// long mode, the mapping of code, stack and data.
pub unsafe fn write_msr(msr: u32, value: u64) {
    let low = value & 0xffff_ffff;
    let high = value >> 32;
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("wrmsr", in("ecx") msr, in("rax") low, in("rdx") high, options(nostack)) };
}

/// Result of CPUID, by register.
#[derive(Clone, Copy, Debug)]
pub struct CpuidResult {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// CPUID with EAX = `leaf`, ECX = `subleaf`.
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    let result = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    CpuidResult { eax: result.eax, ebx: result.ebx, ecx: result.ecx, edx: result.edx }
}

/// Width of a physical address, 32 to 52 (leaf 0x8000_0008).
pub fn physical_address_bits() -> u32 {
    (cpuid(0x8000_0008, 0).eax & 0xff).clamp(32, 52)
}

/// The time-stamp counter.
pub fn time_stamp() -> u64 {
    // SAFETY: RDTSC reads a counter; CR4.TSD does not bind ring 0.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// How often the time-stamp counter counts in a second, where CPUID tells (leaves 0x15 and 0x16; SDM
/// volume 3, 20.7.3); 0 where it does not.
pub fn ticks_per_second() -> u64 {
    const CRYSTAL: u32 = 0x15;
    const BASE_MHZ: u32 = 0x16;
    let highest = cpuid(0, 0).eax;
    if highest >= CRYSTAL {
        let CpuidResult { eax, ebx, ecx, .. } = cpuid(CRYSTAL, 0);
        let ticks = u64::from(ecx) * u64::from(ebx);
        if let Some(ticks) = ticks.checked_div(u64::from(eax)).filter(|ticks| *ticks > 0) {
            return ticks;
        }
    }
    if highest >= BASE_MHZ { u64::from(cpuid(BASE_MHZ, 0).eax & 0xffff) * 1_000_000 } else { 0 }
}

/// CR0.
pub fn read_cr0() -> u64 {
    let value: u64;
    // SAFETY: reading a control register changes nothing.
    unsafe { asm!("mov {}, cr0", out(reg) value, options(nomem, nostack)) };
    value
}

/// CR3.
pub fn read_cr3() -> u64 {
    let value: u64;
    // SAFETY: as for `read_cr0`.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

/// CR4.
pub fn read_cr4() -> u64 {
    let value: u64;
    // SAFETY: as for `read_cr0`.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) };
    value
}

/// Loads CR0.
///
/// # Safety
/// Protected mode, paging and caches stay on.
pub unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("mov cr0, {}", in(reg) value, options(nostack)) };
}

/// Loads CR4.
///
/// # Safety
/// PAE, OSFXSR and OSXMMEXCPT stay on, and the CPU knows every bit.
pub unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) };
}

/// Loads CR3.
///
/// # Safety
/// The tables at `root` must map the running code, its stack and everything referenced later.
pub unsafe fn load_cr3(root: u64) {
    // SAFETY: the caller vouches for the tables.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack)) };
}

/// Drops this CPU's translation of one page.
pub fn invalidate_page(address: u64) {
    // SAFETY: INVLPG only forgets; at worst the walk is repeated.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// Writes modified cache lines back and empties the caches.
pub fn write_back_caches() {
    // SAFETY: WBINVD changes no value in memory.
    unsafe { asm!("wbinvd", options(nostack)) };
}

/// Loads XCR0.
///
/// # Safety
/// The value must be legal for this CPU, with the x87 and SSE bits that running code relies on;
/// CR4.OSXSAVE must be set.
pub unsafe fn set_xcr0(value: u64) {
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    // SAFETY: the caller vouches for the value.
    unsafe { asm!("xsetbv", in("ecx") 0, in("rax") low, in("rdx") high, options(nomem, nostack)) };
}

/// Reads a byte from a port.
pub fn port_read_u8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: the ports read are COM1's line status and the debug console, which have no side
    // effect on memory.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Writes a byte to a port.
pub fn port_write_u8(port: u16, value: u8) {
    // SAFETY: the ports written are COM1, the debug console and the reset port; none of them
    // moves data to memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Writes a 16-bit word to a port.
pub fn port_write_u16(port: u16, value: u16) {
    // SAFETY: only the ACPI power-management control port is written.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// Writes all of `bytes` to a port, one after another.
pub fn port_write_all(port: u16, bytes: &[u8]) {
    // SAFETY: `rep outsb` reads exactly the slice and changes RSI and RCX, which are declared.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _,
             inout("rcx") bytes.len() => _, options(nostack, readonly));
    }
}

/// Tells the CPU that this is a waiting loop.
pub fn spin_hint() {
    core::hint::spin_loop();
}

/// Sleeps for ever. GIF is clear, so nothing wakes the CPU.
pub fn halt_for_ever() -> ! {
    loop {
        // SAFETY: CLI and HLT touch no memory; the CPU is not needed any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// The low 32 bits, as an instruction with a 32-bit operand sees them.
#[expect(clippy::cast_possible_truncation, reason = "dropping the upper half is the purpose")]
pub const fn low_half(value: u64) -> u32 {
    value as u32
}
