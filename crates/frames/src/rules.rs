//! The rules of ownership, each by its name. They always hold; that each is needed, the tests show
//! by breaking one at a time and finding the harm (`ownership::tests::protocol`).

/// Which rules are kept. Outside of tests: all.
pub trait Rules: Sealed {
    /// A frame leaves quarantine when every CPU has flushed, not before.
    const QUARANTINE: bool = true;
    /// Only a flush asked for after a frame was freed counts.
    const LATER_FLUSH: bool = true;
    /// A frame that leaves quarantine is zeroed.
    const ZERO: bool = true;
    /// A block is zeroed before any of its frames is first given out, and before it is first set
    /// aside.
    const ZERO_FRESH: bool = true;
    /// Only the owner gives a frame back.
    const OWNER_FREES: bool = true;
    /// A frame with an open window is not freed.
    const WINDOW_PINS: bool = true;
    /// Windows open on frames of VMs and tasks only: no secret, nothing freed, nothing free.
    const WINDOW_KINDS: bool = true;
    /// A block leaves the direct map when it is set aside.
    const SET_ASIDE_UNMAPS: bool = true;
    /// A frame of a block set aside is given out when every CPU has forgotten the direct map there.
    const LEAVE_QUARANTINE: bool = true;
    /// The hypervisor's frame in a block set aside leaves the direct map when it is freed.
    const STRAY_UNMAPS: bool = true;
    /// A block comes back into the direct map when it has no foreign frame and none in quarantine.
    const WHOLE_RETURNS: bool = true;
}

/// All rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Enforced {}
impl Rules for Enforced {}
impl Sealed for Enforced {}

/// Only this crate breaks rules.
pub trait Sealed {}
