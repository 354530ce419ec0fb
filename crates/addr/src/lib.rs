//! Typed addresses. Guest-physical, host-physical, guest-virtual and host-virtual addresses are
//! different types and never mix; neither do byte addresses and frame numbers.
//!
//! An address is a plain `u64` inside; what space it belongs to is known to the compiler only.
//! The single place where a guest-physical number becomes a host-physical one is the identity
//! map of the primary VM, [`Frame::identity`].

#![no_std]
#![forbid(unsafe_code)]

use core::fmt;
use core::marker::PhantomData;

/// Bytes in the smallest page, and in a frame.
pub const PAGE_SIZE: u64 = 4096;
/// [`PAGE_SIZE`] as a length in memory.
pub const PAGE_BYTES: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Frames in a 2 MiB leaf.
pub const FRAMES_PER_2M: u64 = 512;
/// Frames in a 1 GiB leaf.
pub const FRAMES_PER_1G: u64 = 512 * 512;

const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "Ravelin is for 64-bit machines");

/// A 64-bit length as a length in memory, which is the same on the machines that Ravelin is for.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
pub const fn length(bytes: u64) -> usize {
    bytes as usize
}

/// A space in which addresses live. The types that implement it have no values of their own.
pub trait Space: 'static {
    /// Prefix in debug output, such as `gpa`.
    const NAME: &'static str;
}

macro_rules! space {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}
        impl Space for $name {
            const NAME: &'static str = $text;
        }
    };
}

space!(
    /// What the machine's memory controller sees.
    HostPhysical,
    "hpa"
);
space!(
    /// What a guest takes for physical memory; translated by the second stage.
    GuestPhysical,
    "gpa"
);
space!(
    /// What the hypervisor's own instructions use.
    HostVirtual,
    "hva"
);
space!(
    /// What a guest's instructions use; translated by the guest's own tables.
    GuestVirtual,
    "gva"
);

/// A byte address in space `S`.
pub struct Addr<S: Space>(u64, PhantomData<S>);

/// Host-physical byte address.
pub type Hpa = Addr<HostPhysical>;
/// Guest-physical byte address.
pub type Gpa = Addr<GuestPhysical>;
/// Host-virtual byte address.
pub type Hva = Addr<HostVirtual>;
/// Guest-virtual byte address.
pub type Gva = Addr<GuestVirtual>;

/// A 4 KiB frame (physical spaces) or page (virtual spaces) number in space `S`.
pub struct Frame<S: Space>(u64, PhantomData<S>);

/// Host-physical frame number.
pub type Hfn = Frame<HostPhysical>;
/// Guest-physical frame number.
pub type Gfn = Frame<GuestPhysical>;
/// Host-virtual page number.
pub type Hpn = Frame<HostVirtual>;
/// Guest-virtual page number.
pub type Gpn = Frame<GuestVirtual>;

macro_rules! number {
    ($name:ident) => {
        impl<S: Space> $name<S> {
            /// Takes a raw number for a member of this space.
            pub const fn new(raw: u64) -> Self {
                Self(raw, PhantomData)
            }
            /// The raw number.
            pub const fn raw(self) -> u64 {
                self.0
            }
            /// `self + n`, wrapping at the end of the 64-bit space as the CPU's address adders do.
            #[must_use]
            pub const fn plus(self, n: u64) -> Self {
                Self(self.0.wrapping_add(n), PhantomData)
            }
            /// `self + n`, or `None` past the end of the 64-bit space.
            pub const fn checked_add(self, n: u64) -> Option<Self> {
                match self.0.checked_add(n) {
                    Some(raw) => Some(Self(raw, PhantomData)),
                    None => None,
                }
            }
        }
        impl<S: Space> Clone for $name<S> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<S: Space> Copy for $name<S> {}
        impl<S: Space> PartialEq for $name<S> {
            fn eq(&self, other: &Self) -> bool {
                self.0 == other.0
            }
        }
        impl<S: Space> Eq for $name<S> {}
        impl<S: Space> PartialOrd for $name<S> {
            fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }
        impl<S: Space> Ord for $name<S> {
            fn cmp(&self, other: &Self) -> core::cmp::Ordering {
                self.0.cmp(&other.0)
            }
        }
        impl<S: Space> core::hash::Hash for $name<S> {
            fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
                self.0.hash(state);
            }
        }
        impl<S: Space> fmt::Debug for $name<S> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}:{:#x}", S::NAME, self.0)
            }
        }
    };
}

