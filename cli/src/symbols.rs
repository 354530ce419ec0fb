//! Names for addresses in the running kernel.

use crate::events::{Body, Record};
use crate::machine::Manifests;
use linux_image::{Summary, SymbolTable};
use std::io::BufRead;

/// First address of the kernel's half; per-CPU symbols have offsets in place of addresses.
const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
/// The symbol behind the kernel's image.
const IMAGE_END: &str = "_end";
/// Farthest from a module's symbol that an address is named after it: where a module ends is not
/// told.
const MODULE_REACH: u64 = 1 << 20;

/// The symbols of a manifest or of the kernel that runs this program; none for the bare machine, or
/// for a manifest that is damaged (the hypervisor will refuse that one).
#[derive(Default)]
pub enum Symbols<'a> {
    /// None.
    #[default]
    None,
    /// As offsets from `_text`.
    Manifest(SymbolTable<'a>),
    /// As addresses.
    Running(Kallsyms),
}

impl<'a> Symbols<'a> {
    /// The symbols of `manifest`.
    pub fn of(manifest: &'a [u8]) -> Self {
        SymbolTable::from_manifest(manifest).map_or(Self::None, Self::Manifest)
    }

    /// The symbols in the text of `/proc/kallsyms`.
    pub fn of_running_kernel(text: impl BufRead) -> Self {
        Self::Running(Kallsyms::read(text))
    }

    /// `name+0x12` for a guest-virtual address, if the kernel whose `_text` is at `kernel_base`
    /// holds it; of the running kernel also `name+0x12 [module]`. No kernel has its `_text` at 0:
    /// that means unknown.
    pub fn name(&self, kernel_base: u64, address: u64) -> Option<String> {
        let offset = address.checked_sub(kernel_base).filter(|_| kernel_base != 0);
        match self {
            Self::None => None,
            Self::Manifest(table) => {
                let (name, above) = table.lookup(offset?)?;
                Some(format!("{name}+{above:#x}"))
            }
            Self::Running(kallsyms) => kallsyms.name(address),
        }
    }
}

/// The symbols of the kernels that may follow one another in a machine.
pub struct Kernels<'a> {
    /// The first kernel's, then those of the others by the digest of their files.
    first: Symbols<'a>,
    named: Vec<(u64, Symbols<'a>)>,
    running: Option<u64>,
}

impl<'a> Kernels<'a> {
    /// Those of a machine that has not been started.
    pub fn of(manifests: &'a Manifests) -> Self {
        let digest = |manifest| Some(Summary::from_manifest(manifest).ok()?.kernel_digest);
        let named = manifests.kexec.iter();
        let named = named.filter_map(|it| Some((digest(it)?, Symbols::of(it)))).collect();
        Self { first: Symbols::of(&manifests.first), named, running: None }
    }

    /// The symbols of the kernel that a record, the next one, is about.
    pub fn at(&mut self, record: &Record) -> &Symbols<'a> {
        if let Body::Succession(succession) = record.body {
            self.running = Some(succession.kernel_digest);
        } else if record.sequence == 1 {
            // The machine was reset.
            self.running = None;
        }
        let running = self.named.iter().find(|(digest, _)| Some(*digest) == self.running);
        running.map_or(&self.first, |(_, symbols)| symbols)
    }
}

/// Symbols by address.
pub struct Kallsyms {
    /// Sorted; of several at one place the kernel's own first choice is the first.
    symbols: Vec<(u64, Box<str>)>,
    image_end: u64,
}

impl Kallsyms {
    fn read(text: impl BufRead) -> Self {
        let mut symbols: Vec<(u64, Box<str>)> =
            text.lines().map_while(Result::ok).filter_map(|line| symbol(&line)).collect();
        symbols.sort_by_key(|(address, _)| *address);
        let end = symbols.iter().find(|(_, name)| **name == *IMAGE_END);
        let image_end = end.map_or(0, |(address, _)| *address);
        Self { symbols, image_end }
    }

    fn name(&self, address: u64) -> Option<String> {
        let after = self.symbols.partition_point(|(start, _)| *start <= address);
        let (nearest, _) = self.symbols.get(after.checked_sub(1)?)?;
        let first = self.symbols.partition_point(|(start, _)| start < nearest);
        let (start, name) = self.symbols.get(first)?;
        let above = address - start;
        match name.split_once('\t') {
            Some((name, module)) => {
                (above < MODULE_REACH).then(|| format!("{name}+{above:#x} {module}"))
            }
            None => (address < self.image_end).then(|| format!("{name}+{above:#x}")),
        }
    }
}

/// The symbol in a line `address type name[\t[module]]`. Who controls the kernel can name symbols:
/// only what can be printed is taken.
fn symbol(line: &str) -> Option<(u64, Box<str>)> {
    let mut words = line.splitn(3, ' ');
    let address = u64::from_str_radix(words.next()?, 16).ok()?;
    let name = words.nth(1)?;
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b'\t');
    (address >= KERNEL_HALF && printable).then(|| (address, name.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
0000000000001000 A per_cpu\n\
ffffffff81000000 T _text\n\
ffffffff81000000 T _stext\n\
ffffffff81000100 t bad\x1b[2J\n\
ffffffff81000200 T do_it\n\
ffffffff82000000 B _end\n\
ffffffffc0001000 t probe_write\t[ravelin_probes]\n\
not a line\n";

    #[test]
    fn addresses_of_the_running_kernel_are_named() {
        let symbols = Symbols::of_running_kernel(TEXT.as_bytes());
        let name = |address| symbols.name(0xffff_ffff_8100_0000, address);
        assert_eq!(name(0xffff_ffff_8100_0000).as_deref(), Some("_text+0x0"));
        assert_eq!(name(0xffff_ffff_8100_01ff).as_deref(), Some("_text+0x1ff"));
        assert_eq!(name(0xffff_ffff_81ff_ffff).as_deref(), Some("do_it+0xfffdff"));
        let module = "probe_write+0x10 [ravelin_probes]";
        assert_eq!(name(0xffff_ffff_c000_1010).as_deref(), Some(module));
        for nowhere in [0, 0x1234, 0xffff_8880_0000_0000, 0xffff_ffff_8200_0000, u64::MAX] {
            assert_eq!(name(nowhere), None, "{nowhere:#x}");
        }
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let hidden: String =
            TEXT.lines().map(|line| format!("0000000000000000{}\n", &line[1..])).collect();
        let symbols = Symbols::of_running_kernel(hidden.as_bytes());
        assert_eq!(symbols.name(1, 0xffff_ffff_8100_0200), None);
    }
}
