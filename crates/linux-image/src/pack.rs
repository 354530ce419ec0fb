//! A manifest as a file: packed, since more than half of it is the text of symbols.
//!
//! Eight bytes of magic number, the `u32` version of the manifest's layout, the `u32` length of the
//! manifest, then the manifest by deflate (RFC 1951). Damage is found by the manifest's own digest.

use crate::ImageError;
use crate::bytes::{size_at, u32_at};
use abi::manifest::{Header, MAX_LENGTH, ManifestError, VERSION};
use alloc::vec;
use alloc::vec::Vec;

const MAGIC: &[u8] = b"RVPACKED";
const HEADER_LENGTH: usize = 16;
/// The best that deflate does within reasonable time.
const LEVEL: u8 = 9;

/// Packs a manifest.
pub fn pack(manifest: &[u8]) -> Vec<u8> {
    let length = u32::try_from(manifest.len()).unwrap_or(u32::MAX);
    let mut packed = MAGIC.to_vec();
    packed.extend(VERSION.to_le_bytes());
    packed.extend(length.to_le_bytes());
    packed.extend(miniz_oxide::deflate::compress_to_vec(manifest, LEVEL));
    packed
}

/// The manifest that was packed, or `None` for bytes that are not packed at all (they may be a
/// manifest as it is).
///
/// # Errors
/// `Manifest`: another version, or damaged.
pub fn unpack(packed: &[u8]) -> Result<Option<Vec<u8>>, ImageError> {
    if !packed.starts_with(MAGIC) {
        return Ok(None);
    }
    let truncated = ImageError::Manifest(ManifestError::Truncated);
    let version = u32_at(packed, 8).ok_or(truncated.clone())?;
    if version != VERSION {
        return Err(ImageError::Manifest(ManifestError::Version(version)));
    }
    let length = size_at(packed, 12).ok_or(truncated)?;
    let limit = usize::try_from(MAX_LENGTH).unwrap_or(usize::MAX);
    if !(size_of::<Header>()..=limit).contains(&length) {
        return Err(ImageError::Manifest(ManifestError::Malformed));
    }
    let mut manifest = vec![0; length];
    let stream = packed.get(HEADER_LENGTH..).unwrap_or_default();
    let unpacked = miniz_oxide::inflate::decompress_slice_iter_to_slice(
        &mut manifest,
        core::iter::once(stream),
        false,
        true,
    );
    match unpacked {
        Ok(filled) if filled == length => Ok(Some(manifest)),
        _ => Err(ImageError::Manifest(ManifestError::Damaged)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_packed_comes_back(
            manifest in prop::collection::vec(0_u8..9, size_of::<Header>()..20_000),
        ) {
            prop_assert_eq!(unpack(&pack(&manifest)), Ok(Some(manifest)));
        }

        #[test]
        fn damage_is_answered(
            manifest in prop::collection::vec(0_u8..9, size_of::<Header>()..5_000),
            at in any::<prop::sample::Index>(),
            flip in 1_u8..,
            keep in any::<prop::sample::Index>(),
        ) {
            let mut packed = pack(&manifest);
            let at = at.index(packed.len());
            packed[at] ^= flip;
            if let Ok(Some(other)) = unpack(&packed) {
                // Deflate may not notice; then the manifest's digest does.
                prop_assert_eq!(other.len(), manifest.len());
            }
            packed.truncate(keep.index(packed.len()));
            let _ = unpack(&packed);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut packed = pack(&[7; 1000]);
        assert_eq!(unpack(b"RVMANIFE"), Ok(None));
        let error = |packed: &[u8]| match unpack(packed) {
            Err(ImageError::Manifest(error)) => error,
            other => panic!("{other:?}"),
        };
        assert_eq!(error(&packed[..10]), ManifestError::Truncated);
        assert_eq!(error(&packed[..30]), ManifestError::Damaged);
        packed[8] = 1;
        assert_eq!(error(&packed), ManifestError::Version(1));
        packed[8..12].copy_from_slice(&VERSION.to_le_bytes());
        packed[12..16].fill(0xff);
        assert_eq!(error(&packed), ManifestError::Malformed);
    }
}
