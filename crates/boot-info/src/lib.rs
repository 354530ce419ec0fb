//! What the boot loader says: memory map, modules, command line and ACPI root pointer, in one form
//! for every loader, and the search for free memory in it.
//!
//! Whoever fills a [`BootInfo`] reads the loader's memory; nothing here does. Errors are sentences
//! for the person who started the machine.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod multiboot2;
pub mod place;

use addr::Hpa;
use arrayvec::{ArrayString, ArrayVec};
use core::ops::Range;

/// The longest command line of a guest, in bytes, without a terminator (Linux's
/// `COMMAND_LINE_SIZE` on x86 is 2048 with one).
pub const MAX_COMMAND_LINE: usize = 2047;

/// What separates the hypervisor's part of the boot command line from the guest's.
pub const SEPARATOR: &str = "--";

/// Bytes of an ACPI root pointer (ACPI 6.5, 5.2.5.3); one of revision 0 has 20 and then zeros.
pub const RSDP_BYTES: usize = 36;

/// A region of the machine's memory map, in the terms of the e820 BIOS call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// 1: RAM; anything else is not.
    pub kind: u32,
}

impl Region {
    /// One past the last byte.
    pub const fn end(&self) -> u64 {
        self.start.saturating_add(self.length)
    }
    /// Whether this is RAM.
    pub const fn is_ram(&self) -> bool {
        self.kind == 1
    }
}

/// What a boot module is for; the last word of its string says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel, a bzImage.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// The kernel's manifest.
    Manifest,
    /// The policy record.
    Policy,
    /// A protection state to be restored.
    State,
    /// The image of the task that answers for the policy.
    Warden,
    /// The image of another task.
    Task,
    /// The manifest of a kernel that may be started by kexec.
    Kexec,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 8] = [
        Self::Kernel,
        Self::Initrd,
        Self::Manifest,
        Self::Policy,
        Self::State,
        Self::Warden,
        Self::Task,
        Self::Kexec,
    ];

    /// The last word of the module's string.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Manifest => "manifest",
            Self::Policy => "policy",
            Self::State => "state",
            Self::Warden => "warden",
            Self::Task => "task",
            Self::Kexec => "kexec",
        }
    }

    /// How many modules can have it.
    const fn most(self) -> usize {
        match self {
            Self::Task => MOST_TASKS,
            Self::Kexec => MOST_KEXEC,
            _ => 1,
        }
    }
}

/// Most modules whose role is [`Role::Task`].
pub const MOST_TASKS: usize = 7;
/// Most modules whose role is [`Role::Kexec`].
pub const MOST_KEXEC: usize = 4;
/// Most modules.
pub const MOST_MODULES: usize = Role::ALL.len() - 2 + MOST_TASKS + MOST_KEXEC;

/// A boot module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// What it is for.
    pub role: Role,
    /// First byte.
    pub start: Hpa,
    /// Bytes.
    pub length: u64,
}

impl Module {
    /// Its bytes, by address.
    pub const fn range(&self) -> Range<u64> {
        self.start.raw()..self.start.raw().saturating_add(self.length)
    }
}

/// Everything that the boot needs to know.
#[derive(Clone, Debug, Default)]
pub struct BootInfo {
    /// The memory map, in the loader's order.
    pub regions: ArrayVec<Region, 64>,
    /// The modules, in the loader's order; each role once, but [`Role::Task`] and [`Role::Kexec`].
    pub modules: ArrayVec<Module, MOST_MODULES>,
    /// The guest's command line.
    pub command_line: ArrayString<MAX_COMMAND_LINE>,
    /// The ACPI root pointer, if the loader gave one.
    pub rsdp: Option<[u8; RSDP_BYTES]>,
}

impl BootInfo {
    /// The first module with this role.
    pub fn module(&self, role: Role) -> Option<Module> {
        self.all(role).next()
    }

    /// The modules with this role, in the loader's order.
    pub fn all(&self, role: Role) -> impl Iterator<Item = Module> + Clone {
        self.modules.iter().copied().filter(move |module| module.role == role)
    }

