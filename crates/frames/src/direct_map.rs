//! What ownership asks of the direct map.

use addr::{FrameRange, Hfn, HostPhysical};

/// The direct map has no table page left for a split or a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for a table of the direct map: enlarge the hypervisor's pool")]
pub struct NoTables;

/// The hypervisor's direct map, as far as ownership changes it. Each call happens under the same
/// lock as the change of owner that it belongs to.
pub trait DirectMap {
    /// Makes sure that no leaf reaches over an edge of `frames`, so that [`DirectMap::unmap`] takes
    /// no memory.
    ///
    /// # Errors
    /// `NoTables`; nothing was changed.
    fn split(&mut self, frames: FrameRange<HostPhysical>) -> Result<(), NoTables>;

    /// Unmaps frames over whose edges no leaf reaches. The flush is the caller's of ownership: it
    /// asks for one when it wants the frames.
    fn unmap(&mut self, frames: FrameRange<HostPhysical>);

    /// Maps one frame that is not mapped.
    ///
    /// # Errors
    /// `NoTables`; nothing was changed.
    fn map(&mut self, frame: Hfn) -> Result<(), NoTables>;

    /// Zeroes frames that are mapped.
    fn zero(&mut self, frames: FrameRange<HostPhysical>);

    /// Maps a whole block by one leaf, whatever part of it is mapped now.
    ///
    /// # Errors
    /// `NoTables`; nothing was changed.
    fn restore(&mut self, block: FrameRange<HostPhysical>) -> Result<(), NoTables>;
}

/// The direct map's leaves over the pool, and what became of them since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Leaves {
    /// Blocks mapped by one leaf of 2 MiB (or part of a larger one).
    pub large: u64,
    /// Leaves of 4 KiB.
    pub small: u64,
    /// Blocks that were mapped as a whole and became small leaves.
    pub splits: u64,
    /// Blocks that were mapped by small leaves and became whole again.
    pub collapses: u64,
}
