//! PCI configuration space: which registers of the chipset a guest may not change, and messages
//! that a device is to send.
//!
//! Both ways into it end here, ports 0xCF8 and 0xCFC and the memory that ACPI's MCFG names. Two
//! rules hold for every machine: a device gets no ports that are judged ([`crate::ports`]), and its
//! message-signalled interrupt (PCI 3.0, 6.8) is no more than an interrupt. The others are the
//! chipset's ([`crate::chipset`]). Messages of devices whose tables lie in their own memory (MSI-X),
//! and those that a device makes by plain DMA, are for interrupt remapping to judge.

use crate::chipset::Chipset;
use crate::message::{Source, is_interrupt, is_message_address};
use crate::verdict::{Refusal, Write};
use core::ops::RangeInclusive;

/// A function on bus 0 to 255: bus, device and function in 8, 5 and 3 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Function(u16);

impl Function {
    /// The function with this bus, device and function number.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | (device as u16 & 31) << 3 | function as u16 & 7)
    }

    /// From the number in 16 bits.
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// A register of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// Whose.
    pub function: Function,
    /// Its offset, below 4096.
    pub offset: u16,
}

impl Register {
    /// The register that a value of port 0xCF8 selects, if it selects one (PCI 3.0, 3.2.2.3.2).
    pub const fn selected(address: u32) -> Option<Self> {
        if address & ENABLE == 0 {
            return None;
        }
        let [low, function, bus, _] = address.to_le_bytes();
        Some(Self {
            function: Function::from_number(u16::from_le_bytes([function, bus])),
            offset: (low & 0xfc) as u16,
        })
    }

    /// The value for port 0xCF8 that selects the four bytes in which it lies, with all bits clear
    /// that some hardware ignores and some does not; for offsets below 256.
    pub const fn selector(self) -> u32 {
        ENABLE | (self.function.0 as u32) << 8 | (self.offset & 0xfc) as u32
    }

    /// As a number for reports.
    pub const fn number(self) -> u32 {
        ENABLE | (self.function.0 as u32) << 12 | self.offset as u32
    }
}

/// In a value of port 0xCF8: it selects a register.
const ENABLE: u32 = 1 << 31;
/// Offsets that both ways into configuration space reach.
const COMMON: u16 = 0x100;
/// Where the base addresses of a function, or of a bridge, lie.
const BASES: RangeInclusive<u16> = 0x10..=0x27;
const BASES_OF_BRIDGE: RangeInclusive<u16> = 0x10..=0x17;
const HEADER_TYPE: u16 = 0x0c;
/// A base address is of ports.
const IS_PORTS: u32 = 1 << 0;
/// Most ports that one base address has.
const MOST_PORTS: u32 = 0x100;
const STATUS: u16 = 0x04;
const HAS_CAPABILITIES: u32 = 1 << 20;
const CAPABILITIES: u16 = 0x34;
/// Most capabilities in a list: more do not fit.
const MOST_CAPABILITIES: usize = 48;
const MESSAGES: u8 = 0x05;

/// Judges a write of `size` bytes to `register`. `read` reads the four bytes at an aligned offset
/// below 256 of the same function; `judged_ports` says whether any port of a range is judged.
pub fn judge(
    chipset: &Chipset,
    judged_ports: impl FnOnce(RangeInclusive<u32>) -> bool,
    register: Register,
    size: u8,
    value: u64,
    read: impl Fn(u16) -> u32,
) -> Write {
    let within = register.offset & 3;
    let fits = matches!(size, 1 | 2 | 4) && within + u16::from(size) <= 4;
    let mask = if size == 4 { u32::MAX } else { (1_u32 << (u32::from(size) * 8)) - 1 };
    let Ok(value) = u32::try_from(value) else { return Write::Refuse(Refusal::Platform) };
    if !fits || value & !mask != 0 || register.offset >= 4096 {
        return Write::Refuse(Refusal::Platform);
    }
    if register.offset >= COMMON {
        return Write::Pass(u64::from(value));
    }
    let word = register.offset & !3;
    let shift = u32::from(within) * 8;
    let present = || read(word);
    let merged = |present: u32| present & !(mask << shift) | value << shift;
    let last = register.offset + u16::from(size) - 1;
    if chipset.guards(register.function, register.offset..=last) {
        let present = present();
        return if merged(present) == present {
            Write::Done
        } else {
            Write::Refuse(Refusal::Platform)
        };
    }
    let verdict = if BASES.contains(&word) {
        base(merged(present()), present(), word, &read, judged_ports)
    } else if word > CAPABILITIES {
        message(word, merged(present()), &read)
    } else {
        None
    };
    verdict.map_or(Write::Pass(u64::from(value)), Write::Refuse)
}

/// A device's ports must not lie over those that are judged.
fn base(
    new: u32,
    present: u32,
    word: u16,
    read: impl Fn(u16) -> u32,
    judged_ports: impl FnOnce(RangeInclusive<u32>) -> bool,
) -> Option<Refusal> {
    let is_bridge = read(HEADER_TYPE) >> 16 & 0x7f == 1;
    if present & IS_PORTS == 0 || (is_bridge && !BASES_OF_BRIDGE.contains(&word)) {
        return None;
    }
    let start = new & !3;
    let overlaps = start <= 0xffff && judged_ports(start..=start + MOST_PORTS - 1);
    overlaps.then_some(Refusal::Platform)
}

/// A message that a device is to send must be an interrupt.
fn message(word: u16, new: u32, read: impl Fn(u16) -> u32) -> Option<Refusal> {
    let (at, control) = find_messages(&read)?;
    let has_high_half = control & 1 << 7 != 0;
    let data = if has_high_half { 12 } else { 8 };
    let is_interrupt = match word.checked_sub(at)? {
        4 => new == 0 || is_message_address(new),
        8 if has_high_half => new == 0,
        // The upper half of the data's word is another's.
        offset if offset == data => is_interrupt(new & 0xffff, Source::Device),
        _ => true,
    };
    (!is_interrupt).then_some(Refusal::Message)
}

/// Where a function's message-signalled interrupts are, and their control word.
fn find_messages(read: impl Fn(u16) -> u32) -> Option<(u16, u32)> {
    if read(STATUS) & HAS_CAPABILITIES == 0 {
        return None;
    }
    let [mut at, ..] = read(CAPABILITIES).to_le_bytes();
    for _ in 0..MOST_CAPABILITIES {
        let offset = u16::from(at & 0xfc);
        if offset < 0x40 {
            return None;
        }
        let [id, next, c0, c1] = read(offset).to_le_bytes();
        if id == MESSAGES {
            return Some((offset, u32::from(u16::from_le_bytes([c0, c1]))));
        }
        at = next;
    }
    None
}

#[cfg(test)]
mod tests;
