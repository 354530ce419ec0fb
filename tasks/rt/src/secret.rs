//! Secret memory: in no map of the hypervisor's, shared with nobody.

use crate::call::make;
use abi::task::{Call, CallError};
use core::ops::{Deref, DerefMut};

/// A secret; it is ended, and its memory zeroed, when this is dropped.
#[derive(Debug)]
pub struct Secret {
    handle: u64,
    bytes: u64,
}

impl Secret {
    /// Makes a secret of at least one byte, zero at first. It takes whole blocks of 2 MiB.
    ///
    /// # Errors
    /// The size is 0 or out of range, the quota is used up, there are too many secrets, or the
    /// hypervisor has not as much memory.
    pub fn new(bytes: u64) -> Result<Self, CallError> {
        // SAFETY: the call takes no memory of the task's.
        let handle = unsafe { make(Call::SecretCreate, [bytes, 0, 0, 0]) }?;
        Ok(Self { handle, bytes })
    }

    /// Its number among the calls' arguments.
    pub const fn handle(&self) -> u64 {
        self.handle
    }

    /// Maps it at `address`, until the guard is dropped.
    ///
    /// # Errors
    /// The address is not a task's or not a multiple of 2 MiB, or something is mapped there.
    pub fn map(&mut self, address: u64) -> Result<Mapped<'_>, CallError> {
        // SAFETY: the call maps memory where nothing was mapped, or fails.
        unsafe { make(Call::SecretMap, [self.handle, address, 0, 0]) }?;
        Ok(Mapped { secret: self, address })
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        // SAFETY: it is not mapped, since that would borrow it.
        let _ = unsafe { make(Call::SecretDestroy, [self.handle, 0, 0, 0]) };
    }
}

/// A secret that is mapped.
#[derive(Debug)]
pub struct Mapped<'a> {
    secret: &'a mut Secret,
    address: u64,
}

impl Mapped<'_> {
    fn length(&self) -> usize {
        usize::try_from(self.secret.bytes).unwrap_or(0)
    }
}

impl Deref for Mapped<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: mapped as long as this guard is there, and reached through it alone.
        unsafe { core::slice::from_raw_parts(self.address as *const u8, self.length()) }
    }
}

impl DerefMut for Mapped<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { core::slice::from_raw_parts_mut(self.address as *mut u8, self.length()) }
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: nothing borrows the memory any more. What was mapped can be unmapped.
        let _ = unsafe { make(Call::SecretUnmap, [self.secret.handle, 0, 0, 0]) };
    }
}
