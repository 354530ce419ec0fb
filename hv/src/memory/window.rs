//! Windows: the only way to reach a frame that is not the hypervisor's own.
//!
//! A window maps one frame, on one CPU, at a slot drawn at random, for as long as its guard lives.
//! Slots are private to a CPU because each has its own table for them, so no other CPU can use an
//! open window, and closing one needs no shootdown. A window on a frame of the pool is counted with
//! the frame's owner, so that the frame is not given back meanwhile; on secrets, and on what is the
//! hypervisor's or nobody's, none opens.

use super::pool::{self, Tables};
use super::space::{self, CpuSpace};
use super::{SCRATCH, WINDOWS, secret};
use crate::cpu::instructions::{invalidate_page, time_stamp};
use crate::report;
use addr::{Hfn, PAGE_BYTES, PAGE_SIZE};
use core::cell::RefCell;
use frames::{SLOTS, WindowSlots};
use paging::{Format, HostRights, Level, TableMemory, X86_64};

/// A CPU's window area.
pub struct Windows {
    table: Hfn,
    state: RefCell<State>,
}

struct State {
    slots: WindowSlots,
    random: u64,
}

/// An open window. Dropping it unmaps the frame.
#[must_use = "a window that is dropped at once shows nothing"]
pub struct Window<'a> {
    windows: &'a Windows,
    slot: u16,
    /// The frame, if it is one of the pool's.
    counted: Option<Hfn>,
}

impl Windows {
    /// The area of the CPU that `space` belongs to; used by that CPU only.
    pub fn new(space: &CpuSpace) -> Self {
        let state = State { slots: WindowSlots::new(), random: time_stamp() | 1 };
        Self { table: space.windows(), state: RefCell::new(state) }
    }

    /// Opens a window on `frame`. Callers have checked that the frame is the guest's or the task's
    /// that they act for; a window on the hypervisor's own memory, or on a secret, is refused here.
    pub fn open(&self, frame: Hfn) -> Option<Window<'_>> {
        if space::image().contains(frame) {
            return None;
        }
        if !pool::region().contains(frame) {
            if secret::is_refused(frame) {
                return None;
            }
            return self.open_uncounted(frame, None);
        }
        pool::open_window(frame).ok()?;
        let window = self.open_uncounted(frame, Some(frame));
        if window.is_none() {
            // It has just been counted.
            let _ = pool::close_window(frame);
        }
        window
    }

    fn open_uncounted(&self, frame: Hfn, counted: Option<Hfn>) -> Option<Window<'_>> {
        let mut state = self.state.try_borrow_mut().ok()?;
        // Xorshift, stirred by the time: a guest that guesses the next slot gains nothing, since
        // it cannot make the hypervisor use an address of its choice; a stray pointer must miss.
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= (state.random << 17) ^ time_stamp();
        let random = state.random;
        let slot = state.slots.open(random)?;
        Tables.write(self.table, usize::from(slot), entry_for(frame));
        Some(Window { windows: self, slot, counted })
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        Tables.write(self.windows.table, usize::from(self.slot), 0);
        invalidate_page(WINDOWS.plus(u64::from(self.slot) * PAGE_SIZE).raw());
        if let Ok(mut state) = self.windows.state.try_borrow_mut() {
            // The guard proves that the slot is open.
            let _ = state.slots.close(self.slot);
        }
        if let Some(frame) = self.counted {
            // It was counted when it opened.
            let _ = pool::close_window(frame);
        }
    }
}

/// The entry that maps a window onto `frame`.
fn entry_for(frame: Hfn) -> u64 {
    X86_64::leaf(frame, Level::Page4K, HostRights::READ_WRITE)
}

/// Zeroes a frame of the pool that is nobody's and not in the direct map. With the pool's lock held,
/// so that a CPU has one such window at a time, and the audit sees none.
pub(super) fn clear_vacant(frame: Hfn) {
    let Some(table) = space::own_scratch() else {
        report::fatal(format_args!("a CPU zeroes memory without windows of its own"));
    };
    // As hard to guess as the slots of other windows.
    let slot = time_stamp() >> 4 & (u64::from(SLOTS) - 1);
    let (index, page) = (addr::length(slot), SCRATCH.plus(slot * PAGE_SIZE).raw());
    Tables.write(table, index, entry_for(frame));
    // SAFETY: the whole page that was just mapped, and that no one else has.
    unsafe { (page as *mut u8).write_bytes(0, PAGE_BYTES) };
    Tables.write(table, index, 0);
    invalidate_page(page);
}

impl Window<'_> {
    /// Where it is.
    #[cfg(feature = "planted")]
    pub fn address(&self) -> u64 {
        self.at(0).addr() as u64
    }

    fn at(&self, offset: usize) -> *mut u8 {
        let page = WINDOWS.plus(u64::from(self.slot) * PAGE_SIZE).raw() as *mut u8;
        page.wrapping_add(offset)
    }

    /// Reads the aligned 8 bytes at `offset` in one access. 0 outside the frame.
    pub fn read_u64(&self, offset: usize) -> u64 {
        if !offset.is_multiple_of(8) || offset + 8 > PAGE_BYTES {
            return 0;
        }
        // SAFETY: inside the mapped page and aligned; volatile since the guest may write meanwhile.
        unsafe { self.at(offset).cast::<u64>().read_volatile() }
    }

    /// The frame's bytes, where they are.
    ///
    /// # Safety
    /// Nobody writes to the frame while they are looked at: no guest runs.
    pub unsafe fn bytes(&self) -> &[u8; PAGE_BYTES] {
        // SAFETY: the whole mapped page, for as long as the window is open; the caller answers for
        // writers.
        unsafe { &*self.at(0).cast() }
    }

    /// Copies bytes out, from `offset` on; returns how many lay inside the frame.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(PAGE_BYTES.saturating_sub(offset));
        // SAFETY: `count` bytes from `offset` lie inside the mapped page; `buffer` is the
        // hypervisor's and cannot overlap a window. Any byte is a valid u8, whatever the guest
        // writes meanwhile.
        unsafe { core::ptr::copy_nonoverlapping(self.at(offset), buffer.as_mut_ptr(), count) };
        count
    }

    /// Copies bytes in, from `offset` on, lowest first; returns how many lay inside the frame.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(PAGE_BYTES.saturating_sub(offset));
        // SAFETY: as for `read`.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at(offset), count) };
        count
    }

    /// Copies at most `most` bytes to another window, as far as both frames reach; returns how
    /// many.
    pub fn copy_to(&self, offset: usize, target: &Window<'_>, at: usize, most: usize) -> usize {
        let room = PAGE_BYTES.saturating_sub(offset.max(at));
        let count = most.min(room);
        // SAFETY: `count` bytes from either offset lie inside the mapped pages, which are two.
        unsafe { core::ptr::copy_nonoverlapping(self.at(offset), target.at(at), count) };
        count
    }

    /// Zeroes the frame.
    pub fn clear(&self) {
        // SAFETY: the whole mapped page.
        unsafe { self.at(0).write_bytes(0, PAGE_BYTES) };
    }
}
