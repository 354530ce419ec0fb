//! What a kernel leaves behind for the one that follows it by kexec: the list of pages to move, the
//! segments that they make, in one of them the parameters of the boot, and an initial file system.
//!
//! All of it comes from a kernel that may be hostile. Nothing here touches memory: a caller shows
//! words and bytes, and gets what they mean, each address only as a number still to be checked.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod initrd;
mod list;
mod parameters;

pub use initrd::Search;
pub use list::{MOST_SEGMENTS, Segments, walk};
pub use parameters::{BYTES as PARAMETER_BYTES, Parameters};

/// Why no kernel can be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The list goes on for too long, as one that leads in circles does.
    Endless,
    /// An entry of the list is nowhere that could be read.
    Unread,
    /// A page is to go where the list has not said.
    NoDestination,
    /// More segments than Linux makes.
    Segments,
    /// A page is moved from or to where the guest's memory is not, or where something else must be.
    Place,
    /// No segment is a kernel that the policy names.
    Unnamed,
    /// The kernel has less room than it needs.
    Room,
    /// No segment tells of a boot.
    NoParameters,
    /// The initial file system is not in memory, or in the kernel's way.
    Initrd,
    /// The initial file system has what a kernel takes for its firmware's, or its administrator's.
    Forbidden,
}

impl From<Refusal> for &'static str {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Endless => "the list of pages does not end",
            Refusal::Unread => "the list of pages is not in memory",
            Refusal::NoDestination => "the list of pages has no destination",
            Refusal::Segments => "the list of pages has too many segments",
            Refusal::Place => "a page is moved from or to a place that is not free memory",
            Refusal::Unnamed => "no part of what was loaded is a kernel that the policy names",
            Refusal::Room => "the kernel has not the room that it needs",
            Refusal::NoParameters => "no part of what was loaded has the parameters of a boot",
            Refusal::Initrd => "the initial file system is where it cannot be",
            Refusal::Forbidden => "the initial file system has ACPI tables or a boot configuration",
        }
    }
}
