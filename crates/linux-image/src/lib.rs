//! Linux kernel images: from a bzImage to the manifest that the hypervisor loads.
//!
//! The way: `setup` finds the payload, `decompress` unpacks it, `vmlinux` gives bytes at link-time
//! addresses, `kallsyms` names them, `layout`, `sites`, `trace` and `probe_rules` ask for the
//! places that matter, `write` puts them down, `pack` makes a small file of it. Nothing depends on
//! a kernel version; a kernel in which something is not as expected is an error, never a guess.
//!
//! All input is untrusted: every read is checked, every loop and allocation bounded.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
#[cfg(test)]
mod damage;
mod decompress;
mod error;
#[cfg(test)]
mod fake;
pub mod inspect;
mod kallsyms;
mod kernel_table;
mod layout;
mod pack;
mod probe_rules;
#[cfg(test)]
mod real;
mod setup;
mod sites;
mod table;
#[cfg(test)]
mod tests;
mod trace;
mod vmlinux;
mod write;

pub use decompress::Compression;
pub use error::ImageError;
pub use inspect::Inspection;
pub use kallsyms::{Symbol, Symbols};
pub use pack::{pack, unpack};
pub use table::{Summary, SymbolTable};
pub use write::without_symbols;

use alloc::vec::Vec;

/// Reads a bzImage and writes its manifest (layout: [`abi::manifest`]).
///
/// # Errors
/// See [`ImageError`].
pub fn manifest(bzimage: &[u8]) -> Result<Vec<u8>, ImageError> {
    opened(bzimage, |_, parts| finished(parts))
}

/// Reads a bzImage and says what is in it, and what that means for Ravelin.
///
/// # Errors
/// See [`ImageError`]. A kernel that no manifest can be made of cannot be inspected either: the
/// error is the answer.
pub fn inspect(bzimage: &[u8]) -> Result<Inspection, ImageError> {
    opened(bzimage, |vmlinux, parts| Inspection::new(vmlinux, parts, finished(parts)?))
}

/// Gives the decompressed kernel and its parts to `read`.
fn opened<R>(
    bzimage: &[u8],
    read: impl FnOnce(&[u8], &write::Parts<'_>) -> Result<R, ImageError>,
) -> Result<R, ImageError> {
    let setup = setup::parse(bzimage)?;
    let vmlinux = decompress::decompress(setup.payload)?;
    opened_vmlinux(&vmlinux, bzimage, &setup, |parts| read(&vmlinux, parts))
}

/// Gives the parts of a decompressed kernel, which came from `file`, to `read`.
fn opened_vmlinux<R>(
    vmlinux: &[u8],
    file: &[u8],
    setup: &setup::Setup<'_>,
    read: impl FnOnce(&write::Parts<'_>) -> Result<R, ImageError>,
) -> Result<R, ImageError> {
    let image = vmlinux::Image::parse(vmlinux)?;
    let symbols = kallsyms::Symbols::find(&image)?;
    let layout = layout::Layout::find(&image, &symbols)?;
    let (sites, trace) = sites::find(&image, &symbols, &layout)?;
    let parts = write::Parts {
        file,
        setup,
        image: &image,
        symbols: &symbols,
        layout: &layout,
        sites: &sites,
        trace: &trace,
        faulting: &probe_rules::faulting(&image, &symbols, &layout)?,
        unprobed: &probe_rules::unprobed(&image, &symbols, &layout)?,
    };
    read(&parts)
}

fn finished(parts: &write::Parts<'_>) -> Result<Vec<u8>, ImageError> {
    let manifest = parts.write()?;
    table::check(&manifest)?;
    Ok(manifest)
}

/// How the kernel in a bzImage is compressed.
///
/// # Errors
/// `NotABzImage`, `OldProtocol`, `Truncated`, `UnknownCompression`.
pub fn compression(bzimage: &[u8]) -> Result<Compression, ImageError> {
    decompress::method(setup::parse(bzimage)?.payload)
}

/// Finds the symbols of a kernel that runs, in parts of its memory, each with the address of its
/// first byte. The lowest address is that of `_text`.
///
/// # Errors
/// `NotVmlinux` without any part, `NoSymbols`.
pub fn symbols_in_memory(parts: &[(u64, &[u8])]) -> Result<Symbols, ImageError> {
    kallsyms::Symbols::find(&vmlinux::Image::in_memory(parts)?)
}
