//! What the compiler expects of a program's environment, for programs that have none (the
//! hypervisor and its tasks): memory functions, and two symbols of the unwinder.
//!
//! `use freestanding as _;` links them in.

#![no_std]

use core::arch::asm;

/// # Safety
/// As for C's `memcpy`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both ranges; DF is clear in Rust code. Words, then the rest.
    unsafe {
        asm!("rep movsq", "mov rcx, {rest}", "rep movsb", rest = in(reg) count % 8,
             inout("rcx") count / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack));
    }
    to
}

/// # Safety
/// As for C's `memmove`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= count {
        // SAFETY: copying upwards is right when the destination does not start inside the source.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: downwards from the last byte; DF is restored.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _,
             inout("rdi") to.wrapping_add(count.wrapping_sub(1)) => _,
             inout("rsi") from.wrapping_add(count.wrapping_sub(1)) => _, options(nostack));
    }
    to
}

/// # Safety
/// As for C's `memset`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    let word = u64::from(value.to_le_bytes()[0]) * 0x0101_0101_0101_0101;
    // SAFETY: the caller vouches for the range. Words, then the rest.
    unsafe {
        asm!("rep stosq", "mov rcx, {rest}", "rep stosb", rest = in(reg) count % 8,
             inout("rcx") count / 8 => _, inout("rdi") to => _, in("rax") word, options(nostack));
    }
    to
}

/// # Safety
/// As for C's `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: the caller vouches for both ranges.
        let x = unsafe { a.add(index).read_volatile() };
        // SAFETY: likewise.
        let y = unsafe { b.add(index).read_volatile() };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As for `memcmp`.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller vouches for both ranges.
    unsafe { memcmp(a, b, count) }
}

/// Named by precompiled `core`; never called, since panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Named by precompiled `core`; never called, since panics abort.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    // SAFETY: raises #UD, which whoever watches this program reports.
    unsafe { asm!("ud2", options(noreturn)) }
}
