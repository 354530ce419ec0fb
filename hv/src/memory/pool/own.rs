//! The hypervisor's own frames of the pool, in use: as bytes, and as pages of tables.

use super::{bytes_of, give_back, region, take_own};
use addr::{FrameRange, Hfn, HostPhysical, PAGE_SIZE};
use frames::Owner;
use paging::{LINE, TableMemory};

/// Frames of the pool that one owner has taken for good, zeroed, and may use as bytes.
pub struct Block {
    frames: FrameRange<HostPhysical>,
}

impl Block {
    /// Takes `count` consecutive frames, zeroed; only one once frames have owners.
    pub fn take(count: u64) -> Option<Self> {
        Some(Self { frames: take_own(count)? })
    }

    /// The first frame.
    pub const fn start(&self) -> Hfn {
        self.frames.start
    }

    /// The bytes, for ever.
    pub fn leak(self) -> &'static mut [u8] {
        let length = addr::length(self.frames.count() * PAGE_SIZE);
        // SAFETY: `self` is the frames' only owner and is consumed; any byte is a valid u8.
        unsafe { core::slice::from_raw_parts_mut(bytes_of(self.frames), length) }
    }

    /// The bytes as a value of type `T`, for ever. `T` must fit.
    pub fn leak_as<T: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::KnownLayout>(
        self,
    ) -> Option<&'static mut T> {
        T::mut_from_prefix(self.leak()).ok().map(|(value, _)| value)
    }
}

/// Table pages from the pool, for [`paging`].
pub struct Tables;

impl Tables {
    fn entry(table: Hfn, index: usize) -> *mut u64 {
        bytes_of(FrameRange::with_count(table, 1))
            .cast::<u64>()
            .wrapping_add(index % paging::ENTRIES)
    }
}

impl TableMemory for Tables {
    fn read(&self, table: Hfn, index: usize) -> u64 {
        debug_assert!(region().contains(table));
        // SAFETY: tables are pool frames, mapped at the direct map; the index stays inside.
        unsafe { Self::entry(table, index).read_volatile() }
    }

    fn write(&mut self, table: Hfn, index: usize, entry: u64) {
        debug_assert!(region().contains(table));
        // SAFETY: as for `read`; one aligned 8-byte store, as a walker on another CPU expects.
        unsafe { Self::entry(table, index).write_volatile(entry) };
    }

    fn read_line(&self, table: Hfn, line: usize) -> [u64; LINE] {
        debug_assert!(region().contains(table));
        let first = Self::entry(table, line * LINE);
        // SAFETY: as for `read`; lines divide a table, so all of one is inside.
        core::array::from_fn(|offset| unsafe { first.wrapping_add(offset).read_volatile() })
    }

    fn write_line(&mut self, table: Hfn, line: usize, entries: [u64; LINE]) {
        debug_assert!(region().contains(table));
        let first = Self::entry(table, line * LINE);
        for (offset, entry) in entries.into_iter().enumerate() {
            // SAFETY: as for `write` and `read_line`.
            unsafe { first.wrapping_add(offset).write_volatile(entry) };
        }
    }

    fn allocate(&mut self) -> Option<Hfn> {
        take_own(1).map(|frames| frames.start)
    }

    fn free(&mut self, table: Hfn) {
        // Before there are owners nothing is given back; and nobody but the hypervisor has tables.
        let _ = give_back(&[table], Owner::Hv);
    }
}
