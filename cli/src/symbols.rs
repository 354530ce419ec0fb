//! Names for addresses in the running kernel.

use linux_image::SymbolTable;

/// The symbols of a manifest; none for the bare machine, or for a manifest that is damaged (the
/// hypervisor will refuse that one).
#[derive(Default)]
pub struct Symbols<'a>(Option<SymbolTable<'a>>);

impl<'a> Symbols<'a> {
    /// The symbols of `manifest`.
    pub fn of(manifest: &'a [u8]) -> Self {
        Self(SymbolTable::from_manifest(manifest).ok())
    }

    /// `name+0x12` for a guest-virtual address, if the kernel whose `_text` is at `kernel_base`
    /// holds it. No kernel has its `_text` at 0: that means unknown.
    pub fn name(&self, kernel_base: u64, address: u64) -> Option<String> {
        let offset = address.checked_sub(kernel_base).filter(|_| kernel_base != 0)?;
        let (name, above) = self.0.as_ref()?.lookup(offset)?;
        Some(format!("{name}+{above:#x}"))
    }
}
