//! Messages that interrupt a CPU, and those that do more than that.
//!
//! The same three bits say how a message is delivered wherever one comes from: the local APIC's
//! command register and its local vectors, an entry of an I/O APIC, the data of a message-signalled
//! interrupt. Interrupts and NMIs are the guest's. INIT and SIPI take a CPU away from whatever runs
//! on it and start it elsewhere; SMI runs the firmware. What has no name is not sent either.

/// How a message is delivered: bits 10 to 8 (SDM 3A, 11.6.1; APM volume 2, 16.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the manuals'")]
pub enum Delivery {
    Fixed,
    LowestPriority,
    Smi,
    Reserved,
    Nmi,
    Init,
    Startup,
    External,
}

impl Delivery {
    /// Of a message.
    pub const fn of(message: u32) -> Self {
        match message >> 8 & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            _ => Self::External,
        }
    }
}

/// Where a message comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command register of a local APIC.
    Command,
    /// One of its local vectors.
    Vector,
    /// An entry of an I/O APIC.
    IoApic,
    /// A device, or an HPET, that writes to the messages' addresses.
    Device,
}

/// Whether a message is an interrupt or an NMI, and nothing more.
pub const fn is_interrupt(message: u32, source: Source) -> bool {
    match Delivery::of(message) {
        Delivery::Fixed | Delivery::Nmi => true,
        Delivery::LowestPriority => !matches!(source, Source::Vector),
        // What the old interrupt controller says.
        Delivery::External => matches!(source, Source::Vector | Source::IoApic),
        Delivery::Smi | Delivery::Reserved | Delivery::Init | Delivery::Startup => false,
    }
}

/// First address that a device interrupts CPUs by (SDM 3A, 11.11.1).
pub const WINDOW: u64 = 0xfee0_0000;
/// Its bytes.
pub const WINDOW_BYTES: u64 = 1 << 20;

/// Whether `address` is one that a device interrupts CPUs by.
pub const fn is_message_address(address: u32) -> bool {
    address >> 20 == 0xfee
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_interrupts_pass() {
        for message in 0..=0xffff_u32 {
            for source in [Source::Command, Source::Vector, Source::IoApic, Source::Device] {
                let passes = is_interrupt(message, source);
                let delivery = message >> 8 & 7;
                assert!(!passes || ![2, 3, 5, 6].contains(&delivery), "{message:#x}");
                assert!(passes || ![0, 4].contains(&delivery), "{message:#x}");
            }
        }
    }
}
