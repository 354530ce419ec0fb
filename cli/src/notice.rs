//! What the emulators have to say, in the same words for all of them.

/// What an emulator says of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine; it starts again, or stays stopped if told not to reboot.
    Reset {
        /// Whether it stays stopped.
        stopped: bool,
    },
    /// Somebody else ended it: a signal, or `quit`.
    Ended,
    /// It cannot go on.
    Failed(String),
    /// What may explain a failure that follows.
    Complaint(String),
}
