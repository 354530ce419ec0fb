//! Intel Q35 with ICH9, as QEMU's `q35` is (Intel 3 Series Express Chipset Family Datasheet; Intel I/O
//! Controller Hub 9 Family Datasheet).

use super::{Chipset, Smram, rule};
use crate::config::Function;

const MEMORY_CONTROLLER: Function = Function::new(0, 0, 0);
const LPC_BRIDGE: Function = Function::new(0, 0x1f, 0);
const SMRAM: u16 = 0x9d;

/// The chipset.
pub static CHIPSET: Chipset = Chipset {
    name: "Intel Q35 and ICH9",
    host_bridge: 0x29c0_8086,
    rules: &[
        rule(
            MEMORY_CONTROLLER,
            0x40,
            0xff,
            "which addresses are memory, configuration space (PCIEXBAR), the firmware's copy (PAM), \
             system management memory (SMRAM, ESMRAMC, TSEG), remapped memory (REMAPBASE, TOLUD)",
            "3 Series, 5.1",
        ),
        rule(
            LPC_BRIDGE,
            0x40,
            0x44,
            "at which ports the machine sleeps (PMBASE, ACPI_CNTL)",
            "ICH9, 13.1.13",
        ),
        rule(
            LPC_BRIDGE,
            0xdc,
            0xdc,
            "whether the firmware can be written (BIOS_CNTL)",
            "ICH9, 13.1.32",
        ),
        rule(
            LPC_BRIDGE,
            0xf0,
            0xf3,
            "where the chipset's own registers are, among them those that place HPET and I/O APIC (RCBA)",
            "ICH9, 13.1.35",
        ),
    ],
    smram: Some(Smram { function: MEMORY_CONTROLLER, register: SMRAM }),
    cpu_hotplug: Some(0x0cd8),
};
