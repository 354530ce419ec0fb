//! I/O ports: which of them are judged, and what a guest may do there.
//!
//! All others are the guest's and pass at full speed. The state here is the machine's, since the
//! ports are: a caller holds it from the judgement to the access, so that what is judged is what
//! happens.

use crate::chipset::Chipset;
use crate::config::Register;
use arrayvec::ArrayVec;
use core::ops::RangeInclusive;

/// What is behind a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The hypervisor's: reads as ones, writes are lost.
    Hidden,
    /// The keyboard controller's commands.
    KeyboardCommand,
    /// System control port A.
    ControlA,
    /// The clock's registers, an index and the data in turn.
    Clock,
    /// PCI configuration: which register.
    ConfigAddress,
    /// The reset control register, inside of that.
    ResetControl,
    /// PCI configuration: what is in it.
    ConfigData,
    /// ACPI's control of power: it puts the machine to sleep. One of two.
    Power(usize),
    /// The register by which ACPI resets the machine.
    Reset(u8),
    /// Flags of the CPU that is selected in QEMU's block for hot-plugging.
    CpuHotplug,
    /// QEMU's way to have the machine copy its configuration to memory of any address.
    FirmwareDma,
    /// The items of that configuration: which one (two ports), and its bytes.
    FirmwareItems,
}

/// Ports that are judged.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
    /// What is there.
    pub device: Device,
    /// What could be done there.
    pub why: &'static str,
    /// Where the manual says so.
    pub reference: &'static str,
}

const fn row(
    first: u16,
    last: u16,
    device: Device,
    why: &'static str,
    reference: &'static str,
) -> Row {
    Row { first, last, device, why, reference }
}

/// The debug console, on which the hypervisor writes its events.
pub const DEBUG_CONSOLE: u16 = 0xe9;
/// The keyboard controller's commands.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// The clock's index; its data follows.
pub const CLOCK_INDEX: u16 = 0x70;
/// Which register of PCI configuration.
pub const CONFIG_ADDRESS: u16 = 0xcf8;
/// What is in it.
pub const CONFIG_DATA: u16 = 0xcfc;
/// The clock's register that tells the firmware where to go on after a reset.
pub const SHUTDOWN_STATUS: u8 = 0x0f;

/// On every machine.
const ARCHITECTURAL: &[Row] = &[
    row(
        0x64,
        0x64,
        Device::KeyboardCommand,
        "reset the CPUs, mask address line 20",
        "ICH9, 5.8; 8042",
    ),
    row(0x70, 0x77, Device::Clock, "have the firmware go on elsewhere after a reset", "ICH9, 13.6"),
    row(0x92, 0x92, Device::ControlA, "reset the CPUs, mask address line 20", "ICH9, 13.7.3"),
    row(0xe9, 0xe9, Device::Hidden, "write events", "Bochs and QEMU: the debug console"),
    row(0xcf8, 0xcf8, Device::ConfigAddress, "reach the chipset", "PCI 3.0, 3.2.2.3.2"),
    row(0xcf9, 0xcf9, Device::ResetControl, "reset the machine", "ICH9, 13.7.5"),
    row(0xcfa, 0xcfb, Device::ConfigAddress, "reach the chipset", "PCI 3.0, 3.2.2.3.2"),
    row(0xcfc, 0xcff, Device::ConfigData, "reach the chipset", "PCI 3.0, 3.2.2.3.2"),
    row(0x510, 0x511, Device::FirmwareItems, "learn of the next", "QEMU, docs/specs/fw_cfg"),
    row(0x514, 0x51b, Device::FirmwareDma, "write to any memory", "QEMU, docs/specs/fw_cfg"),
];

/// What ACPI's fixed description says of ports (ACPI 6.5, table 5.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acpi {
    /// The registers that control power: PM1a and PM1b; 0 for none.
    pub power: [u16; 2],
    /// What is written to each to switch the machine off: the type of S5, if the tables name it.
    pub off: Option<[u8; 2]>,
    /// The port that resets the machine, and by which value.
    pub reset: Option<(u16, u8)>,
}

/// Most rows of a machine.
const MOST_ROWS: usize = 20;

/// An access to ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The first port.
    pub port: u16,
    /// 1, 2 or 4 ports.
    pub size: u8,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is made as it is.
    Pass,
    /// It is done.
    Done,
    /// It is dropped, and reported.
    Refuse,
    /// The machine is reset.
    Reset,
    /// It is of this register of PCI configuration, which has rules of its own.
    Config(Register),
}

/// What becomes of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// It is made as it is.
    Pass,
    /// It is made, and these bits of what it gives are cleared.
    Without(u32),
    /// It gives this.
    Value(u32),
    /// It is of this register of PCI configuration.
    Config(Register),
}

