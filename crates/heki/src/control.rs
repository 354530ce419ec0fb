//! Hypercall 13: pinning bits of CR0 and CR4.
//!
//! A pin only grows and lasts until the machine resets. It comes on top of what the lock pinned,
//! so it can only narrow.

use crate::Refusal;
use integrity::pins::ControlPin;
use x86_defs::{cr0, cr4};

/// Flag: answer the version; the other arguments are 0.
pub const FLAG_VERSION: u64 = 1 << 0;
/// Flag of Ravelin's own, not in the RFC: the bits of the mask must stay 0, not 1.
pub const FLAG_ZEROS: u64 = 1 << 63;

/// Bits of CR0 that can be pinned to 1; WP is mandatory.
pub const CR0_ONES: u64 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
/// Bits of CR4 that can be pinned to 1.
pub const CR4_ONES: u64 = cr4::UMIP | cr4::FSGSBASE | cr4::SMEP | cr4::SMAP | cr4::CET;
/// Bits of CR0 that can be pinned to 0.
pub const CR0_ZEROS: u64 = cr0::EM | cr0::NW | cr0::CD;
/// Bits of CR4 that can be pinned to 0.
pub const CR4_ZEROS: u64 = cr4::VME | cr4::PVI | cr4::PCE | cr4::LA57 | cr4::VMXE | cr4::SMXE;

/// What a well-formed call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The version of the interface.
    Version,
    /// A pin on CR0 or CR4.
    Pin {
        /// 0 or 4.
        register: u8,
        /// The bits, without those pinned before.
        pin: ControlPin,
    },
}

/// Judges the arguments `a0` (the register), `a1` (the mask) and `a2` (flags). `state` gives the
/// calling vCPU's present value of a register, and what guests have pinned of it so far.
///
/// # Errors
/// [`Refusal::Invalid`]: an unknown register, flag or bit; an empty mask; CR0 without WP; a bit
/// that does not have the value it is to be pinned to; a bit that is pinned to the other value.
pub fn judge(
    [a0, a1, a2]: [u64; 3],
    state: impl Fn(u8) -> (u64, ControlPin),
) -> Result<Request, Refusal> {
    if a2 == FLAG_VERSION {
        return if a0 == 0 && a1 == 0 { Ok(Request::Version) } else { Err(Refusal::Invalid) };
    }
    let (register, mandatory, known) = match (a0, a2) {
        (0, 0) => (0, cr0::WP, CR0_ONES),
        (0, FLAG_ZEROS) => (0, 0, CR0_ZEROS),
        (4, 0) => (4, 0, CR4_ONES),
        (4, FLAG_ZEROS) => (4, 0, CR4_ZEROS),
        _ => return Err(Refusal::Invalid),
    };
    let (value, before) = state(register);
    let pin = match a2 {
        0 => ControlPin { must_be_one: a1, must_be_zero: 0 },
        _ => ControlPin { must_be_one: 0, must_be_zero: a1 },
    };
    let contradicts =
        pin.must_be_one & before.must_be_zero | pin.must_be_zero & before.must_be_one != 0;
    let sound = a1 != 0
        && a1 & !known == 0
        && a1 & mandatory == mandatory
        && pin.allows(value)
        && !contradicts;
    if sound { Ok(Request::Pin { register, pin }) } else { Err(Refusal::Invalid) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREE: ControlPin = ControlPin { must_be_one: 0, must_be_zero: 0 };
    const CR0: u64 = 0x8005_0033;
    const CR4: u64 = 0x0037_06f0;

    fn ask(arguments: [u64; 3]) -> Result<Request, Refusal> {
        judge(arguments, |register| (if register == 0 { CR0 } else { CR4 }, FREE))
    }

    fn ones(register: u8, must_be_one: u64) -> Result<Request, Refusal> {
        Ok(Request::Pin { register, pin: ControlPin { must_be_one, must_be_zero: 0 } })
    }

    #[test]
    fn the_calls_of_the_rfc() {
        assert_eq!(ask([0, 0, 1]), Ok(Request::Version));
        assert_eq!(ask([0, cr0::WP, 0]), ones(0, cr0::WP));
        assert_eq!(ask([4, cr4::SMEP | cr4::SMAP, 0]), ones(4, cr4::SMEP | cr4::SMAP));
        for wrong in [
            [0, 0, 0],
            [0, cr0::PG, 0],
            [0, cr0::WP | cr0::TS, 0],
            [0, cr0::WP, 1],
            [4, 0, 1],
            [0, cr0::WP, 2],
            [0, cr0::WP, 3],
            [3, cr0::WP, 0],
            [1 << 32, cr0::WP, 0],
            [4, cr4::PAE, 0],
            // Clear now.
            [4, cr4::CET, 0],
            [0, cr0::CD, 0],
        ] {
            assert_eq!(ask(wrong), Err(Refusal::Invalid), "{wrong:x?}");
        }
    }

    #[test]
    fn zeros_are_pinned_where_asked() {
        let pin = ControlPin { must_be_one: 0, must_be_zero: cr4::LA57 };
        assert_eq!(ask([4, cr4::LA57, FLAG_ZEROS]), Ok(Request::Pin { register: 4, pin }));
        for wrong in [[4, cr4::SMEP, FLAG_ZEROS], [0, cr0::WP, FLAG_ZEROS], [4, 0, FLAG_ZEROS]] {
            assert_eq!(ask(wrong), Err(Refusal::Invalid), "{wrong:x?}");
        }
        let set = judge([4, cr4::LA57, FLAG_ZEROS], |_| (cr4::LA57, FREE));
        assert_eq!(set, Err(Refusal::Invalid));
    }

    #[test]
    fn a_pin_to_the_other_value_is_refused() {
        // Another CPU may have the bit otherwise, and may have pinned it so.
        let zero = ControlPin { must_be_one: 0, must_be_zero: cr0::WP };
        assert_eq!(judge([0, cr0::WP, 0], |_| (CR0, zero)), Err(Refusal::Invalid));
        let one = ControlPin { must_be_one: cr0::CD, must_be_zero: 0 };
        assert_eq!(judge([0, cr0::CD, FLAG_ZEROS], |_| (CR0, one)), Err(Refusal::Invalid));
    }

    proptest! {
        #[test]
        fn a_pin_allows_the_value_that_is_there_and_contradicts_nothing(
            a0 in prop_oneof![Just(0_u64), Just(4), any::<u64>()],
            a1 in prop_oneof![any::<u64>(), any::<u64>().prop_map(|bits| bits & (CR0_ONES | CR4_ONES))],
            a2 in prop_oneof![Just(0_u64), Just(1), Just(FLAG_ZEROS), any::<u64>()],
            value: u64, ones: u64, zeros: u64,
        ) {
            let before = ControlPin { must_be_one: ones & !zeros, must_be_zero: zeros };
            if let Ok(Request::Pin { register, pin }) = judge([a0, a1, a2], |_| (value, before)) {
                prop_assert_eq!(u64::from(register), a0);
                prop_assert_eq!(pin.must_be_one | pin.must_be_zero, a1);
                prop_assert!(pin.allows(value));
                let one = pin.must_be_one | before.must_be_one;
                prop_assert_eq!(one & (pin.must_be_zero | before.must_be_zero), 0);
            }
        }
    }
}
