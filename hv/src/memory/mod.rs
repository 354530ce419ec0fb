//! The hypervisor's own memory.
//!
//! What is mapped, in every CPU's table: the image at its physical address (text R X, read-only
//! data R, data R W), the pool at [`DIRECT_MAP`], the local APIC at [`APIC_WINDOW`]. Guest RAM is
//! not mapped at all; [`window`] opens one frame at a time, on one CPU. No page is writable and
//! executable. The four gibibytes that `entry.s` maps to boot with are gone before a guest runs.

pub mod flush;
pub mod physical;
pub mod pool;
pub mod secret;
pub mod space;
pub mod window;

use addr::Hva;

/// Where pool frames are mapped: host-physical address plus this.
pub const DIRECT_MAP: Hva = Hva::new(0xffff_8000_0000_0000);
/// Where each CPU maps its windows: another place than any fixed offset from a physical address.
pub const WINDOWS: Hva = Hva::new(0xffff_8080_0000_0000);
/// Where the local APIC's registers are mapped, uncached.
pub const APIC_WINDOW: Hva = Hva::new(0xffff_8100_0000_0000);