    /// Adds a region of the memory map.
    ///
    /// # Errors
    /// There are too many.
    pub fn add_region(&mut self, region: Region) -> Result<(), &'static str> {
        self.regions.try_push(region).map_err(|_| "the memory map has too many entries")
    }

    /// Adds the module at `range` whose string is `text`.
    ///
    /// # Errors
    /// Its role is none, or is taken.
    pub fn add_module(&mut self, text: &str, range: Range<u64>) -> Result<(), &'static str> {
        const NO_ROLE: &str = "a boot module's string must end in kernel, initrd, manifest, policy, \
                               state, warden, task or kexec";
        let word = text.split_ascii_whitespace().next_back();
        let role = Role::ALL.into_iter().find(|role| Some(role.word()) == word).ok_or(NO_ROLE)?;
        if self.all(role).count() == role.most() {
            return Err("too many boot modules have the same role");
        }
        let length = range.end.saturating_sub(range.start);
        let module = Module { role, start: Hpa::new(range.start), length };
        self.modules.try_push(module).map_err(|_| "too many boot modules")
    }

    /// Takes over what follows the first [`SEPARATOR`] among the words of `text`, as it stands.
    ///
    /// # Errors
    /// It is longer than [`MAX_COMMAND_LINE`].
    pub fn set_command_line(
        &mut self,
        text: impl Iterator<Item = char> + Clone,
    ) -> Result<(), &'static str> {
        self.command_line.clear();
        for character in after_separator(text) {
            self.command_line
                .try_push(character)
                .map_err(|_| "the kernel's command line is longer than 2047 bytes")?;
        }
        Ok(())
    }
}

/// What follows the first word that is [`SEPARATOR`], without the space between.
fn after_separator(text: impl Iterator<Item = char> + Clone) -> impl Iterator<Item = char> + Clone {
    let mut rest = text;
    loop {
        let mut word = rest.clone().take_while(|character| *character != ' ');
        let found = SEPARATOR.chars().all(|expected| word.next() == Some(expected))
            && word.next().is_none();
        let more = rest.any(|character| character == ' ');
        if found || !more {
            return rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guest_part(text: &str) -> Result<std::string::String, &'static str> {
        let mut info = BootInfo::default();
        info.set_command_line(text.chars())?;
        Ok(info.command_line.as_str().into())
    }

    #[test]
    fn the_guests_part_follows_the_separator() {
        for (text, guest) in [
            ("/boot/hv -- quiet", "quiet"),
            ("-- quiet -- single", "quiet -- single"),
            ("hv --  quiet ", " quiet "),
            ("hv --quiet x--", ""),
            ("hv --", ""),
            ("--", ""),
            ("", ""),
        ] {
            assert_eq!(guest_part(text).unwrap(), guest, "{text}");
        }
    }

    #[test]
    fn a_command_line_that_is_too_long_is_refused() {
        let fits = "x".repeat(MAX_COMMAND_LINE);
        assert_eq!(guest_part(&std::format!("-- {fits}")).unwrap(), fits);
        assert!(guest_part(&std::format!("-- {fits}x")).is_err());
    }

    #[test]
    fn a_module_has_a_role_of_its_own() {
        let mut info = BootInfo::default();
        info.add_module("/some where/vmlinuz kernel", 4096..8192).unwrap();
        info.add_module("initrd", 8192..8193).unwrap();
        assert_eq!(info.module(Role::Initrd).unwrap().range(), 8192..8193);
        assert!(info.add_module("initrd", 0..1).is_err());
        assert!(info.add_module("initrd.gz", 0..1).is_err());
        assert!(info.add_module("", 0..1).is_err());
    }

    #[test]
    fn there_is_room_for_every_role() {
        let mut info = BootInfo::default();
        for role in Role::ALL {
            for number in 0..role.most() as u64 {
                info.add_module(role.word(), number..9).unwrap();
            }
            assert!(info.add_module(role.word(), 0..9).is_err(), "{role:?}");
        }
        let starts = info.all(Role::Task).map(|module| module.start.raw());
        assert!(starts.eq(0..MOST_TASKS as u64));
    }

    proptest! {
        #[test]
        fn the_separator_is_a_word(before in "[a-z /-]{0,12}", after in "[a-z \"/-]{0,12}") {
            let text = std::format!("{before} -- {after}");
            // The model: cut at the first word that is the separator.
            let padded = std::format!(" {text} ");
            let at = padded.find(" -- ").unwrap() + 4;
            let expected = padded.get(at..padded.len() - 1).unwrap_or_default();
            prop_assert_eq!(guest_part(&text).unwrap(), expected);
        }
    }
}
