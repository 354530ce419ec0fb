//! Memory that the hypervisor gives on request.

use crate::call::make;
use abi::task::{Call, CallError, rights};
use core::ops::{Deref, DerefMut};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Writable pages at an address of the task's choice, zero at first; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    address: u64,
    pages: u64,
}

impl Mapping {
    /// Maps `pages` pages at `address`.
    ///
    /// # Errors
    /// The address is not a task's or not a multiple of 4096, something is mapped there, there are
    /// more pages than [`abi::task::MOST_PAGES`], or the quota is used up.
    pub fn new(address: u64, pages: u64) -> Result<Self, CallError> {
        // SAFETY: the call maps memory where nothing was mapped, or fails.
        unsafe { make(Call::Map, [address, pages, rights::WRITE, 0]) }?;
        Ok(Self { address, pages })
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.pages.saturating_mul(PAGE)).unwrap_or(0)
    }
}

impl Deref for Mapping {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: mapped as long as this guard is there, and reached through it alone.
        unsafe { core::slice::from_raw_parts(self.address as *const u8, self.bytes()) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u8, self.bytes()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing borrows the memory any more. What was mapped can be unmapped.
        let _ = unsafe { make(Call::Unmap, [self.address, self.pages, 0, 0]) };
    }
}
