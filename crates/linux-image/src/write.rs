//! Writes a manifest: header, sites, functions, then the symbols, which only the host reads.

use crate::ImageError;
use crate::kallsyms::{Symbol, Symbols};
use crate::layout::Layout;
use crate::table::checked;
use crate::vmlinux::Image;
use abi::manifest::{Header, MAGIC, MAX_LENGTH, Site, Table, UNDIGESTED, VERSION};
use alloc::vec::Vec;
use zerocopy::IntoBytes;

/// What a manifest is made from.
pub struct Parts<'a> {
    /// The whole kernel file.
    pub file: &'a [u8],
    /// Its version string.
    pub release: &'a str,
    /// The kernel in it.
    pub image: &'a Image<'a>,
    /// All its symbols.
    pub symbols: &'a Symbols,
    /// Its parts.
    pub layout: &'a Layout,
    /// Its patch sites, in order.
    pub sites: &'a [Site],
}

/// The manifest as the hypervisor needs it: without symbols, which only the host reads.
///
/// # Errors
/// `Manifest`: the bytes are no manifest.
pub fn without_symbols(manifest: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut header = checked(manifest, |manifest| Ok(*manifest.header()))?;
    let tables = manifest.get(size_of::<Header>()..header.resident_length as usize);
    header.total_length = header.resident_length;
    header.symbols = Table { offset: header.resident_length, count: 0 };
    let mut shorter = Vec::from(header.as_bytes());
    shorter.extend_from_slice(tables.unwrap_or_default());
    header.digest = abi::digest(shorter.get(UNDIGESTED..).unwrap_or_default());
    if let Some(start) = shorter.get_mut(..size_of::<Header>()) {
        start.copy_from_slice(header.as_bytes());
    }
    Ok(shorter)
}

impl Parts<'_> {
    /// The manifest's bytes, digest included.
    ///
    /// # Errors
    /// `ManifestSize`.
    pub fn write(&self) -> Result<Vec<u8>, ImageError> {
        let functions = self.functions();
        let symbols = self.symbols();
        let start = size_of::<Header>();
        let sites = Section { start, length: self.sites.as_bytes().len(), count: self.sites.len() };
        let functions_section =
            Section { start: sites.end(), length: functions.len() * 4, count: functions.len() };
        let resident = functions_section.end();
        let symbols_section =
            Section { start: resident, length: symbols.len(), count: symbols.len() };
        let total = length(symbols_section.end())?;
        let layout = self.layout;
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            total_length: total,
            resident_length: length(resident)?,
            entry_syscall: layout.entry_syscall,
            digest: 0,
            kernel_length: self.file.len() as u64,
            kernel_digest: abi::digest(self.file),
            link_base: self.image.base(),
            text: layout.outward(layout.text),
            rodata: Layout::inward(layout.rodata),
            ro_after_init: layout.ro_after_init,
            init_text: layout.outward(layout.init_text),
            image_end: layout.image_end,
            return_thunk: self.function("__x86_return_thunk"),
            return_zero: self.function("__static_call_return0"),
            reserved: 0,
            sites: sites.table()?,
            functions: functions_section.table()?,
            symbols: symbols_section.table()?,
            release: release(self.release),
        };
        let mut bytes = Vec::new();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(self.sites.as_bytes());
        bytes.extend_from_slice(functions.as_bytes());
        bytes.extend_from_slice(&symbols);
        header.digest = abi::digest(bytes.get(UNDIGESTED..).unwrap_or_default());
        if let Some(start) = bytes.first_chunk_mut::<{ size_of::<Header>() }>() {
            start.copy_from_slice(header.as_bytes());
        }
        Ok(bytes)
    }

    /// Entries of all functions in text, sorted. The padding in front of a function has a symbol
    /// of its own in some kernels, and is no entry.
    fn functions(&self) -> Vec<u32> {
        let is_padding = |name: &str| name.starts_with("__pfx_") || name.starts_with("__cfi_");
        let mut functions: Vec<u32> = self
            .symbols
            .iter()
            .filter(|symbol| symbol.is_text() && !is_padding(symbol.name))
            .filter_map(|symbol| self.image.offset(symbol.address))
            .filter(|&offset| self.layout.text.contains(offset.into()))
            .collect();
        functions.sort_unstable();
        functions.dedup();
        functions
    }

    /// The offset of a function in text, 0 if there is none.
    fn function(&self, name: &str) -> u32 {
        self.symbols
            .address_of(name)
            .and_then(|address| self.image.offset(address))
            .filter(|&offset| self.layout.text.contains(offset.into()))
            .unwrap_or(0)
    }

    /// The symbol records: all symbols of the image by offset; those at the same place in the
    /// kernel's own order, which prefers the better known name.
    fn symbols(&self) -> Vec<u8> {
        let mut symbols: Vec<(u32, Symbol<'_>)> = self
            .symbols
            .iter()
            .filter_map(|symbol| Some((self.image.offset(symbol.address)?, symbol)))
            .filter(|&(offset, _)| offset <= self.layout.image_end)
            .collect();
        symbols.sort_by_key(|&(offset, _)| offset);
        let mut bytes = Vec::new();
        for (offset, symbol) in symbols {
            // A longer name loses its end; none is so long in C.
            let length = u8::try_from(symbol.name.len()).unwrap_or(u8::MAX);
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&[symbol.kind, length]);
            bytes.extend(symbol.name.bytes().take(length.into()));
        }
        bytes
    }
}

/// Part of the file under construction, in bytes.
struct Section {
    start: usize,
    length: usize,
    count: usize,
}

impl Section {
    const fn end(&self) -> usize {
        self.start + self.length
    }

    fn table(&self) -> Result<Table, ImageError> {
        Ok(Table { offset: length(self.start)?, count: length(self.count)? })
    }
}

fn length(bytes: usize) -> Result<u32, ImageError> {
    u32::try_from(bytes)
        .ok()
        .filter(|&length| length <= MAX_LENGTH)
        .ok_or(ImageError::ManifestSize { length: bytes as u64, limit: MAX_LENGTH.into() })
}

/// As many whole words of `text` as fit, NUL-padded.
fn release(text: &str) -> [u8; 64] {
    let mut field = [0; 64];
    let fits = |end: &usize| *end < field.len();
    let mut ends = text.match_indices(' ').map(|(end, _)| end).chain([text.len()]);
    let end = ends.rfind(fits).unwrap_or(0);
    for (to, from) in field.iter_mut().zip(text.bytes().take(end)) {
        *to = from;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn a_release_is_cut_between_words() {
        let text = "6.1.0-56-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-11-16)";
        assert!(
            release(text)
                .starts_with(b"6.1.0-56-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2\0\0")
        );
        assert!(release("6.1.0").starts_with(b"6.1.0\0"));
        assert_eq!(release(&"x".repeat(64)), [0; 64]);
        assert_eq!(release(""), [0; 64]);
    }
}
