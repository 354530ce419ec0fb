//! Patch sites: the instructions that the kernel rewrites while it runs.
//!
//! Each is read from the kernel's own table and confirmed by the bytes at the place it names; a
//! place whose bytes cannot be such a site makes the whole kernel an error, since a site that is
//! missing here would look like an attack later. Sites outside text and init text are left out:
//! nothing runs there once the kernel is up.
//!
//! Sources: Linux include/linux/jump_label.h (`struct jump_entry`), include/linux/static_call_types.h
//! (`struct static_call_site`), arch/x86/kernel/{jump_label,static_call}.c.

use crate::ImageError;
use crate::bytes::i32_at;
use crate::kallsyms::Symbols;
use crate::kernel_table::{KernelTable, malformed, relative};
use crate::layout::Layout;
use crate::trace::Trace;
use crate::vmlinux::Image;
use abi::manifest::{Site, SiteKind, TRACED_LENGTH};
use alloc::vec::Vec;

const JUMP_TABLE: &str = "jump table";
const STATIC_CALLS: &str = "table of static calls";
const TRAMPOLINES: &str = "set of static call trampolines";
const SITES: &str = "set of patch sites";

/// Bytes of a `struct jump_entry`: s32 code, s32 target, s64 key.
const JUMP_ENTRY: usize = 16;
/// Bytes of a `struct static_call_site`: s32 address, s32 key.
const CALL_ENTRY: usize = 8;
/// Flag in the low bits of a static call's key: it is a tail call.
const TAIL: u64 = 1;
/// What the symbol of every static call trampoline starts with.
const TRAMPOLINE_PREFIX: &str = "__SCT__";

/// All patch sites of a kernel and what its function tracer patches, sorted and without overlap.
///
/// # Errors
/// `MalformedTable`.
pub fn find(
    image: &Image<'_>,
    symbols: &Symbols,
    layout: &Layout,
) -> Result<(Vec<Site>, Trace), ImageError> {
    let finder = Finder { image, layout };
    let mut sites = Vec::new();
    let names = ["__start___jump_table", "__stop___jump_table"];
    let jumps = KernelTable::find(image, symbols, names, JUMP_TABLE)?;
    for (address, entry) in jumps.entries(JUMP_ENTRY)? {
        sites.extend(finder.jump_label(address, entry)?);
    }
    let names = ["__start_static_call_sites", "__stop_static_call_sites"];
    let calls = KernelTable::find(image, symbols, names, STATIC_CALLS)?;
    for (address, entry) in calls.entries(CALL_ENTRY)? {
        sites.extend(finder.static_call(address, entry)?);
    }
    for symbol in symbols.iter() {
        if symbol.name.starts_with(TRAMPOLINE_PREFIX) && symbol.is_text() {
            sites.extend(finder.trampoline(symbol.address)?);
        }
    }
    let trace = Trace::find(image, symbols, layout)?;
    sites.extend_from_slice(&trace.calls);
    let sites = ordered(image, sites)?;
    let apart = |offset: &u32| {
        let next = sites.partition_point(|site| site.end() <= u64::from(*offset));
        sites.get(next).is_none_or(|site| offset.saturating_add(TRACED_LENGTH) <= site.offset)
    };
    match trace.traced.iter().find(|offset| !apart(offset)) {
        None => Ok((sites, trace)),
        Some(&offset) => {
            let address = image.base().wrapping_add(offset.into());
            Err(malformed(SITES, address, "two sites overlap"))
        }
    }
}

fn ordered(image: &Image<'_>, mut sites: Vec<Site>) -> Result<Vec<Site>, ImageError> {
    sites.sort_unstable_by_key(|site| (site.offset, site.kind, site.target));
    sites.dedup();
    for pair in sites.windows(2) {
        if let [a, b] = pair
            && a.end() > u64::from(b.offset)
        {
            let address = image.base().wrapping_add(b.offset.into());
            return Err(malformed(SITES, address, "two sites overlap"));
        }
    }
    Ok(sites)
}

/// Reads instructions.
pub struct Finder<'a> {
    /// The kernel.
    pub image: &'a Image<'a>,
    /// Its parts.
    pub layout: &'a Layout,
}

