//! Linux kernel images: from a bzImage to the manifest that the hypervisor loads.
//!
//! The way: `setup` finds the payload, `decompress` unpacks it, `vmlinux` gives bytes at link-time
//! addresses, `kallsyms` names them, `layout` and `sites` ask for the places that matter, `write`
//! puts them down. Nothing depends on a kernel version; a kernel in which something is not as
//! expected is an error, never a guess.
//!
//! All input is untrusted: every read is checked, every loop and allocation bounded.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bytes;
mod decompress;
mod error;
#[cfg(test)]
mod fake;
mod kallsyms;
mod layout;
mod setup;
mod sites;
mod table;
#[cfg(test)]
mod tests;
mod vmlinux;
mod write;

pub use decompress::Compression;
pub use error::ImageError;
pub use kallsyms::{Symbol, Symbols};
pub use table::{Summary, SymbolTable};
pub use write::without_symbols;

use alloc::vec::Vec;

/// Reads a bzImage and writes its manifest (layout: [`abi::manifest`]).
///
/// # Errors
/// See [`ImageError`].
pub fn manifest(bzimage: &[u8]) -> Result<Vec<u8>, ImageError> {
    let setup = setup::parse(bzimage)?;
    let vmlinux = decompress::decompress(setup.payload)?;
    let image = vmlinux::Image::parse(&vmlinux)?;
    let symbols = kallsyms::Symbols::find(&image)?;
    let layout = layout::Layout::find(&image, &symbols)?;
    let sites = sites::find(&image, &symbols, &layout)?;
    let parts = write::Parts {
        file: bzimage,
        release: &setup.release,
        image: &image,
        symbols: &symbols,
        layout: &layout,
        sites: &sites,
    };
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
