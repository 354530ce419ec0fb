//! What becomes of an access that was judged.

/// Of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It goes to the hardware with this value, which may have lost bits that the hardware ignores.
    Pass(u64),
    /// It is done: nothing would change, or what changes is kept elsewhere.
    Done,
    /// It is dropped, and reported.
    Refuse(Refusal),
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It would send, or have sent, a message that is more than an interrupt; or it has a form that
    /// the hardware may take for one.
    Message,
    /// It would take something of the platform away from the hypervisor.
    Platform,
}