impl Finder<'_> {
    /// The offset of a place that the kernel patches; `None` if it is none of its text.
    fn code(&self, address: u64) -> Option<u32> {
        self.image.offset(address).filter(|&offset| self.layout.is_code(offset))
    }

    /// The offset of a place in text.
    pub fn text(&self, address: u64) -> Option<u32> {
        let in_text = |&offset: &u32| self.layout.text.contains(offset.into());
        self.image.offset(address).filter(in_text)
    }

    /// The instruction at `address`, up to 6 bytes of it.
    pub fn instruction(&self, address: u64) -> &[u8] {
        (0..=6).rev().find_map(|length| self.image.bytes(address, length)).unwrap_or_default()
    }

    /// Where the jump or call of `length` bytes at `address` goes.
    pub fn destination(&self, address: u64, length: u8) -> Option<u64> {
        let end = address.wrapping_add(length.into());
        let field = self.instruction(address).get(..length.into())?;
        Some(match length {
            2 => end.wrapping_add_signed(field.last()?.cast_signed().into()),
            _ => end.wrapping_add_signed(i32_at(field, field.len().checked_sub(4)?)?.into()),
        })
    }

    fn jump_label(&self, address: u64, entry: &[u8]) -> Result<Option<Site>, ImageError> {
        let bad = |reason| malformed(JUMP_TABLE, address, reason);
        let cut = || bad("the entry is cut off");
        let code = relative(address, entry, 0).ok_or_else(cut)?;
        let target = relative(address, entry, 4).ok_or_else(cut)?;
        let Some(offset) = self.code(code) else { return Ok(None) };
        let (length, jumps) = match self.instruction(code) {
            [0x66, 0x90, ..] => (2, false),
            [0xeb, ..] => (2, true),
            [0x0f, 0x1f, 0x44, 0, 0, ..] => (5, false),
            [0xe9, ..] => (5, true),
            _ => return Err(bad("it names neither a NOP nor a jump")),
        };
        if jumps && self.destination(code, length) != Some(target) {
            return Err(bad("the jump it names goes elsewhere"));
        }
        let target = self.code(target).ok_or_else(|| bad("its target is not in text"))?;
        Ok(Some(site(offset, target, SiteKind::JumpLabel, length)))
    }

    fn static_call(&self, address: u64, entry: &[u8]) -> Result<Option<Site>, ImageError> {
        let bad = |reason| malformed(STATIC_CALLS, address, reason);
        let cut = || bad("the entry is cut off");
        let code = relative(address, entry, 0).ok_or_else(cut)?;
        let is_tail = relative(address, entry, 4).ok_or_else(cut)? & TAIL != 0;
        let Some(offset) = self.code(code) else { return Ok(None) };
        let (kind, length) = match self.instruction(code) {
            [0xe8, ..] => (SiteKind::StaticCall, 5),
            [0xe9, ..] => (SiteKind::StaticTailCall, 5),
            [0x0f, 0x80..=0x8f, ..] => (SiteKind::StaticConditional, 6),
            _ => return Err(bad("it names neither a call nor a jump")),
        };
        if is_tail == (kind == SiteKind::StaticCall) {
            return Err(bad("its tail-call flag contradicts the instruction"));
        }
        let target = self
            .destination(code, length)
            .and_then(|target| self.code(target))
            .ok_or_else(|| bad("the function it calls is not in text"))?;
        Ok(Some(site(offset, target, kind, length)))
    }

    /// A trampoline: a jump to the function that the key has at first, or a return.
    fn trampoline(&self, address: u64) -> Result<Option<Site>, ImageError> {
        let bad = |reason| malformed(TRAMPOLINES, address, reason);
        let Some(offset) = self.code(address) else { return Ok(None) };
        let target = match self.instruction(address) {
            [0xe9, ..] => self
                .destination(address, 5)
                .and_then(|target| self.code(target))
                .ok_or_else(|| bad("it jumps out of text"))?,
            [0xc3, 0xcc | 0x90, 0xcc | 0x90, 0xcc | 0x90, 0xcc | 0x90, ..] => 0,
            _ => return Err(bad("it is neither a jump nor a return")),
        };
        Ok(Some(site(offset, target, SiteKind::StaticTailCall, 5)))
    }
}

/// A site in the manifest's form.
pub const fn site(offset: u32, target: u32, kind: SiteKind, length: u8) -> Site {
    Site { offset, target, kind: kind as u8, length, reserved: 0 }
}

#[cfg(test)]
mod tests;
