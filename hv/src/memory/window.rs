//! Windows: the only way to reach a frame that is not the hypervisor's own.
//!
//! A window maps one frame, on one CPU, at a slot drawn at random, for as long as its guard lives.
//! Slots are private to a CPU because each has its own table for them, so no other CPU can use an
//! open window, and closing one needs no shootdown.

use super::space::{self, CpuSpace};
use super::{WINDOWS, pool::Tables};
use crate::cpu::instructions::{invalidate_page, time_stamp};
use addr::{Hfn, PAGE_BYTES, PAGE_SIZE};
use core::cell::RefCell;
use frames::WindowSlots;
use paging::TableMemory;

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
}

impl Windows {
    /// The area of the CPU that `space` belongs to; used by that CPU only.
    pub fn new(space: &CpuSpace) -> Self {
        let state = State { slots: WindowSlots::new(), random: time_stamp() | 1 };
        Self { table: space.windows, state: RefCell::new(state) }
    }

    /// Opens a window on `frame`. Callers have checked that the frame is the guest's: a window on
    /// the hypervisor's own memory is refused here too.
    pub fn open(&self, frame: Hfn) -> Option<Window<'_>> {
        if space::is_own(frame) {
            return None;
        }
        let mut state = self.state.try_borrow_mut().ok()?;
        // Xorshift, stirred by the time: a guest that guesses the next slot gains nothing, since
        // it cannot make the hypervisor use an address of its choice; a stray pointer must miss.
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= (state.random << 17) ^ time_stamp();
        let random = state.random;
        let slot = state.slots.open(random)?;
        Tables.write(self.table, usize::from(slot), space::window_entry(frame));
        Some(Window { windows: self, slot })
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
    }
}

impl Window<'_> {
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
    /// Nobody writes to the frame while they are looked at: no guest runs yet.
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
