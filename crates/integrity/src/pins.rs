//! Register pins: which values of control registers, MSRs and descriptor-table registers the
//! guest may load after the lock.
//!
//! A pin is made from the value a vCPU has at the lock and never changes. Loading the value that
//! is there already is always allowed.
//!
//! Bits that kernels change in normal operation stay free: CR0.TS, CR0.CD (cache setup), CR4.PGE
//! (global flush), CR4.TSD (prctl), CR4.PCE (user performance counters).

use x86_defs::msr::{self, efer};
use x86_defs::{cr0, cr4};

/// Bits of one register that may not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlPin {
    /// Bits that every value must have.
    pub must_be_one: u64,
    /// Bits that no value may have.
    pub must_be_zero: u64,
}

impl ControlPin {
    /// Pins those bits of `one` that `current` has, and those of `zero` that it lacks.
    const fn of(current: u64, one: u64, zero: u64) -> Self {
        Self { must_be_one: current & one, must_be_zero: !current & zero }
    }

    /// Whether `value` may be loaded.
    pub const fn allows(self, value: u64) -> bool {
        self.broken_by(value) == 0
    }

    /// The pinned bits that `value` would change; 0 if it may be loaded.
    pub const fn broken_by(self, value: u64) -> u64 {
        self.must_be_one & !value | self.must_be_zero & value
    }
}

/// CR0: protection, paging and write protection stay on.
pub const fn cr0_pin(current: u64) -> ControlPin {
    ControlPin::of(current, cr0::PE | cr0::WP | cr0::PG, 0)
}

/// CR4: SMEP, SMAP, UMIP, FSGSBASE, CET and PAE stay on where they are on. The number of paging
/// levels stays. Virtualization (VMXE) and safer mode (SMXE) stay off: the guest has neither.
pub const fn cr4_pin(current: u64) -> ControlPin {
    let on = cr4::PAE | cr4::UMIP | cr4::FSGSBASE | cr4::SMEP | cr4::SMAP | cr4::CET;
    ControlPin::of(current, on | cr4::LA57, cr4::LA57 | cr4::VMXE | cr4::SMXE)
}

/// EFER as the guest sees it, without the SVME bit that the hypervisor keeps set: no-execute and
/// the system call instruction stay on, long mode stays as it is, SVME and LMSLE (segment limits
/// in long mode) stay off.
pub const fn efer_pin(current: u64) -> ControlPin {
    let mode = efer::LME | efer::LMA;
    ControlPin::of(current, efer::SCE | efer::NXE | mode, mode | efer::SVME | efer::LMSLE)
}

/// The MSRs whose value at the lock is the only one allowed: where system calls enter the kernel
/// and with which flags, and where the local APIC is.
pub const PINNED_MSRS: [u32; 8] = [
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::APIC_BASE,
];

/// One vCPU's values of [`PINNED_MSRS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrPins {
    values: [u64; PINNED_MSRS.len()],
}

impl MsrPins {
    /// How many there are.
    pub const COUNT: usize = PINNED_MSRS.len();

    /// The values in the order of [`PINNED_MSRS`].
    pub const fn values(&self) -> [u64; Self::COUNT] {
        self.values
    }

    /// Those with these [`MsrPins::values`].
    pub const fn from_values(values: [u64; Self::COUNT]) -> Self {
        Self { values }
    }

    /// Asks `read` for the value of each pinned MSR.
    pub fn capture(read: impl FnMut(u32) -> u64) -> Self {
        Self { values: PINNED_MSRS.map(read) }
    }

    /// The only value that `msr` may have; `None` if it is not pinned.
    pub fn pinned(&self, msr: u32) -> Option<u64> {
        let index = PINNED_MSRS.iter().position(|pinned| *pinned == msr)?;
        self.values.get(index).copied()
    }

