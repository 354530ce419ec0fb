//! What a kernel file holds, for a person who wants to know what Ravelin can do with it.
//!
//! Everything is read from the file; nothing is assumed of a release. Each fact about the kernel's
//! configuration comes with its evidence.

mod config;
mod keys;
mod outlook;
mod pages;
mod sections;

pub use config::Setting;
pub use keys::{Certificate, Keys};
pub use outlook::{Outlook, Prospect};
pub use pages::SharedPages;
pub use sections::Section;

use crate::write::Parts;
use crate::{Compression, ImageError, Summary, decompress, setup};
use alloc::vec::Vec;

/// What was found.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Counts and spans, as in the manifest.
    pub summary: Summary,
    /// How the kernel is compressed.
    pub compression: Compression,
    /// Bytes of the kernel once decompressed.
    pub decompressed: usize,
    /// The ELF file's sections that are in memory.
    pub sections: Vec<Section>,
    /// Pages of text that hold something else too.
    pub shared: Vec<SharedPages>,
    /// Configuration that matters.
    pub settings: Vec<Setting>,
    /// Certificates that the kernel trusts.
    pub keys: Keys,
    /// What Ravelin can and cannot enforce.
    pub outlook: Vec<Outlook>,
    /// The manifest, with every single site.
    pub manifest: Vec<u8>,
}

impl Inspection {
    pub(crate) fn new(
        vmlinux: &[u8],
        parts: &Parts<'_>,
        manifest: Vec<u8>,
    ) -> Result<Self, ImageError> {
        let summary = Summary::from_manifest(&manifest)?;
        let sections = sections::of(vmlinux, parts.image);
        let shared = pages::shared(&sections, parts.layout);
        let settings = config::settings(parts)?;
        let outlook = outlook::of(&summary, parts.layout, &settings);
        Ok(Self {
            summary,
            compression: decompress::method(setup::parse(parts.file)?.payload)?,
            decompressed: vmlinux.len(),
            sections,
            shared,
            settings,
            keys: Keys::find(parts.image, parts.symbols),
            outlook,
            manifest,
        })
    }
}

#[cfg(test)]
mod tests;
