//! The hypervisor's own memory.
//!
//! What is mapped, in every CPU's space: the image at its physical address (text R X, read-only
//! data R, data R W), the hypervisor's frames of the pool at [`DIRECT_MAP`], the local APIC at
//! [`APIC_WINDOW`]. Guest RAM, and what the pool gave to a task or a secret, is not mapped at all;
//! [`window`] opens one frame at a time, on one CPU, and on no secret. No page is writable and
//! executable. The four gibibytes that `entry.s` maps to boot with are gone before a guest runs.
//!
//! [`space`] builds the spaces, [`pool`] knows the owners, `direct` is the direct map that goes with
//! them, [`flush`] makes CPUs forget, [`audit`] looks whether all of it is true.

pub mod audit;
mod direct;
pub mod flush;
pub mod physical;
pub mod pool;
pub mod secret;
pub mod space;
pub mod window;

use addr::Hva;

/// Where the hypervisor's pool frames are mapped: host-physical address plus this.
pub const DIRECT_MAP: Hva = Hva::new(0xffff_8000_0000_0000);
/// Where each CPU maps its windows: another place than any fixed offset from a physical address.
pub const WINDOWS: Hva = Hva::new(0xffff_8080_0000_0000);
/// Where each CPU maps a frame that is nobody's, to zero it. The last table of its windows.
const SCRATCH: Hva = WINDOWS.plus(2 << 20);
/// Where the local APIC's registers are mapped, uncached.
pub const APIC_WINDOW: Hva = Hva::new(0xffff_8100_0000_0000);
