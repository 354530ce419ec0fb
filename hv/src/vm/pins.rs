//! The pinned values of one vCPU, captured at the lock, and what the guest pins for all.

use crate::vendor::Vendor;
use core::sync::atomic::{AtomicU64, Ordering};
use integrity::pins::{
    ControlPin, MsrPins, Pins, SelectorPin, TablePin, cr0_pin, cr4_pin, efer_pin,
};
use x86_decode::Table;

/// Pins the vCPU's registers at their present values.
pub fn capture(vcpu: &impl Vendor) -> Pins {
    let table = |name| {
        let (base, limit) = vcpu.table(name);
        TablePin { base, limit }
    };
    Pins {
        cr0: cr0_pin(vcpu.control_register(0)),
        cr4: cr4_pin(vcpu.control_register(4)),
        efer: efer_pin(vcpu.efer()),
        msrs: MsrPins::capture(|number| vcpu.msr(number)),
        gdtr: table(Table::Gdtr),
        idtr: table(Table::Idtr),
        ldtr: SelectorPin { selector: vcpu.selector(Table::Ldtr) },
        tr: SelectorPin { selector: vcpu.selector(Table::Tr) },
    }
}

/// Pins on CR0 and CR4 that the guest asked for, for all vCPUs. They only grow as long as
/// the same kernel runs.
#[derive(Debug, Default)]
pub struct Requested {
    zero: Bits,
    four: Bits,
}

#[derive(Debug, Default)]
struct Bits {
    one: AtomicU64,
    zero: AtomicU64,
}

impl Requested {
    fn bits(&self, register: u8) -> Option<&Bits> {
        match register {
            0 => Some(&self.zero),
            4 => Some(&self.four),
            _ => None,
        }
    }

    /// The pin on CR0 or CR4, by number; nothing on others.
    pub fn pin(&self, register: u8) -> ControlPin {
        let load = |bits: &AtomicU64| bits.load(Ordering::SeqCst);
        self.bits(register).map_or(ControlPin { must_be_one: 0, must_be_zero: 0 }, |bits| {
            ControlPin { must_be_one: load(&bits.one), must_be_zero: load(&bits.zero) }
        })
    }

    /// Forgets them all: another kernel follows, which has asked for nothing.
    pub fn begin_anew(&self) {
        for bits in [&self.zero, &self.four] {
            bits.one.store(0, Ordering::SeqCst);
            bits.zero.store(0, Ordering::SeqCst);
        }
    }

    /// Adds to the pin on CR0 or CR4.
    pub fn add(&self, register: u8, pin: ControlPin) {
        if let Some(bits) = self.bits(register) {
            bits.one.fetch_or(pin.must_be_one, Ordering::SeqCst);
            bits.zero.fetch_or(pin.must_be_zero, Ordering::SeqCst);
        }
    }
}
