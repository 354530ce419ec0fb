//! Tables that the kernel keeps about itself: the bytes between two symbols, cut into entries.

use crate::ImageError;
use crate::bytes::i32_at;
use crate::kallsyms::Symbols;
use crate::vmlinux::Image;

/// A table of the kernel.
pub struct KernelTable<'a> {
    name: &'static str,
    address: u64,
    bytes: &'a [u8],
}

impl<'a> KernelTable<'a> {
    /// The bytes between two symbols; none if the kernel does not have the first.
    ///
    /// # Errors
    /// `MissingSymbol`, `MalformedTable`.
    pub fn find(
        image: &Image<'a>,
        symbols: &Symbols,
        [start, stop]: [&'static str; 2],
        name: &'static str,
    ) -> Result<Self, ImageError> {
        let Some(address) = symbols.address_of(start) else {
            return Ok(Self { name, address: 0, bytes: &[] });
        };
        let length = symbols.required(stop)?.checked_sub(address);
        let bytes = length
            .and_then(|length| image.bytes(address, usize::try_from(length).ok()?))
            .ok_or(malformed(name, address, "its end is not in the image"))?;
        Ok(Self { name, address, bytes })
    }

    /// Each entry of `size` bytes and its address.
    ///
    /// # Errors
    /// `MalformedTable`.
    pub fn entries(
        &self,
        size: usize,
    ) -> Result<impl Iterator<Item = (u64, &'a [u8])> + use<'a>, ImageError> {
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

/// The address that the self-relative field at byte `at` of the entry at `address` means.
pub fn relative(address: u64, entry: &[u8], at: usize) -> Option<u64> {
    let offset = i32_at(entry, at)?;
    Some(address.wrapping_add(at as u64).wrapping_add_signed(offset.into()))
}

/// `MalformedTable`.
pub const fn malformed(table: &'static str, address: u64, reason: &'static str) -> ImageError {
    ImageError::MalformedTable { table, address, reason }
}
