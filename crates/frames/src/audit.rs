//! The audit: judges every leaf of every page table in the machine by rules 2 and 5 of the memory
//! design. The hypervisor maps its own frames only, no page of its own is writable and executable,
//! and no guest's second stage reaches a frame of the hypervisor's, but those that are published:
//! these may be read, and neither written nor executed.

use addr::{FrameRange, HostPhysical};

/// A leaf, or a run of leaves alike, of whatever format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditedLeaf {
    /// The frames that it maps.
    pub frames: FrameRange<HostPhysical>,
    /// They can be written.
    pub write: bool,
    /// They can be executed.
    pub execute: bool,
}

/// What is wrong with a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A page of the hypervisor's is writable and executable.
    #[error("a page of the hypervisor's is writable and executable")]
    WritableCode,
    /// The hypervisor maps a frame that is not its own.
    #[error("the hypervisor maps a frame that is not its own")]
    ForeignFrame,
    /// A guest reaches a frame of the hypervisor's.
    #[error("a guest reaches the hypervisor's memory")]
    GuestReachesOwn,
    /// A guest can write or execute what is published for reading.
    #[error("a guest can write or execute what is published for reading")]
    GuestChangesPublished,
}

/// Judges leaves, and counts them.
#[derive(Clone, Debug)]
pub struct Audit<'a> {
    own: &'a [FrameRange<HostPhysical>],
    devices: &'a [FrameRange<HostPhysical>],
    published: FrameRange<HostPhysical>,
    runs: u64,
}

impl<'a> Audit<'a> {
    /// `own`: the hypervisor's memory; `devices`: registers that it maps too. Neither has
    /// overlapping ranges. `published`: the part of `own` that a guest may read.
    pub const fn new(
        own: &'a [FrameRange<HostPhysical>],
        devices: &'a [FrameRange<HostPhysical>],
        published: FrameRange<HostPhysical>,
    ) -> Self {
        Self { own, devices, published, runs: 0 }
    }

    /// Runs of leaves judged so far.
    pub const fn runs(&self) -> u64 {
        self.runs
    }

    /// Judges a leaf of the hypervisor's own table.
    ///
    /// # Errors
    /// `WritableCode`, `ForeignFrame`.
    pub fn own_leaf(&mut self, leaf: AuditedLeaf) -> Result<(), Finding> {
        self.runs += 1;
        let allowed = self.own.iter().chain(self.devices);
        let covered: u64 = allowed.map(|range| common(*range, leaf.frames)).sum();
        if covered != leaf.frames.count() {
            Err(Finding::ForeignFrame)
        } else if leaf.write && leaf.execute {
            Err(Finding::WritableCode)
        } else {
            Ok(())
        }
    }

    /// Judges a leaf of a guest's second stage.
    ///
    /// # Errors
    /// `GuestReachesOwn`, `GuestChangesPublished`.
    pub fn guest_leaf(&mut self, leaf: AuditedLeaf) -> Result<(), Finding> {
        self.runs += 1;
        let reached: u64 = self.own.iter().map(|range| common(*range, leaf.frames)).sum();
        let published = common(self.published, leaf.frames);
        if reached > published {
            Err(Finding::GuestReachesOwn)
        } else if published > 0 && (leaf.write || leaf.execute) {
            Err(Finding::GuestChangesPublished)
        } else {
            Ok(())
        }
    }
}

/// Number of frames in both ranges.
fn common(a: FrameRange<HostPhysical>, b: FrameRange<HostPhysical>) -> u64 {
    FrameRange::new(a.start.max(b.start), a.end.min(b.end)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use addr::Hfn;
    use proptest::prelude::*;

    fn range(start: u64, count: u64) -> FrameRange<HostPhysical> {
        FrameRange::with_count(Hfn::new(start), count)
    }

    proptest! {
        /// The model: frame by frame.
        #[test]
        fn judges_like_a_look_at_every_frame(
            start in 0_u64..60,
            count in 1_u64..20,
            write: bool,
            execute: bool,
        ) {
            let own = [range(10, 10), range(30, 5)];
            let devices = [range(50, 1)];
            let leaf = AuditedLeaf { frames: range(start, count), write, execute };
            let published = range(13, 3);
            let mut audit = Audit::new(&own, &devices, published);
            let is_own = |frame: Hfn| own.iter().any(|range| range.contains(frame));
            let mapped = |frame: Hfn| is_own(frame) || devices[0].contains(frame);
            let expected = if !leaf.frames.iter().all(mapped) {
                Err(Finding::ForeignFrame)
            } else if write && execute {
                Err(Finding::WritableCode)
            } else {
                Ok(())
            };
            prop_assert_eq!(audit.own_leaf(leaf), expected);
            let is_published = |frame: Hfn| published.contains(frame);
            let expected = if leaf.frames.iter().any(|frame| is_own(frame) && !is_published(frame)) {
                Err(Finding::GuestReachesOwn)
            } else if leaf.frames.iter().any(is_published) && (write || execute) {
                Err(Finding::GuestChangesPublished)
            } else {
                Ok(())
            };
            prop_assert_eq!(audit.guest_leaf(leaf), expected);
            prop_assert_eq!(audit.runs(), 2);
        }
    }
}
