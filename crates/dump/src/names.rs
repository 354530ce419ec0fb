//! Names for addresses: symbols, and the areas of the kernel's address space.

use crate::image::{IMAGE, KernelImage};
use crate::root::Root;
use crate::{Dump, DumpError, Source};
use addr::{Gpa, Gva};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;
use elf::ElfBytes;
use elf::endian::LittleEndian;

/// Most symbols that are taken from a file.
const MOST_SYMBOLS: usize = 1 << 22;
/// The page of `vsyscall`, which every process may see (Linux `VSYSCALL_ADDR`).
pub const VSYSCALL: u64 = 0xffff_ffff_ff60_0000;

/// Areas that are at the same place in every kernel (Documentation/arch/x86/x86_64/mm).
const FIXED: &[(Range<u64>, &str)] = &[
    (IMAGE, "kernel image"),
    (IMAGE.end..0xffff_ffff_ff00_0000, "modules"),
    (VSYSCALL..VSYSCALL + addr::PAGE_SIZE, "vsyscall"),
    (0xffff_ffff_ff00_0000..u64::MAX, "fixmap"),
    (0xffff_ffef_0000_0000..0xffff_ffff_0000_0000, "EFI"),
    (0xffff_ff00_0000_0000..0xffff_ff80_0000_0000, "espfix"),
    (0xffff_fe00_0000_0000..0xffff_fe80_0000_0000, "CPU entry area"),
];
/// Variables that say where the areas are that are moved at boot, and how large these are.
const MOVED: &[(&str, u64, &str)] = &[
    ("vmemmap_base", 1 << 40, "vmemmap"),
    ("vmalloc_base", 1 << 45, "vmalloc"),
    ("page_offset_base", 1 << 46, DIRECT_MAP),
];
/// With five levels the areas are so much larger.
const LARGER: u32 = 9;
const DIRECT_MAP: &str = "direct map";

/// Symbols in the order of addresses, and areas.
#[derive(Clone, Debug, Default)]
pub struct Names {
    symbols: Vec<(u64, String)>,
    areas: Vec<(Range<u64>, &'static str)>,
    image: KernelImage,
    banner: Option<String>,
}

impl Names {
    /// Names by the symbols that the kernel carries, or those of a file: a `System.map`, or a
    /// `vmlinux` with a symbol table. Without symbols only areas that never move are named.
    ///
    /// # Errors
    /// The file has no symbols of a kernel.
    pub fn new<S: Source>(
        dump: &Dump<S>,
        root: &Root,
        image: &KernelImage,
        file: Option<&[u8]>,
    ) -> Result<Self, DumpError> {
        let start = image.start().map_or(0, Gva::raw);
        let symbols = match file {
            Some(file) => moved(of_file(file)?, start)?,
            None => dump.symbols(image).map_or_else(
                |_| Vec::new(),
                |found| {
                    found.iter().map(|symbol| (symbol.address, symbol.name.to_string())).collect()
                },
            ),
        };
        Ok(Self::with(dump, root, image, symbols))
    }

    fn with<S: Source>(
        dump: &Dump<S>,
        root: &Root,
        image: &KernelImage,
        mut symbols: Vec<(u64, String)>,
    ) -> Self {
        symbols.retain(|(address, _)| IMAGE.contains(address));
        symbols.sort_by_key(|(address, _)| *address);
        let mut areas = FIXED.to_vec();
        for &(variable, size, name) in MOVED {
            let symbol = symbols.iter().find(|(_, other)| other == variable);
            let base = symbol.and_then(|(at, _)| dump.variable(root, Gva::new(*at)));
            let size = if root.levels == 5 { size << LARGER } else { size };
            areas.extend(base.map(|base| (base..base.saturating_add(size), name)));
        }
        let banner = symbols.iter().find(|(_, name)| name == "linux_banner");
        let banner = banner.and_then(|(at, _)| dump.text(root, Gva::new(*at)));
        Self { symbols, areas, image: image.clone(), banner }
    }

    /// What the kernel says of itself when it boots: `Linux version 6.1.0-56-amd64 (...`.
    pub fn banner(&self) -> Option<&str> {
        self.banner.as_deref()
    }

    /// Number of symbols.
    pub const fn count(&self) -> usize {
        self.symbols.len()
    }

