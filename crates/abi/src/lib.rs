//! What crosses a boundary: events that leave the hypervisor, the policy and the manifest that
//! enter it, and the hypercall that a guest may make.
//!
//! Everything here is a fixed little-endian C layout read and written through `zerocopy`, so that
//! both sides agree byte for byte and nothing is parsed twice.

#![no_std]
#![forbid(unsafe_code)]

pub mod event;
pub mod hypercall;
pub mod manifest;
pub mod policy;

/// Ravelin runs on at most this many CPUs.
pub const MAX_CPUS: usize = 16;

/// The digest used where a record must be recognised and accidental damage found: XXH3, 64 bits,
/// seed 0. It is no defence against somebody who can choose the bytes; measured boot is.
pub fn digest(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// The same digest fed piece by piece.
#[derive(Clone)]
pub struct Digest(xxhash_rust::xxh3::Xxh3);

impl Default for Digest {
    fn default() -> Self {
        Self(xxhash_rust::xxh3::Xxh3::new())
    }
}

impl Digest {
    /// Appends `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    /// The digest of everything appended so far.
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}
