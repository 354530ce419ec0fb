//! Permission maps: which MSR accesses and which ports exit (APM 15.10, 15.11).

use crate::memory::pool::Block;
use crate::report::DEBUG_CONSOLE;
use addr::Hpa;
use integrity::pins::PINNED_MSRS;
use x86_defs::{msr, svm};

/// Physical addresses of the maps. They are filled once and never changed; the lock changes which
/// MSR map a vCPU uses.
#[derive(Clone, Copy, Debug)]
pub struct Maps {
    /// Before the lock: only what would free a CPU or show SVM.
    pub msr_boot: Hpa,
    /// After the lock: writes of pinned MSRs too.
    pub msr_locked: Hpa,
    /// The event channel's port.
    pub io: Hpa,
}

const READ: u8 = 1;
const WRITE: u8 = 2;

impl Maps {
    /// Allocates and fills the maps.
    pub fn new() -> Option<Self> {
        Some(Self { msr_boot: msr_map(&[])?, msr_locked: msr_map(&PINNED_MSRS)?, io: io_map()? })
    }
}

fn msr_map(pinned: &[u32]) -> Option<Hpa> {
    let block = Block::take(svm::MSR_MAP_BYTES as u64 / addr::PAGE_SIZE)?;
    let start = block.start().start();
    let map = block.leak();
    let always = [
        (msr::EFER, READ | WRITE),
        (msr::VM_CR, READ | WRITE),
        (msr::IGNNE, READ | WRITE),
        (msr::VM_HSAVE_PA, READ | WRITE),
        (msr::SVM_KEY, READ | WRITE),
        (msr::X2APIC_ICR, WRITE),
        (msr::APIC_BASE, WRITE),
    ];
    for (msr, access) in always.into_iter().chain(pinned.iter().map(|msr| (*msr, WRITE))) {
        let (byte, bit) = svm::msr_map_position(msr)?;
        *map.get_mut(byte)? |= access << bit;
    }
    Some(start)
}

fn io_map() -> Option<Hpa> {
    let block = Block::take(svm::IO_MAP_BYTES as u64 / addr::PAGE_SIZE)?;
    let start = block.start().start();
    let map = block.leak();
    *map.get_mut(usize::from(DEBUG_CONSOLE / 8))? |= 1 << (DEBUG_CONSOLE % 8);
    Some(start)
}
