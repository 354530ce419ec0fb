//! What the firmware's code says of sleep: packages named `_S1_` to `_S5_` (ACPI 6.5, 7.4.2), each
//! with what is written to the registers that control power.
//!
//! The code is not run: the names are looked for, with the bytes of a package behind them (20.2.5).

/// Bytes from a name on that are looked at.
pub const LOOKED_AT: usize = 16;

/// A kind of sleep that the firmware names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sleep {
    /// 1 to 5.
    pub state: u8,
    /// What goes to PM1a and PM1b.
    pub types: [u8; 2],
}

const PACKAGE: u8 = 0x12;
const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const BYTE: u8 = 0x0a;

impl Sleep {
    /// The kind that is named at the start of `bytes`, if one is.
    pub fn named(bytes: &[u8]) -> Option<Self> {
        let [b'_', b'S', digit @ b'1'..=b'5', b'_', PACKAGE, rest @ ..] = bytes else {
            return None;
        };
        let [lead, ..] = rest else { return None };
        // The package's length has one to four bytes, then comes the number of its elements.
        let mut elements = rest.get(usize::from(lead >> 6) + 2..)?;
        let mut types = [0; 2];
        for kind in &mut types {
            (*kind, elements) = integer(elements)?;
        }
        Some(Self { state: digit - b'0', types })
    }
}

fn integer(code: &[u8]) -> Option<(u8, &[u8])> {
    match code {
        [value @ (ZERO | ONE), rest @ ..] | [BYTE, value, rest @ ..] => Some((*value, rest)),
        _ => None,
    }
}

/// The first byte of a name that the kernel does not look for, in place of `_`.
pub const HIDDEN: u8 = b'X';

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn packages_are_read() {
        let qemu = [b'_', b'S', b'3', b'_', 0x12, 6, 4, 1, 1, 0, 0];
        assert_eq!(Sleep::named(&qemu), Some(Sleep { state: 3, types: [1, 1] }));
        let long = [b'_', b'S', b'5', b'_', 0x12, 0x47, 0, 4, 0x0a, 7, 0x0a, 5, 0, 0];
        assert_eq!(Sleep::named(&long), Some(Sleep { state: 5, types: [7, 5] }));
        for other in [
            &b"_S3_\x08"[..],
            b"_S6_\x12\x06\x04\x00\x00",
            b"_S5_\x12",
            b"_S5_\x12\x06\x04\x0b\x00\x01",
            b"S5__",
        ] {
            assert_eq!(Sleep::named(other), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..24)) {
            let _ = Sleep::named(&bytes);
            let named = [&b"_S5_\x12"[..], &bytes].concat();
            let _ = Sleep::named(&named);
        }
    }
}