number!(Addr);
number!(Frame);

impl<S: Space> Addr<S> {
    /// The frame that holds this byte.
    pub const fn frame(self) -> Frame<S> {
        Frame::new(self.0 >> PAGE_SHIFT)
    }
    /// Offset inside the 4 KiB frame, 0 to 4095.
    pub const fn offset(self) -> usize {
        (self.0 & (PAGE_SIZE - 1)) as usize
    }
    /// Whether the address is a multiple of `align` (a power of two).
    pub const fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }
}

impl<S: Space> Frame<S> {
    /// Address of the frame's first byte.
    pub const fn start(self) -> Addr<S> {
        Addr::new(self.0 << PAGE_SHIFT)
    }
    /// Whether the number is a multiple of `frames` (a power of two).
    pub const fn is_aligned(self, frames: u64) -> bool {
        self.0 & (frames - 1) == 0
    }
}

impl Addr<GuestPhysical> {
    /// The host address behind a guest address of the primary VM; see [`Frame::identity`].
    pub const fn identity(self) -> Hpa {
        Addr::new(self.0)
    }
}

impl Frame<GuestPhysical> {
    /// The host frame behind a guest frame of the primary VM, whose second stage maps every
    /// guest frame to the host frame of the same number.
    pub const fn identity(self) -> Hfn {
        Frame::new(self.0)
    }
}

/// A run of frames `[start, end)`; empty when `start >= end`.
pub struct FrameRange<S: Space> {
    /// First frame.
    pub start: Frame<S>,
    /// One past the last frame.
    pub end: Frame<S>,
}

impl<S: Space> FrameRange<S> {
    /// The range `[start, end)`.
    pub const fn new(start: Frame<S>, end: Frame<S>) -> Self {
        Self { start, end }
    }
    /// `count` frames from `start` on.
    pub const fn with_count(start: Frame<S>, count: u64) -> Self {
        Self { start, end: start.plus(count) }
    }
    /// The frames touched by bytes `[start, start + length)`.
    pub const fn covering(start: Addr<S>, length: u64) -> Self {
        if length == 0 {
            return Self { start: start.frame(), end: start.frame() };
        }
        Self { start: start.frame(), end: start.plus(length - 1).frame().plus(1) }
    }
    /// Number of frames.
    pub const fn count(self) -> u64 {
        self.end.raw().saturating_sub(self.start.raw())
    }
    /// Whether the range holds no frame.
    pub const fn is_empty(self) -> bool {
        self.count() == 0
    }
    /// Whether `frame` lies inside.
    pub const fn contains(self, frame: Frame<S>) -> bool {
        self.start.raw() <= frame.raw() && frame.raw() < self.end.raw()
    }
    /// Whether the two ranges share a frame.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start.raw() < other.end.raw()
            && other.start.raw() < self.end.raw()
            && !self.is_empty()
            && !other.is_empty()
    }
    /// The frames, in order.
    pub fn iter(self) -> impl Iterator<Item = Frame<S>> {
        (self.start.raw()..self.end.raw()).map(Frame::new)
    }
}

impl<S: Space> Clone for FrameRange<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space> Copy for FrameRange<S> {}
impl<S: Space> PartialEq for FrameRange<S> {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.end == other.end
    }
}
impl<S: Space> Eq for FrameRange<S> {}
impl<S: Space> fmt::Debug for FrameRange<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}..{:?}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covering_counts_partial_frames() {
        assert_eq!(FrameRange::covering(Gpa::new(0xfff), 2).count(), 2);
        assert_eq!(FrameRange::covering(Gpa::new(0x1000), 0x1000).count(), 1);
        assert!(FrameRange::covering(Gpa::new(0x1234), 0).is_empty());
    }

    #[test]
    fn empty_ranges_overlap_nothing() {
        let empty = FrameRange::with_count(Hfn::new(5), 0);
        let full = FrameRange::with_count(Hfn::new(0), 10);
        assert!(!empty.overlaps(full));
        assert!(!full.overlaps(empty));
        assert!(full.overlaps(FrameRange::with_count(Hfn::new(9), 4)));
        assert!(!full.overlaps(FrameRange::with_count(Hfn::new(10), 4)));
    }

    #[test]
    fn an_address_splits_into_frame_and_offset() {
        let address = Gva::new(0xffff_ffff_8123_4567);
        assert_eq!(address.frame().start().plus(address.offset() as u64), address);
    }
}