    /// The area that holds an address.
    pub fn area(&self, gva: Gva) -> Option<&'static str> {
        self.areas.iter().find(|(area, _)| area.contains(&gva.raw())).map(|(_, name)| *name)
    }

    /// What a mapping of `gpa` at `gva` is, in words: `_text+0x10`, `direct map of _text+0x10`,
    /// `modules`.
    pub fn describe(&self, gva: Gva, gpa: Gpa) -> String {
        let symbol = |gva: Gva| self.symbol(gva).map(|(name, above)| format!("{name}+{above:#x}"));
        match (self.area(gva), symbol(gva)) {
            (_, Some(symbol)) => symbol,
            (Some(DIRECT_MAP), _) => {
                let other = self.image.address_of(gpa).and_then(symbol);
                other.map_or_else(
                    || DIRECT_MAP.to_string(),
                    |name| format!("{DIRECT_MAP} of {name}"),
                )
            }
            (area, _) => area.unwrap_or("kernel half").to_string(),
        }
    }

    /// The symbol at or below an address of the image; of several at one place the first.
    fn symbol(&self, gva: Gva) -> Option<(&str, u64)> {
        if !IMAGE.contains(&gva.raw()) {
            return None;
        }
        let after = self.symbols.partition_point(|(start, _)| *start <= gva.raw());
        let (nearest, _) = self.symbols.get(after.checked_sub(1)?)?;
        let first = self.symbols.partition_point(|(start, _)| start < nearest);
        let (start, name) = self.symbols.get(first)?;
        Some((name, gva.raw() - start))
    }
}

/// Link-time symbols of a file.
fn of_file(file: &[u8]) -> Result<Vec<(u64, String)>, DumpError> {
    let symbols: Vec<_> = if file.starts_with(b"\x7fELF") {
        of_vmlinux(file).ok_or(DumpError::Symbols(
            "this vmlinux has no symbol table; give the kernel's System.map or its debug package's \
             vmlinux",
        ))?
    } else {
        let text = core::str::from_utf8(file).map_err(|_| {
            DumpError::Symbols("the symbols' file is neither a System.map nor a vmlinux")
        })?;
        let symbol = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16).ok()?;
            Some((address, words.nth(1)?.to_string()))
        };
        text.lines().filter_map(symbol).take(MOST_SYMBOLS).collect()
    };
    Ok(symbols)
}

fn of_vmlinux(file: &[u8]) -> Option<Vec<(u64, String)>> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).ok()?;
    let (symbols, names) = elf.symbol_table().ok()??;
    let name = |symbol: elf::symbol::Symbol| {
        let name = names.get(usize::try_from(symbol.st_name).ok()?).ok()?;
        (!name.is_empty()).then(|| (symbol.st_value, name.to_string()))
    };
    Some(symbols.iter().filter_map(name).take(MOST_SYMBOLS).collect())
}

/// Moves symbols so that `_text` is where the running kernel has it.
fn moved(symbols: Vec<(u64, String)>, start: u64) -> Result<Vec<(u64, String)>, DumpError> {
    let text = symbols.iter().find(|(_, name)| name == "_text").map(|(address, _)| *address);
    let text = text.ok_or(DumpError::Symbols(
        "the symbols' file has no _text; give the System.map or vmlinux of the dump's kernel",
    ))?;
    let slide = start.wrapping_sub(text);
    let all = symbols.into_iter().filter(|(address, _)| IMAGE.contains(address));
    Ok(all.map(|(address, name)| (address.wrapping_add(slide), name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_symbols_move_with_the_kernel() {
        let map = b"0000000000000000 A fixed_percpu_data\nffffffff81000000 T _text\n\
                    ffffffff81000040 t secondary\nbad line\n";
        let symbols = moved(of_file(map).unwrap(), KERNEL + 0x40_0000).unwrap();
        let names: Vec<_> = symbols.iter().map(|(at, name)| (at - KERNEL, name.as_str())).collect();
        assert_eq!(names, [(0x40_0000, "_text"), (0x40_0040, "secondary")]);
        assert!(moved(of_file(b"\xff").unwrap_or_default(), 0).is_err());
        assert!(of_file(b"\x7fELF").is_err());
    }

    const KERNEL: u64 = 0xffff_ffff_8100_0000;
}
