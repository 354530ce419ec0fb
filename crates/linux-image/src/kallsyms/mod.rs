//! kallsyms: the symbol table that the kernel carries for itself.
//!
//! A distribution's vmlinux is stripped, but its read-only data holds all symbols, compressed.
//! Nothing points there from outside, so the tables are found by their structure: `tokens` has a
//! shape that nothing else has, `names` is confirmed to the byte by the markers behind it, and
//! `addresses` by `_text`, whose address the ELF file tells. No kernel version is asked for.
//!
//! Order of the tables, each aligned to 8 bytes, lately to 4 (Linux scripts/kallsyms.c, `write_src`):
//!
//! - up to 6.3: offsets, relative base, number, names, markers, \[sequence numbers, from 6.2\],
//!   token table, token index;
//! - from 6.4: number, names, markers, token table, token index, offsets, \[relative base, up to
//!   6.19\], sequence numbers.

mod addresses;
mod names;
mod tokens;

use crate::ImageError;
use crate::vmlinux::{Image, Segment};
use alloc::string::String;
use alloc::vec::Vec;
use names::Names;
use tokens::Tokens;

/// More symbols than any kernel has; Debian's generic one has about 200,000.
const SYMBOL_LIMIT: usize = 1 << 20;
/// Alignments that the tables have had, in bytes: 8 in all kernels up to 6.18 at least, 4 in 7.2.
const ALIGNMENTS: [usize; 2] = [8, 4];
/// What every table is aligned to in every kernel.
const LEAST_ALIGNMENT: usize = 4;

/// A symbol of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Link-time address; small for per-CPU and absolute symbols.
    pub address: u64,
    /// Type letter as `nm` prints it.
    pub kind: u8,
    /// Name.
    pub name: &'a str,
}

impl Symbol<'_> {
    /// Whether it labels code.
    pub const fn is_text(&self) -> bool {
        matches!(self.kind, b't' | b'T' | b'w' | b'W')
    }
}

/// All symbols of a kernel, in the order in which the kernel keeps them.
#[derive(Clone, Debug)]
pub struct Symbols {
    addresses: Vec<u64>,
    /// End of each symbol's type letter and name in `text`.
    ends: Vec<usize>,
    text: String,
}

impl Symbols {
    /// Finds and decodes the tables.
    ///
    /// # Errors
    /// `NoSymbols`.
    pub fn find(image: &Image<'_>) -> Result<Self, ImageError> {
        let (segment, tokens) = image
            .segments()
            .iter()
            .find_map(|segment| Some((segment, Tokens::find(segment.bytes)?)))
            .ok_or(ImageError::NoSymbols("no token table of kallsyms was found"))?;
        Self::decode(image, segment, &tokens)
    }

    fn decode(
        image: &Image<'_>,
        segment: &Segment<'_>,
        tokens: &Tokens<'_>,
    ) -> Result<Self, ImageError> {
        let names = Names::find(segment.bytes, tokens)
            .ok_or(ImageError::NoSymbols("no names of kallsyms lie before its token table"))?;
        let (text, ends) =
            names.expand(tokens).ok_or(ImageError::NoSymbols("a name of kallsyms is malformed"))?;
        let symbols = Self { addresses: Vec::new(), ends, text };
        let first = (0..symbols.ends.len())
            .find(|&index| symbols.text_of(index).and_then(|text| text.get(1..)) == Some("_text"))
            .ok_or(ImageError::NoSymbols("kallsyms has no _text"))?;
        let addresses = addresses::find(segment, &names, tokens, (first, image.base()))
            .ok_or(ImageError::NoSymbols("no offsets of kallsyms put _text where it is linked"))?;
        Ok(Self { addresses, ..symbols })
    }

    /// All symbols.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.addresses.iter().enumerate().filter_map(|(index, &address)| {
            let text = self.text_of(index)?;
            let (kind, name) = (text.as_bytes().first()?, text.get(1..)?);
            Some(Symbol { address, kind: *kind, name })
        })
    }

    /// Address of the first symbol called `name`.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.address)
    }

    /// Address of a symbol that there must be.
    ///
    /// # Errors
    /// `MissingSymbol`.
    pub fn required(&self, name: &'static str) -> Result<u64, ImageError> {
        self.address_of(name).ok_or(ImageError::MissingSymbol(name))
    }

    /// Type letter and name.
    fn text_of(&self, index: usize) -> Option<&str> {
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.text.get(start..*self.ends.get(index)?)
    }
}

#[cfg(test)]
mod tests;
