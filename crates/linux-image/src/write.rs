//! Writes a manifest: header, sites, functions, then the symbols, which only the host reads.

use crate::ImageError;
use crate::kallsyms::{Symbol, Symbols};
use crate::layout::Layout;
use crate::setup::Setup;
use crate::table::checked;
use crate::trace::Trace;
use crate::vmlinux::Image;
use abi::manifest::{Header, MAGIC, MAX_LENGTH, Site, Span, Table, UNDIGESTED, VERSION};
use alloc::vec::Vec;
use zerocopy::IntoBytes;

/// What a manifest is made from.
pub struct Parts<'a> {
    /// The whole kernel file.
    pub file: &'a [u8],
    /// What its setup header says.
    pub setup: &'a Setup<'a>,
    /// The kernel in it.
    pub image: &'a Image<'a>,
    /// All its symbols.
    pub symbols: &'a Symbols,
    /// Its parts.
    pub layout: &'a Layout,
    /// Its patch sites, in order.
    pub sites: &'a [Site],
    /// What its function tracer patches.
    pub trace: &'a Trace,
    /// Instructions that may fault.
    pub faulting: &'a [u32],
    /// Text that takes no kprobes.
    pub unprobed: &'a [Span],
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
        let trace = self.trace;
        let mut end = size_of::<Header>();
        let mut table = |bytes: usize, count: usize| {
            let offset = end;
            end += bytes;
            Ok(Table { offset: length(offset)?, count: length(count)? })
        };
        let sites = table(self.sites.as_bytes().len(), self.sites.len())?;
        let function_table = table(functions.len() * 4, functions.len())?;
        let traced = table(trace.traced.len() * 4, trace.traced.len())?;
        let faulting = table(self.faulting.len() * 4, self.faulting.len())?;
        let unprobed = table(self.unprobed.as_bytes().len(), self.unprobed.len())?;
        let symbol_table = table(symbols.len(), symbols.len())?;
        let total = length(end)?;
        let layout = self.layout;
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            total_length: total,
            resident_length: symbol_table.offset,
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
            livepatch: self.function("klp_ftrace_handler"),
            tracers: trace.tracers,
            sites,
            functions: function_table,
            traced,
            faulting,
            unprobed,
            symbols: symbol_table,
            release: release(&self.setup.release),
            load: self.setup.load,
        };
        let mut bytes = Vec::new();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(self.sites.as_bytes());
        bytes.extend_from_slice(functions.as_bytes());
        bytes.extend_from_slice(trace.traced.as_bytes());
        bytes.extend_from_slice(self.faulting.as_bytes());
        bytes.extend_from_slice(self.unprobed.as_bytes());
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

    /// The symbol records: the image's symbols by offset; those at the same place in the kernel's
    /// own order, which prefers the better known name. Left out is what only repeats the name of
    /// something else: padding in front of functions, and the entries of export tables.
    fn symbols(&self) -> Vec<u8> {
        let mut symbols: Vec<(u32, Symbol<'_>)> = self
            .symbols
            .iter()
            .filter_map(|symbol| Some((self.image.offset(symbol.address)?, symbol)))
            .filter(|&(offset, symbol)| {
                offset <= self.layout.image_end
                    && !is_export(symbol.name)
                    && !is_padding(symbol.name)
            })
            .collect();
        symbols.sort_by_key(|&(offset, _)| offset);
        let mut bytes = u32::try_from(symbols.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        let mut before = 0;
        for &(offset, _) in &symbols {
            let mut distance = offset - before;
            before = offset;
            while distance > 0x7f {
                bytes.push(distance.to_le_bytes()[0] | 0x80);
                distance >>= 7;
            }
            bytes.push(distance.to_le_bytes()[0]);
        }
        bytes.extend(symbols.iter().map(|(_, symbol)| symbol.kind));
        for (_, symbol) in &symbols {
            bytes.extend_from_slice(symbol.name.as_bytes());
            bytes.push(0);
        }
        bytes
    }
}

/// Whether a symbol labels the padding in front of a function.
fn is_padding(name: &str) -> bool {
    ["__pfx_", "__cfi_"].iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a symbol labels an entry of the tables about exported symbols.
fn is_export(name: &str) -> bool {
    ["__ksymtab_", "__kstrtab", "__flags_", "__crc_"].iter().any(|prefix| name.starts_with(prefix))
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
