//! What can be wrong with a kernel file, as sentences for the person who chose it.

use crate::Compression;
use abi::manifest::{ManifestError, VERSION};
use alloc::format;
use alloc::string::String;

/// Why no manifest can be made from a file, or none read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The setup header's magic number is missing.
    #[error(
        "not a bzImage: no \"HdrS\" at byte 0x202; give the compressed x86 kernel that boots, such as /boot/vmlinuz-*"
    )]
    NotABzImage,
    /// The boot protocol has no payload fields yet.
    #[error("boot protocol {major}.{minor:02} is too old: 2.08 (Linux 2.6.26) or later is needed")]
    OldProtocol {
        /// Number before the point.
        major: u8,
        /// Number after the point.
        minor: u8,
    },
    /// The file ends early, or a length in it is wrong.
    #[error(
        "the kernel file is truncated: {what} ends at byte {end}, the file at byte {length}; copy or install it again"
    )]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it should end.
        end: u64,
        /// Length of the file.
        length: u64,
    },
    /// No known compression starts with these bytes.
    #[error("the kernel's payload starts with {0:02x?}, which is no compression method of Linux")]
    UnknownCompression([u8; 4]),
    /// A known method without a decoder here.
    #[error(
        "the kernel is compressed with {0}, which is not supported; supported are gzip, bzip2, xz, lzma, lz4 and zstd"
    )]
    UnsupportedCompression(Compression),
    /// The decoder refused the payload.
    #[error(
        "the kernel's {method} payload cannot be decompressed: {reason}; copy or install it again"
    )]
    Decompression {
        /// Which decoder.
        method: Compression,
        /// What it said.
        reason: String,
    },
    /// The kernel says that it is larger than any kernel may be.
    #[error(
        "the kernel claims to be {size} bytes long once decompressed; between 1 and {limit} can be read"
    )]
    Size {
        /// Uncompressed size according to the payload.
        size: u64,
        /// Largest size accepted.
        limit: u64,
    },
    /// The decompressed payload is not an x86-64 ELF file with a kernel in it.
    #[error("the decompressed kernel is no x86-64 vmlinux: {0}")]
    NotVmlinux(String),
    /// No kallsyms tables, or tables that contradict each other.
    #[error(
        "no kernel symbols: {0}; the kernel must be built with CONFIG_KALLSYMS and CONFIG_KALLSYMS_ALL, as distributions do"
    )]
    NoSymbols(&'static str),
    /// A symbol that the manifest is made from.
    #[error("the kernel's symbol table has no usable {0}, which the manifest needs")]
    MissingSymbol(&'static str),
    /// A table of the kernel does not hold what it must.
    #[error("the kernel's {table} is malformed at {address:#x}: {reason}")]
    MalformedTable {
        /// Which table.
        table: &'static str,
        /// Link-time address of the item.
        address: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The manifest would be larger than the hypervisor accepts.
    #[error("the kernel's manifest would take {length} bytes; {limit} are the limit")]
    ManifestSize {
        /// Bytes it would take.
        length: u64,
        /// Most bytes that it may take.
        limit: u64,
    },
    /// Bytes that should be a manifest are none.
    #[error("{}", manifest_text(.0))]
    Manifest(ManifestError),
}

fn manifest_text(error: &ManifestError) -> String {
    let text = match error {
        ManifestError::NotAManifest => "not a manifest: the magic number is missing",
        ManifestError::Truncated => "the manifest is truncated; prepare it again",
        ManifestError::Version(version) => {
            return format!(
                "the manifest has layout version {version}, and this program reads version {VERSION}; prepare it again"
            );
        }
        ManifestError::Damaged => "the manifest is damaged: its digest is wrong; prepare it again",
        ManifestError::Malformed => "the manifest's tables are malformed; prepare it again",
    };
    text.into()
}