/// The judged ports of a machine.
#[derive(Debug)]
pub struct Ports {
    rows: ArrayVec<Row, MOST_ROWS>,
    acpi: Acpi,
    /// What the guest last wrote to [`CONFIG_ADDRESS`].
    config: u32,
    /// Which of the clock's registers is selected, in each of its four banks.
    clock: [u8; 4],
    /// What the guest believes to be in [`SHUTDOWN_STATUS`].
    shutdown_status: u8,
    /// Which item of QEMU's configuration is selected, and how many bytes of it were read.
    item: u16,
    item_read: u32,
}

impl Ports {
    /// Of a machine with this chipset and these tables.
    pub fn new(chipset: &Chipset, acpi: Acpi) -> Self {
        let mut rows: ArrayVec<Row, MOST_ROWS> = ARCHITECTURAL.iter().copied().collect();
        let power = acpi.power.into_iter().enumerate().filter(|(_, port)| *port != 0);
        let power = power.map(|(index, port)| {
            let device = Device::Power(index);
            row(
                port,
                port.saturating_add(1),
                device,
                "put the machine to sleep",
                "ACPI 6.5, 4.8.3.2.1",
            )
        });
        let reset = acpi.reset.map(|(port, value)| {
            row(port, port, Device::Reset(value), "reset the machine", "ACPI 6.5, 4.8.3.6")
        });
        let hotplug = chipset.cpu_hotplug.map(|first| {
            let (flags, why) = (first.saturating_add(4), "take a CPU out");
            row(flags, flags, Device::CpuHotplug, why, "QEMU, docs/specs/acpi_cpu_hotplug")
        });
        for new in power.chain(reset).chain(hotplug) {
            // The reset register often is one of the others. There is room for all.
            if !rows.iter().any(|row| row.first <= new.last && new.first <= row.last) {
                let _ = rows.try_push(new);
            }
        }
        Self { rows, acpi, config: 0, clock: [0; 4], shutdown_status: 0, item: 0, item_read: 0 }
    }

    /// The rows.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Every port that is judged.
    pub fn judged(&self) -> impl Iterator<Item = u16> {
        self.rows.iter().flat_map(|row| row.first..=row.last)
    }

    /// Whether any port of a range is judged.
    pub fn overlaps(&self, ports: &RangeInclusive<u32>) -> bool {
        self.rows.iter().any(|row| {
            u32::from(row.first) <= *ports.end() && *ports.start() <= u32::from(row.last)
        })
    }

    /// What is behind all ports of an access, if that is one thing, and how far into it.
    fn device(&self, access: Access) -> Option<(Device, u16)> {
        let last = access.port.checked_add(u16::from(access.size).checked_sub(1)?)?;
        let row = self.rows.iter().find(|row| row.first <= access.port && last <= row.last)?;
        Some((row.device, access.port - row.first))
    }

    fn selects_config(access: Access) -> bool {
        access == Access { port: CONFIG_ADDRESS, size: 4 }
    }

    /// The register of PCI configuration that an access to [`CONFIG_DATA`] is of.
    fn config_register(&self, within: u16) -> Option<Register> {
        let selected = Register::selected(self.config)?;
        Some(Register { offset: selected.offset | within, ..selected })
    }

    /// Judges a write of `value`.
    pub fn write(&mut self, access: Access, value: u32) -> Write {
        if Self::selects_config(access) {
            self.config = value;
            return Write::Done;
        }
        let Some((device, within)) = self.device(access) else { return Write::Refuse };
        let byte = value.to_le_bytes()[0];
        match device {
            Device::Hidden => Write::Done,
            Device::KeyboardCommand => keyboard_command(byte),
            Device::ControlA if byte & CONTROL_RESET != 0 => Write::Reset,
            Device::ControlA if byte & CONTROL_A20 == 0 => Write::Refuse,
            Device::ControlA => Write::Pass,
            Device::Clock if access.size != 1 => Write::Refuse,
            Device::Clock => self.write_clock(within, byte),
            // Hardware knows no other access to the address than a whole one.
            Device::ConfigAddress => Write::Done,
            Device::ResetControl if byte & RESET_CPU != 0 => Write::Reset,
            Device::ResetControl => Write::Pass,
            Device::ConfigData => self.config_register(within).map_or(Write::Done, Write::Config),
            Device::Power(index) => self.write_power(index, access, within, value),
            Device::Reset(resets) if byte == resets => Write::Reset,
            Device::Reset(_) => Write::Pass,
            Device::CpuHotplug if byte & CPU_EJECT != 0 => Write::Refuse,
            Device::CpuHotplug => Write::Pass,
            Device::FirmwareDma => Write::Refuse,
            Device::FirmwareItems if within == 0 && access.size == 2 => {
                let [low, high, ..] = value.to_le_bytes();
                self.item = u16::from_le_bytes([low, high]);
                self.item_read = 0;
                Write::Pass
            }
            Device::FirmwareItems => Write::Refuse,
        }
    }

