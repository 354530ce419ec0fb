//! What the guest may read of the hypervisor: the region of crate [`published`], a static of its own
//! pages. It lies in the image, which the guest's memory map shows as reserved.

use addr::{FrameRange, Gfn, GuestPhysical, HostPhysical, Hpa};
use published::{BYTES, Region};

/// The region. Counters are written by each CPU for itself, all else under the event channel's lock.
pub static REGION: Region = Region::new();

/// Its frames.
pub fn frames() -> FrameRange<HostPhysical> {
    // The image is mapped at its physical address, and the region is whole, aligned pages.
    let start = Hpa::new((&raw const REGION).addr() as u64);
    FrameRange::new(start.frame(), start.plus(BYTES as u64).frame())
}

/// Its frames as the guest sees them.
pub fn guest_frames() -> FrameRange<GuestPhysical> {
    let frames = frames();
    FrameRange::new(Gfn::new(frames.start.raw()), Gfn::new(frames.end.raw()))
}
