//! Intel 440FX with PIIX3 and the power management of PIIX4, as QEMU's `pc` and Bochs' `i440fx` are
//! (Intel 440FX PCIset, 290549; 82371FB and 82371SB, 290550; 82371AB, 290562).

use super::{Chipset, Smram, rule};
use crate::config::Function;

const HOST_BRIDGE: Function = Function::new(0, 0, 0);
const ISA_BRIDGE: Function = Function::new(0, 1, 0);
const POWER_MANAGEMENT: Function = Function::new(0, 1, 3);
const SMRAM: u16 = 0x72;

/// The chipset.
pub static CHIPSET: Chipset = Chipset {
    name: "Intel 440FX and PIIX3",
    host_bridge: 0x1237_8086,
    rules: &[
        rule(
            HOST_BRIDGE,
            0x40,
            0xff,
            "which addresses are memory, the firmware's copy (PAM), system management memory (SMRAM)",
            "440FX, 3.2",
        ),
        rule(ISA_BRIDGE, 0x4e, 0x4f, "whether the firmware can be written (XBCS)", "PIIX3, 2.2.12"),
        rule(ISA_BRIDGE, 0x69, 0x69, "which memory the old DMA reaches (TOM)", "PIIX3, 2.2.15"),
        rule(ISA_BRIDGE, 0x80, 0x80, "where the I/O APIC is (APICBASE)", "PIIX3, 2.2.20"),
        rule(
            POWER_MANAGEMENT,
            0x40,
            0x43,
            "at which ports the machine sleeps (PMBA)",
            "PIIX4, 7.1.13",
        ),
        rule(
            POWER_MANAGEMENT,
            0x80,
            0x80,
            "whether those ports are there (PMREGMISC)",
            "PIIX4, 7.1.22",
        ),
    ],
    smram: Some(Smram { function: HOST_BRIDGE, register: SMRAM }),
    cpu_hotplug: Some(0xaf00),
};
