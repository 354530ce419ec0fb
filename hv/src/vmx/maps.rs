//! Permission maps: which MSR accesses and which ports exit (SDM 3C, 25.6.4, 25.6.9).

use crate::memory::pool::Block;
use crate::report::DEBUG_CONSOLE;
use addr::{Hpa, PAGE_BYTES};
use core::ops::RangeInclusive;
use integrity::pins::PINNED_MSRS;
use x86_defs::{msr, vmx};

/// Physical addresses of the maps. They are filled once and never changed; the lock changes which
/// MSR map a vCPU uses.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    /// Before the lock: only what would free a CPU or show VMX.
    pub msr_boot: Hpa,
    /// After the lock: writes of EFER and pinned MSRs too.
    pub msr_locked: Hpa,
    /// The event channel's port; the map of the upper ports follows.
    pub io: Hpa,
}

/// What the guest neither reads nor writes: the registers of VMX, and those that make the CPU itself
/// write to a physical address, past the second stage.
pub const HIDDEN: [RangeInclusive<u32>; 5] = [
    msr::FEATURE_CONTROL..=msr::FEATURE_CONTROL,
    msr::VMX_BASIC..=msr::VMX_LAST,
    msr::TRACE_OUTPUT,
    msr::TRACE,
    msr::HARDWARE_FEEDBACK,
];

impl Maps {
    /// Allocates and fills the maps.
    pub fn new() -> Option<Self> {
        let locked = PINNED_MSRS.into_iter().chain([msr::EFER]);
        Some(Self { msr_boot: msr_map([])?, msr_locked: msr_map(locked)?, io: io_map()? })
    }
}

fn msr_map(pinned: impl IntoIterator<Item = u32>) -> Option<Hpa> {
    let block = Block::take(1)?;
    let start = block.start().start();
    let map = block.leak();
    for number in HIDDEN.into_iter().flatten() {
        let (byte, bit) = vmx::msr_bitmap_position(number)?;
        *map.get_mut(byte)? |= 1 << bit;
    }
    let written = [msr::X2APIC_ICR, msr::APIC_BASE];
    for number in HIDDEN.into_iter().flatten().chain(written).chain(pinned) {
        let (byte, bit) = vmx::msr_bitmap_position(number)?;
        *map.get_mut(byte + vmx::MSR_BITMAP_WRITE)? |= 1 << bit;
    }
    Some(start)
}

fn io_map() -> Option<Hpa> {
    let block = Block::take(2)?;
    let start = block.start().start();
    let map = block.leak();
    debug_assert!(map.len() == 2 * PAGE_BYTES);
    *map.get_mut(usize::from(DEBUG_CONSOLE / 8))? |= 1 << (DEBUG_CONSOLE % 8);
    Some(start)
}
