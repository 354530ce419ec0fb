//! What the host reads back from a manifest: the symbols, and a summary.

use crate::ImageError;
use crate::bytes::size_at;
use abi::manifest::{Header, MAX_LENGTH, Manifest, ManifestError, SiteKind, Span};
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use zerocopy::{FromBytes, IntoBytes};

/// Runs `read` on a checked copy of a manifest. The copy is aligned as [`Manifest`] wants it,
/// which a file's bytes need not be.
pub fn checked<R>(
    bytes: &[u8],
    read: impl FnOnce(&Manifest<'_>) -> Result<R, ImageError>,
) -> Result<R, ImageError> {
    let limit = usize::try_from(MAX_LENGTH).unwrap_or(usize::MAX);
    let bytes = bytes.get(..limit).unwrap_or(bytes);
    let mut words = vec![0_u64; bytes.len().div_ceil(8)];
    let copy = words.as_mut_bytes().get_mut(..bytes.len()).unwrap_or_default();
    copy.copy_from_slice(bytes);
    read(&Manifest::parse(copy).map_err(ImageError::Manifest)?)
}

/// Checks a manifest from the magic number to the symbols.
///
/// # Errors
/// `Manifest`.
pub fn check(bytes: &[u8]) -> Result<(), ImageError> {
    SymbolTable::from_manifest(bytes).map(|_| ())
}

/// The symbols of a manifest, by offset from `_text`.
#[derive(Clone, Debug)]
pub struct SymbolTable<'a> {
    symbols: Vec<(u32, &'a str)>,
    image_end: u32,
}

impl<'a> SymbolTable<'a> {
    /// Checks a manifest and indexes its symbols.
    ///
    /// # Errors
    /// `Manifest`.
    pub fn from_manifest(bytes: &'a [u8]) -> Result<Self, ImageError> {
        checked(bytes, |_| Ok(()))?;
        let (header, _) = Header::read_from_prefix(bytes)
            .map_err(|_| ImageError::Manifest(ManifestError::NotAManifest))?;
        let symbols =
            records(bytes, &header).ok_or(ImageError::Manifest(ManifestError::Malformed))?;
        Ok(Self { symbols, image_end: header.image_end })
    }

    /// The symbol at or below an offset in the kernel's image, and how far below it is. Of several
    /// at one place the kernel's own first choice.
    pub fn lookup(&self, offset: u64) -> Option<(&'a str, u64)> {
        if offset >= self.image_end.into() {
            return None;
        }
        let after = self.symbols.partition_point(|&(start, _)| u64::from(start) <= offset);
        let &(nearest, _) = self.symbols.get(after.checked_sub(1)?)?;
        let first = self.symbols.partition_point(|&(start, _)| start < nearest);
        let &(start, name) = self.symbols.get(first)?;
        Some((name, offset - u64::from(start)))
    }

    /// The offset of the first symbol called `name`.
    pub fn find(&self, name: &str) -> Option<u32> {
        self.symbols.iter().find(|(_, other)| *other == name).map(|&(offset, _)| offset)
    }

    /// Number of symbols.
    pub const fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

/// The symbol records, if they fill their table exactly and are in order.
fn records<'a>(bytes: &'a [u8], header: &Header) -> Option<Vec<(u32, &'a str)>> {
    let whole = bytes.get(..usize::try_from(header.total_length).ok()?)?;
    let start = usize::try_from(header.symbols.offset).ok()?;
    let length = usize::try_from(header.symbols.count).ok()?;
    let records = whole.get(start..)?.get(..length)?;
    if records.is_empty() {
        return Some(Vec::new());
    }
    let count = size_at(records, 0)?;
    let mut rest = records.get(4..)?;
    let mut offsets = Vec::new();
    let mut offset = 0_u32;
    for _ in 0..count {
        let (distance, tail) = leb128(rest)?;
        offset = offset.checked_add(distance)?;
        offsets.push(offset);
        rest = tail;
    }
    let text = core::str::from_utf8(rest.get(count..)?).ok()?;
    let symbols: Vec<_> = offsets.into_iter().zip(text.split_terminator('\0')).collect();
    let whole = text.is_empty() || text.ends_with('\0');
    (whole && symbols.len() == count && text.matches('\0').count() == count).then_some(symbols)
}

/// A number of up to five bytes with seven bits each, low bits first, and what follows it.
fn leb128(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0_u64;
    for (index, &byte) in bytes.iter().enumerate().take(5) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Some((u32::try_from(value).ok()?, bytes.get(index + 1..)?));
        }
    }
    None
}

/// What a manifest holds, for a table on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The kernel's release and version.
    pub release: String,
    /// Bytes of the kernel file.
    pub kernel_length: u64,
    /// Digest of the kernel file.
    pub kernel_digest: u64,
    /// Address that `_text` was linked at.
    pub link_base: u64,
    /// Pages of text.
    pub text: Span,
    /// Pages of read-only data.
    pub rodata: Span,
    /// Read-only-after-init data.
    pub ro_after_init: Span,
    /// Pages of init text.
    pub init_text: Span,
    /// Bytes of the kernel in memory.
    pub image_length: u32,
    /// Number of jump labels.
    pub jump_labels: usize,
    /// Number of static calls.
    pub static_calls: usize,
    /// Number of static tail calls and trampolines.
    pub static_tail_calls: usize,
    /// Number of conditional static tail calls.
    pub static_conditionals: usize,
    /// Number of calls inside the function tracer.
    pub tracer_calls: usize,
    /// Number of places that the function tracer patches.
    pub traced: usize,
    /// Number of instructions that may fault.
    pub faulting: usize,
    /// Number of parts of text that take no kprobes.
    pub unprobed: usize,
    /// Number of function entries.
    pub functions: usize,
    /// Number of symbols.
    pub symbols: usize,
    /// Bytes that the hypervisor keeps.
    pub resident_length: u32,
    /// Bytes of the manifest.
    pub total_length: u32,
}

impl Summary {
    /// Checks a manifest and summarises it.
    ///
    /// # Errors
    /// `Manifest`.
    pub fn from_manifest(bytes: &[u8]) -> Result<Self, ImageError> {
        let symbols = SymbolTable::from_manifest(bytes)?.len();
        checked(bytes, |manifest| {
            let header = manifest.header();
            let release = header.release.split(|&byte| byte == 0).next().unwrap_or_default();
            let count = |kind: SiteKind| {
                manifest.sites().iter().filter(|site| site.kind == kind as u8).count()
            };
            Ok(Self {
                release: String::from_utf8_lossy(release).to_string(),
                kernel_length: header.kernel_length,
                kernel_digest: header.kernel_digest,
                link_base: header.link_base,
                text: header.text,
                rodata: header.rodata,
                ro_after_init: header.ro_after_init,
                init_text: header.init_text,
                image_length: header.image_end,
                jump_labels: count(SiteKind::JumpLabel),
                static_calls: count(SiteKind::StaticCall),
                static_tail_calls: count(SiteKind::StaticTailCall),
                static_conditionals: count(SiteKind::StaticConditional),
                tracer_calls: count(SiteKind::TracerCall),
                traced: manifest.traced().len(),
                faulting: manifest.faulting().len(),
                unprobed: manifest.unprobed().len(),
                functions: usize::try_from(header.functions.count).unwrap_or(usize::MAX),
                symbols,
                resident_length: header.resident_length,
                total_length: header.total_length,
            })
        })
    }
}
