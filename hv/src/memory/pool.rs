//! The pool: the region that the hypervisor took from the machine at boot, and from which it
//! takes every frame it ever needs. [`frames::Pool`] decides which; this module maps and zeroes.

use super::DIRECT_MAP;
use addr::{FrameRange, Hfn, HostPhysical, PAGE_SIZE};
use frames::Pool;
use paging::TableMemory;
use spin::Once;
use spin::mutex::SpinMutex;

static POOL: Once<SpinMutex<Pool<&'static mut [u64]>>> = Once::new();
static REGION: Once<FrameRange<HostPhysical>> = Once::new();

/// Starts the pool over `region`, mapped at [`DIRECT_MAP`]. Its first `used` frames are taken
/// already; the bitmap is placed behind them.
pub fn initialise(region: FrameRange<HostPhysical>, used: u64) -> Result<(), frames::PoolError> {
    let words = frames::bitmap_words(region.count());
    let bitmap_frames = (words * 8).div_ceil(PAGE_SIZE);
    let bitmap = bytes_of(FrameRange::with_count(region.start.plus(used), bitmap_frames));
    // SAFETY: the frames are page-aligned, mapped, and behind everything taken so far; they are
    // marked as taken below, so this is their only user.
    let bitmap =
        unsafe { core::slice::from_raw_parts_mut(bitmap.cast::<u64>(), addr::length(words)) };
    let mut pool = Pool::new(region, bitmap)?;
    pool.reserve(FrameRange::with_count(region.start, used + bitmap_frames))?;
    REGION.call_once(|| region);
    POOL.call_once(|| SpinMutex::new(pool));
    Ok(())
}

/// All frames of the pool.
pub fn region() -> FrameRange<HostPhysical> {
    REGION.get().copied().unwrap_or(FrameRange::with_count(Hfn::new(0), 0))
}

/// Frames not taken yet.
pub fn available() -> u64 {
    POOL.get().map_or(0, |pool| pool.lock().available())
}

/// Where a pool frame's bytes are mapped.
fn bytes_of(frames: FrameRange<HostPhysical>) -> *mut u8 {
    DIRECT_MAP.plus(frames.start.start().raw()).raw() as *mut u8
}

/// Frames of the pool that one owner has taken for good, zeroed, and may use as bytes.
pub struct Block {
    frames: FrameRange<HostPhysical>,
}

impl Block {
    /// Takes `count` consecutive frames and zeroes them.
    pub fn take(count: u64) -> Option<Self> {
        let mut pool = POOL.get()?.lock();
        let frames = match count {
            1 => FrameRange::with_count(pool.allocate()?, 1),
            _ => pool.allocate_contiguous(count, 1)?,
        };
        drop(pool);
        // SAFETY: the pool gave these frames to nobody else and they are mapped.
        unsafe { bytes_of(frames).write_bytes(0, addr::length(count * PAGE_SIZE)) };
        Some(Self { frames })
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

    fn allocate(&mut self) -> Option<Hfn> {
        Block::take(1).map(|block| block.start())
    }

    fn free(&mut self, table: Hfn) {
        // A frame that came from the pool is taken back; anything else it refuses by itself.
        if let Some(pool) = POOL.get() {
            let _ = pool.lock().free(table);
        }
    }
}
