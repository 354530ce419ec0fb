//! The writer's side: the region itself.

use crate::layout::{
    BYTES, BYTES_AT, CHIPSET_AT, CHIPSET_WORDS, KINDS_AT, LATEST_AT, MAGIC, MAGIC_AT, MODE_AT,
    POLICY_AT, RELEASE_AT, RELEASE_WORDS, SLOT_WORDS, STAGE_AT, VERSION, VERSION_AT, WORD, WORDS,
    WRITING, counter, slot,
};
use abi::MAX_CPUS;
use abi::event::{Header, ViolationKind};
use abi::hypercall::{Counter, SupervisorMode};
use abi::policy::Record;
use core::sync::atomic::{AtomicU64, Ordering};
use zerocopy::IntoBytes;

/// The region: whole pages that hold nothing else, so that they can be mapped for a guest.
#[repr(C, align(4096))]
pub struct Region([AtomicU64; WORDS]);

const _: () = assert!(size_of::<Region>() == BYTES);

impl Default for Region {
    fn default() -> Self {
        Self::new()
    }
}

impl Region {
    /// All zero. A reader refuses it until [`Region::open`].
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// Writes what is known at boot; readers take the region from now on.
    pub fn open(&self, mode: SupervisorMode, policy: &Record, release: &str) {
        self.put_text::<{ RELEASE_WORDS * WORD }>(RELEASE_AT, release);
        self.put_bytes(POLICY_AT, policy.as_bytes());
        self.put(MODE_AT, mode as u64);
        self.put(BYTES_AT, BYTES as u64);
        self.put(VERSION_AT, VERSION);
        self.put(MAGIC_AT, MAGIC);
    }

    /// Says how far the lock has come: 0, 1 for text, 2 for read-only data too.
    pub fn set_stage(&self, stage: u64) {
        self.put(STAGE_AT, stage);
    }

    /// Says which chipset's registers are guarded; as much of the name as fits.
    pub fn set_chipset(&self, name: &str) {
        self.put_text::<{ CHIPSET_WORDS * WORD }>(CHIPSET_AT, name);
    }

    /// Adds one to a counter of a CPU, which alone may call this.
    #[inline]
    pub fn count(&self, cpu: usize, what: Counter) {
        self.add_one(counter(cpu, what));
    }

    /// Sum of a counter over all CPUs.
    pub fn total(&self, what: Counter) -> u64 {
        (0..MAX_CPUS).map(|cpu| self.get(counter(cpu, what))).sum()
    }

    /// Counts a violation. One caller at a time.
    pub fn count_violation(&self, kind: ViolationKind) {
        self.add_one(KINDS_AT + kind as usize);
    }

    /// Adds a record, whose sequence number is one more than that of the one before. One caller at
    /// a time.
    pub fn record(&self, header: &Header, payload: &[u8]) {
        write_record(header, payload, &mut |index, value| self.put(index, value));
    }

    #[inline]
    fn add_one(&self, index: usize) {
        // A load and a store suffice, since nobody else stores there.
        self.put(index, self.get(index).wrapping_add(1));
    }

    fn put_text<const BYTES: usize>(&self, first: usize, text: &str) {
        let mut bytes = [0; BYTES];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        self.put_bytes(first, &bytes);
    }

    fn put_bytes(&self, first: usize, bytes: &[u8]) {
        for (index, value) in words(bytes).enumerate() {
            self.put(first + index, value);
        }
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn put(&self, index: usize, value: u64) {
        // Every index that is used lies inside, by the layout.
        if let Some(word) = self.0.get(index) {
            word.store(value, Ordering::Release);
        }
    }
}

/// The stores that add a record, in their order. What `payload` has beyond a slot is left out.
pub(crate) fn write_record(header: &Header, payload: &[u8], put: &mut impl FnMut(usize, u64)) {
    let first = slot(header.sequence);
    put(first, header.sequence | WRITING);
    let record = words(header.as_bytes()).chain(words(payload));
    for (index, value) in record.enumerate().take(SLOT_WORDS - 1) {
        put(first + 1 + index, value);
    }
    put(first, header.sequence);
    put(LATEST_AT, header.sequence);
}

/// Bytes as words, the last one filled up with zeros.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(WORD).map(|chunk| {
        let mut word = [0; WORD];
        for (to, from) in word.iter_mut().zip(chunk) {
            *to = *from;
        }
        u64::from_le_bytes(word)
    })
}
