//! Everything on the first page: the state of the machine as of now.

use crate::layout::{
    CHIPSET_AT, CHIPSET_WORDS, KINDS_AT, LATEST_AT, MODE_AT, POLICY_AT, POLICY_WORDS, RELEASE_AT,
    RELEASE_WORDS, SLOTS_AT, STAGE_AT, counter,
};
use crate::reader::{Reader, Words};
use abi::MAX_CPUS;
use abi::event::ViolationKind;
use abi::hypercall::{Counter, SupervisorMode};
use abi::policy::Policy;
use zerocopy::IntoBytes;

/// The first page, copied. Each word is as of one instant; the words are not of the same one.
#[derive(Clone, Debug)]
pub struct Snapshot {
    words: [u64; SLOTS_AT],
}

impl<M: Words> Reader<M> {
    /// Copies the first page.
    ///
    /// # Errors
    /// The region cannot be read any more.
    pub fn snapshot(&self) -> Result<Snapshot, M::Error> {
        let mut words = [0; SLOTS_AT];
        self.memory().load(0, &mut words)?;
        Ok(Snapshot { words })
    }
}

impl Snapshot {
    /// Sequence number of the latest record.
    pub const fn latest(&self) -> u64 {
        self.words[LATEST_AT]
    }

    /// How far the lock has come: 0, 1 for text, 2 for read-only data too.
    pub const fn stage(&self) -> u64 {
        self.words[STAGE_AT]
    }

    /// How user and supervisor execution are told apart; `None` if this program does not know it.
    pub fn mode(&self) -> Option<SupervisorMode> {
        SupervisorMode::from_number(self.words[MODE_AT])
    }

    /// Ravelin's version.
    pub fn release(&self) -> Option<&str> {
        self.text(RELEASE_AT, RELEASE_WORDS)
    }

    /// The chipset whose registers are guarded.
    pub fn chipset(&self) -> Option<&str> {
        self.text(CHIPSET_AT, CHIPSET_WORDS)
    }

    fn text(&self, first: usize, count: usize) -> Option<&str> {
        let words = self.words.get(first..first + count)?;
        let text = words.as_bytes().split(|byte| *byte == 0).next()?;
        core::str::from_utf8(text).ok()
    }

    /// The policy in force; `None` if this program does not know its layout.
    pub fn policy(&self) -> Option<Policy> {
        let words = self.words.get(POLICY_AT..POLICY_AT + POLICY_WORDS)?;
        Policy::parse(words.as_bytes()).ok()
    }

    /// Violations of a kind so far.
    pub fn violations(&self, kind: ViolationKind) -> u64 {
        self.words.get(KINDS_AT + kind as usize).copied().unwrap_or(0)
    }

    /// Sum of a counter over all CPUs.
    pub fn total(&self, what: Counter) -> u64 {
        let of = |cpu| self.words.get(counter(cpu, what)).copied().unwrap_or(0);
        (0..MAX_CPUS).map(of).sum()
    }
}
