//! What can be wrong with a dump, as sentences for the person who took it.

use paging::guest::VisitError;

/// Why a dump cannot be audited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// Another format.
    #[error(
        "not an ELF memory dump ({0}); take one with QEMU's `dump-guest-memory FILE`, \
         `virsh dump --memory-only`, or `makedumpfile -E` for a kdump"
    )]
    NotADump(&'static str),
    /// Another format, which is known.
    #[error("{what} is not read: {instead}")]
    Format {
        /// What the file is.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
    /// Part of the file is missing.
    #[error(
        "the dump is cut off: {what} ends at byte {end}, the file at byte {length}; take it again"
    )]
    Truncated {
        /// What is missing.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Length of the file.
        length: u64,
    },
    /// A part that the headers promise could not be read.
    #[error("the dump's {0} cannot be read")]
    Unreadable(&'static str),
    /// The headers contradict themselves.
    #[error("the dump is damaged: {0}; take it again")]
    Damaged(&'static str),
    /// No page tables of a kernel.
    #[error(
        "no page tables of a Linux kernel were found: {tried} candidates from {evidence} map no \
         kernel image{}; find out the right value of CR3 and give it with --cr3",
        if *missing > 0 { " (and the dump is cut off: take it again)" } else { "" }
    )]
    NoRoot {
        /// How many addresses were tried.
        tried: usize,
        /// Where they came from.
        evidence: &'static str,
        /// Frames that the file should hold and does not.
        missing: u64,
    },
    /// The page tables of the kernel half cannot be walked to their end.
    #[error("the kernel's page tables cannot be audited: {0}")]
    Tables(VisitError),
    /// The counters do not fit.
    #[error("no memory for the counters of {0} frames")]
    Memory(u64),
    /// The symbols given are of no use.
    #[error("{0}")]
    Symbols(&'static str),
}