    /// Judges a read.
    pub fn read(&mut self, access: Access) -> Read {
        if Self::selects_config(access) {
            return Read::Value(self.config);
        }
        let Some((device, within)) = self.device(access) else {
            let last = u32::from(access.port) + u32::from(access.size) - 1;
            // What would reach something hidden, or configuration that another CPU selected.
            let kept = self.rows.iter().any(|row| {
                matches!(
                    row.device,
                    Device::Hidden | Device::ConfigData | Device::Clock | Device::FirmwareItems
                ) && u32::from(row.first) <= last
                    && access.port <= row.last
            });
            return if kept { Read::Value(u32::MAX) } else { Read::Pass };
        };
        match device {
            Device::Hidden => Read::Value(u32::MAX),
            Device::ConfigData => {
                self.config_register(within).map_or(Read::Value(u32::MAX), Read::Config)
            }
            Device::Clock if within % 2 == 1 && self.is_shutdown_status(within) => {
                Read::Value(u32::from(self.shutdown_status))
            }
            Device::Clock if access.size != 1 => Read::Value(u32::MAX),
            Device::FirmwareItems if within == 1 => self.read_item(),
            _ => Read::Pass,
        }
    }

    fn bank(within: u16) -> usize {
        usize::from(within / 2)
    }

    fn is_shutdown_status(&self, within: u16) -> bool {
        self.clock.get(Self::bank(within)) == Some(&SHUTDOWN_STATUS)
    }

    /// The register that the firmware looks at first is kept at 0 in the hardware, whatever the guest
    /// writes (Linux sets it when it starts a CPU): no reset leads anywhere but to the firmware's own
    /// beginning.
    fn write_clock(&mut self, within: u16, value: u8) -> Write {
        if within.is_multiple_of(2) {
            if let Some(selected) = self.clock.get_mut(Self::bank(within)) {
                *selected = value & 0x7f;
            }
            return Write::Pass;
        }
        if self.is_shutdown_status(within) {
            self.shutdown_status = value;
            return Write::Done;
        }
        Write::Pass
    }

    /// Sleep is entered by a bit of the upper byte, with the kind of sleep beside it (ACPI 6.5,
    /// 4.8.3.2.1).
    fn write_power(&self, index: usize, access: Access, within: u16, value: u32) -> Write {
        let value = match (within, access.size) {
            (0, 1 | 2) => value,
            (1, 1) => value << 8,
            _ => return Write::Refuse,
        };
        if value & SLEEP_ENABLE == 0 {
            return Write::Pass;
        }
        let kind = value >> 10 & 7;
        let off = self.acpi.off.and_then(|types| types.get(index).copied());
        if off.is_some_and(|off| u32::from(off) == kind) { Write::Pass } else { Write::Refuse }
    }

    /// The item that says what the device can: without copying to memory, so that nobody tries.
    fn read_item(&mut self) -> Read {
        let first = core::mem::replace(&mut self.item_read, 1) == 0;
        if self.item == ITEM_FEATURES && first { Read::Without(ITEM_HAS_DMA) } else { Read::Pass }
    }
}

const CONTROL_RESET: u8 = 1 << 0;
const CONTROL_A20: u8 = 1 << 1;
const RESET_CPU: u8 = 1 << 2;
const CPU_EJECT: u8 = 0b1_1000;
const SLEEP_ENABLE: u32 = 1 << 13;
const ITEM_FEATURES: u16 = 1;
const ITEM_HAS_DMA: u32 = 1 << 1;

/// Commands of the keyboard controller (8042; Linux, include/linux/i8042.h).
fn keyboard_command(command: u8) -> Write {
    /// What follows is its output port: reset, and address line 20.
    const WRITE_OUTPUT: u8 = 0xd1;
    const MASK_A20: u8 = 0xdd;
    match command {
        WRITE_OUTPUT | MASK_A20 => Write::Refuse,
        // Lines whose bit is clear are pulsed: the first one is the reset.
        0xf0..=0xff if command & 1 == 0 => Write::Reset,
        0xf0..=0xff if command & 2 == 0 => Write::Refuse,
        _ => Write::Pass,
    }
}

#[cfg(test)]
mod tests;