    /// Whether `value` may be written to `msr`. An MSR that is not pinned takes any value.
    pub fn allows(&self, msr: u32, value: u64) -> bool {
        self.pinned(msr).is_none_or(|pinned| pinned == value)
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePin {
    /// Linear address of the table.
    pub base: u64,
    /// Its length in bytes, less one.
    pub limit: u32,
}

impl TablePin {
    /// Whether the register may be loaded with `base` and `limit`.
    pub const fn allows(self, base: u64, limit: u32) -> bool {
        self.base == base && self.limit == limit
    }
}

/// LDTR or TR.
///
/// An allowed load changes nothing and should be skipped, not executed: the descriptor in guest
/// memory may have changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectorPin {
    /// The selector; 0 if none is loaded.
    pub selector: u16,
}

impl SelectorPin {
    /// Whether the register may be loaded with `selector`.
    pub const fn allows(self, selector: u16) -> bool {
        self.selector == selector
    }
}

/// All pins of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pins {
    /// CR0.
    pub cr0: ControlPin,
    /// CR4.
    pub cr4: ControlPin,
    /// EFER as the guest sees it.
    pub efer: ControlPin,
    /// System call entry points and the APIC's place.
    pub msrs: MsrPins,
    /// GDTR.
    pub gdtr: TablePin,
    /// IDTR.
    pub idtr: TablePin,
    /// LDTR.
    pub ldtr: SelectorPin,
    /// TR.
    pub tr: SelectorPin,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a pin does with one bit: `-` free, `1` must stay 1, `0` must stay 0, by the bit's
    /// value at the lock.
    fn rule(pin: fn(u64) -> ControlPin, bit: u32, was: bool) -> char {
        let mask = 1u64 << bit;
        // The other bits as they are at the lock, so that only this one decides.
        for others in [0, u64::MAX] {
            let current = if was { others | mask } else { others & !mask };
            let pin = pin(current);
            assert!(pin.allows(current) || pin.must_be_zero & current != 0);
            assert_eq!(pin.must_be_one & pin.must_be_zero, 0);
            assert_eq!(pin.broken_by(current), 0, "the present value is allowed");
            let changed = pin.broken_by(current ^ mask);
            assert!(changed == 0 || changed == mask);
            assert_eq!(pin.allows(current ^ mask), changed == 0);
        }
        match (pin(if was { mask } else { 0 }).allows(if was { 0 } else { mask }), was) {
            (true, _) => '-',
            (false, true) => '1',
            (false, false) => '0',
        }
    }

    #[test]
    fn every_bit_of_every_register() {
        for bit in 0..64 {
            let expected = |ones: &[u32], zeros: &[u32]| {
                let on = if ones.contains(&bit) { '1' } else { '-' };
                let off = if zeros.contains(&bit) { '0' } else { '-' };
                [on, off]
            };
            let actual = |pin| [rule(pin, bit, true), rule(pin, bit, false)];
            assert_eq!(actual(cr0_pin), expected(&[0, 16, 31], &[]), "CR0 bit {bit}");
            assert_eq!(
                actual(cr4_pin),
                expected(&[5, 11, 12, 16, 20, 21, 23], &[12, 13, 14]),
                "CR4 bit {bit}"
            );
            assert_eq!(
                actual(efer_pin),
                expected(&[0, 8, 10, 11], &[8, 10, 12, 13]),
                "EFER bit {bit}"
            );
        }
    }

    #[test]
    fn msrs_keep_their_value() {
        let pins = MsrPins::capture(|msr| u64::from(msr) << 8);
        for msr in (0..0x2000).chain(0xc000_0000..0xc000_2000) {
            let value = u64::from(msr) << 8;
            let pinned = PINNED_MSRS.contains(&msr);
            assert_eq!(pins.pinned(msr), pinned.then_some(value));
            assert!(pins.allows(msr, value));
            for bit in 0..64 {
                assert_eq!(pins.allows(msr, value ^ 1 << bit), !pinned);
            }
        }
    }

    #[test]
    fn tables_keep_base_and_limit() {
        let pin = TablePin { base: 0xffff_fe00_0000_0000, limit: 0xfff };
        assert!(pin.allows(pin.base, pin.limit));
        for bit in 0..64 {
            assert!(!pin.allows(pin.base ^ 1 << bit, pin.limit));
        }
        for bit in 0..32 {
            assert!(!pin.allows(pin.base, pin.limit ^ 1 << bit));
        }
        for selector in 0..=u16::MAX {
            assert_eq!(SelectorPin { selector: 0x40 }.allows(selector), selector == 0x40);
        }
    }
}
