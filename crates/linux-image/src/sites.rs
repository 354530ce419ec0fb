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
use crate::layout::Layout;
use crate::vmlinux::Image;
use abi::manifest::{Site, SiteKind};
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

/// All patch sites of a kernel, sorted and without overlap.
///
/// # Errors
/// `MalformedTable`.
pub fn find(
    image: &Image<'_>,
    symbols: &Symbols,
    layout: &Layout,
) -> Result<Vec<Site>, ImageError> {
    let finder = Finder { image, layout };
    let mut sites = Vec::new();
    let jumps = table(image, symbols, ["__start___jump_table", "__stop___jump_table"], JUMP_TABLE)?;
    for (address, entry) in jumps.entries(JUMP_ENTRY)? {
        sites.extend(finder.jump_label(address, entry)?);
    }
    let names = ["__start_static_call_sites", "__stop_static_call_sites"];
    let calls = table(image, symbols, names, STATIC_CALLS)?;
    for (address, entry) in calls.entries(CALL_ENTRY)? {
        sites.extend(finder.static_call(address, entry)?);
    }
    for symbol in symbols.iter() {
        if symbol.name.starts_with(TRAMPOLINE_PREFIX) && symbol.is_text() {
            sites.extend(finder.trampoline(symbol.address)?);
        }
    }
    ordered(image, sites)
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

const fn malformed(table: &'static str, address: u64, reason: &'static str) -> ImageError {
    ImageError::MalformedTable { table, address, reason }
}

/// A table of the kernel.
struct Table<'a> {
    name: &'static str,
    address: u64,
    bytes: &'a [u8],
}

/// The bytes between two symbols; none if the kernel has neither.
fn table<'a>(
    image: &Image<'a>,
    symbols: &Symbols,
    [start, stop]: [&'static str; 2],
    name: &'static str,
) -> Result<Table<'a>, ImageError> {
    let address = match symbols.address_of(start) {
        Some(address) => address,
        None => return Ok(Table { name, address: 0, bytes: &[] }),
    };
    let length = symbols.required(stop)?.checked_sub(address);
    let bytes = length
        .and_then(|length| image.bytes(address, usize::try_from(length).ok()?))
        .ok_or(malformed(name, address, "its end is not in the image"))?;
    Ok(Table { name, address, bytes })
}

impl<'a> Table<'a> {
    /// Each entry and its address.
    fn entries(&self, size: usize) -> Result<impl Iterator<Item = (u64, &'a [u8])>, ImageError> {
        if !self.bytes.len().is_multiple_of(size) {
            return Err(malformed(
                self.name,
                self.address,
                "its length is no multiple of its entry",
            ));
        }
        let addresses = (self.address..).step_by(size);
        Ok(addresses.zip(self.bytes.chunks_exact(size)))
    }
}

/// The address that the self-relative field at byte `at` of `entry` means.
fn relative(address: u64, entry: &[u8], at: usize) -> Option<u64> {
    let offset = i32_at(entry, at)?;
    Some(address.wrapping_add(at as u64).wrapping_add_signed(offset.into()))
}

struct Finder<'a> {
    image: &'a Image<'a>,
    layout: &'a Layout,
}

impl Finder<'_> {
    /// The offset of a place that the kernel patches; `None` if it is none of its text.
    fn code(&self, address: u64) -> Option<u32> {
        self.image.offset(address).filter(|&offset| self.layout.is_code(offset))
    }

    /// The instruction at `address`, up to 6 bytes of it.
    fn instruction(&self, address: u64) -> &[u8] {
        (0..=6).rev().find_map(|length| self.image.bytes(address, length)).unwrap_or_default()
    }

    /// Where the jump or call of `length` bytes at `address` goes.
    fn destination(&self, address: u64, length: u8) -> Option<u64> {
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

const fn site(offset: u32, target: u32, kind: SiteKind, length: u8) -> Site {
    Site { offset, target, kind: kind as u8, length, reserved: 0 }
}

#[cfg(test)]
mod tests;
