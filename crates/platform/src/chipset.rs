//! Chipsets: which of their registers decide what the hypervisor relies on. One file each.
//!
//! A chipset is known by its host bridge, the function 0 of device 0 on bus 0. On one that is in no
//! table, what is architectural is guarded all the same.

pub mod i440fx;
pub mod q35;

use crate::config::Function;
use core::ops::RangeInclusive;

/// Registers that keep their values.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Whose.
    pub function: Function,
    /// The first of its bytes.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// What could be done by them.
    pub why: &'static str,
    /// Where the manual says so.
    pub reference: &'static str,
}

const fn rule(
    function: Function,
    first: u16,
    last: u16,
    why: &'static str,
    reference: &'static str,
) -> Rule {
    Rule { function, first, last, why, reference }
}

/// The register that says who sees the memory of the firmware's system management mode.
#[derive(Clone, Copy, Debug)]
pub struct Smram {
    /// Whose.
    pub function: Function,
    /// A byte.
    pub register: u16,
}

impl Smram {
    /// In the register: everybody sees it.
    pub const OPEN: u8 = 1 << 6;
    /// In the register: it does not change any more, until a reset.
    pub const LOCKED: u8 = 1 << 4;
}

/// What is known of a chipset.
#[derive(Debug)]
pub struct Chipset {
    /// Its name for people.
    pub name: &'static str,
    /// Vendor (low half) and device (high half) of its host bridge.
    pub host_bridge: u32,
    /// Its registers that keep their values.
    pub rules: &'static [Rule],
    /// Who sees the memory of system management mode.
    pub smram: Option<Smram>,
    /// First port of the block by which CPUs are taken out (QEMU, docs/specs/acpi_cpu_hotplug).
    pub cpu_hotplug: Option<u16>,
}

/// Every chipset that is known.
pub static KNOWN: &[&Chipset] = &[&q35::CHIPSET, &i440fx::CHIPSET];

/// Any other.
pub static UNKNOWN: Chipset =
    Chipset { name: "unknown", host_bridge: 0, rules: &[], smram: None, cpu_hotplug: None };

impl Chipset {
    /// The chipset with this host bridge.
    pub fn find(host_bridge: u32) -> &'static Self {
        let known = KNOWN.iter().find(|chipset| chipset.host_bridge == host_bridge);
        known.copied().unwrap_or(&UNKNOWN)
    }

    /// Whether it is in the tables.
    pub const fn is_known(&self) -> bool {
        self.host_bridge != 0
    }

    /// Whether any of these bytes is of a register that keeps its value.
    pub fn guards(&self, function: Function, bytes: RangeInclusive<u16>) -> bool {
        self.rules.iter().any(|rule| {
            rule.function == function && rule.first <= *bytes.end() && *bytes.start() <= rule.last
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_whole() {
        for chipset in KNOWN {
            assert!(core::ptr::eq(Chipset::find(chipset.host_bridge), *chipset));
            for rule in chipset.rules {
                assert!(rule.first <= rule.last);
                assert!(!rule.why.is_empty() && !rule.reference.is_empty());
            }
            let smram = chipset.smram.expect("each of them has it");
            assert!(chipset.guards(smram.function, smram.register..=smram.register));
        }
        assert!(!Chipset::find(0x1234_8086).is_known());
    }
}
