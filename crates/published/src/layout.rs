//! Which word means what. Words are little-endian and counted from the start of the region.
//!
//! | words | what |
//! |---|---|
//! | 0 | [`MAGIC`]; 0 until everything else on the first page is there |
//! | 1 | [`VERSION`] |
//! | 2 | bytes of the region |
//! | 3 | sequence number of the latest record, 0 before the first |
//! | 4 | 0: the kernel is not locked, 1: its text is, 2: its read-only data is too |
//! | 5 | how user and supervisor execution are told apart (`abi::hypercall::SupervisorMode`) |
//! | 6, 7 | Ravelin's version, as text that ends at the first zero byte |
//! | 8 to 23 | the policy (`abi::policy::Record`) |
//! | 24 to 55 | violations by kind (`abi::event::ViolationKind`) |
//! | 56 to 59 | the chipset whose registers are guarded, as text that ends at the first zero byte |
//! | 128 to 511 | [`CPU_WORDS`] counters per CPU (`abi::hypercall::Counter`) |
//! | 512 on | [`SLOTS`] slots of [`SLOT_WORDS`]; the record with sequence number n is in slot n modulo [`SLOTS`] |
//!
//! A slot is its stamp, then the record as on the event channel (`abi::event::Header`, payload).

use abi::MAX_CPUS;
use abi::event::{Header, MAX_PAYLOAD, ViolationKind};
use abi::hypercall::Counter;
use abi::policy::Record;

/// First word of a region.
pub const MAGIC: u64 = u64::from_le_bytes(*b"RVPUBLIC");
/// Version of this layout.
pub const VERSION: u64 = 2;
/// Records that are kept.
pub const SLOTS: usize = 256;

pub(crate) const MAGIC_AT: usize = 0;
pub(crate) const VERSION_AT: usize = 1;
pub(crate) const BYTES_AT: usize = 2;
pub(crate) const LATEST_AT: usize = 3;
pub(crate) const STAGE_AT: usize = 4;
pub(crate) const MODE_AT: usize = 5;
pub(crate) const RELEASE_AT: usize = 6;
pub(crate) const RELEASE_WORDS: usize = 2;
pub(crate) const POLICY_AT: usize = 8;
pub(crate) const POLICY_WORDS: usize = size_of::<Record>() / WORD;
pub(crate) const KINDS_AT: usize = 24;
pub(crate) const CHIPSET_AT: usize = 56;
pub(crate) const CHIPSET_WORDS: usize = 4;
pub(crate) const COUNTERS_AT: usize = 128;
pub(crate) const SLOTS_AT: usize = 512;

/// Bytes per word.
pub(crate) const WORD: usize = 8;
/// Words per CPU: whole cache lines, so that no two CPUs write to the same one.
pub(crate) const CPU_WORDS: usize = 24;
pub(crate) const HEADER_WORDS: usize = size_of::<Header>() / WORD;
pub(crate) const PAYLOAD_WORDS: usize = MAX_PAYLOAD / WORD;
/// Stamp and record.
pub(crate) const SLOT_WORDS: usize = 1 + HEADER_WORDS + PAYLOAD_WORDS;

/// Words of the region.
pub const WORDS: usize = SLOTS_AT + SLOTS * SLOT_WORDS;
/// Bytes of the region: whole pages.
pub const BYTES: usize = WORDS * WORD;

/// Set in a slot's stamp while the record is being written.
pub(crate) const WRITING: u64 = 1 << 63;

/// First word of the slot of record `sequence`.
pub(crate) fn slot(sequence: u64) -> usize {
    let number = usize::try_from(sequence % SLOTS as u64).unwrap_or(0);
    SLOTS_AT + number * SLOT_WORDS
}

/// The word of a CPU's counter.
#[inline]
pub(crate) const fn counter(cpu: usize, counter: Counter) -> usize {
    COUNTERS_AT + cpu * CPU_WORDS + counter as usize
}

const _: () = {
    assert!(BYTES.is_multiple_of(4096));
    assert!(POLICY_AT + POLICY_WORDS <= KINDS_AT && POLICY_WORDS * WORD == size_of::<Record>());
    assert!(KINDS_AT + ViolationKind::COUNT <= CHIPSET_AT);
    assert!(CHIPSET_AT + CHIPSET_WORDS <= COUNTERS_AT);
    assert!(Counter::ALL.len() <= CPU_WORDS && CPU_WORDS.is_multiple_of(64 / WORD));
    assert!(COUNTERS_AT + MAX_CPUS * CPU_WORDS == SLOTS_AT);
    assert!(HEADER_WORDS * WORD == size_of::<Header>() && PAYLOAD_WORDS * WORD == MAX_PAYLOAD);
};
