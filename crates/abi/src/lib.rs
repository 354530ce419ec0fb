//! What crosses a boundary: events that leave the hypervisor, the policy and the manifest that
//! enter it, and the hypercall that a guest may make.
//!
//! Everything here is a fixed little-endian C layout read and written through `zerocopy`, so that
//! both sides agree byte for byte and nothing is parsed twice.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod event;
pub mod hypercall;
pub mod manifest;
pub mod planted;
pub mod policy;
pub mod task;

use rapidhash::v3::{RapidSecrets, RapidStreamHasherV3, rapidhash_v3_seeded};
use sha2::{Digest as _, Sha256};

/// Ravelin runs on at most this many CPUs.
pub const MAX_CPUS: usize = 16;

static SECRETS: RapidSecrets = RapidSecrets::seed_cpp(0);

/// The digest used where a record must be recognised and accidental damage found: rapidhash,
/// version 3, seed 0. It is no defence against somebody who can choose the bytes; measured boot is.
pub fn digest(bytes: &[u8]) -> u64 {
    rapidhash_v3_seeded(bytes, &SECRETS)
}

/// The same digest fed piece by piece.
pub struct Digest(RapidStreamHasherV3<'static>);

impl Default for Digest {
    fn default() -> Self {
        Self(RapidStreamHasherV3::new(&SECRETS))
    }
}

impl Digest {
    /// Appends `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }
    /// The digest of everything appended so far.
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

/// SHA-256, fed piece by piece: where bytes are chosen by somebody who may be hostile.
#[derive(Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Appends `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    /// The digest of everything appended.
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Fingerprint, digest};
    use proptest::prelude::*;

    #[test]
    fn a_fingerprint_is_sha_256() {
        let mut pieces = Fingerprint::default();
        pieces.update(b"a");
        pieces.update(b"bc");
        // FIPS 180-4's example.
        let expected = [
            0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae,
            0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61,
            0xf2, 0x00, 0x15, 0xad,
        ];
        assert_eq!(pieces.finish(), expected);
    }

    proptest! {
        #[test]
        fn a_digest_in_pieces_is_that_of_the_whole(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            cuts in prop::collection::vec(1_usize..700, 0..12),
        ) {
            let mut pieces = Digest::default();
            let mut rest = bytes.as_slice();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                pieces.update(piece);
                rest = after;
            }
            prop_assert_eq!(pieces.finish(), digest(&bytes));
        }
    }
}
