//! What an initial file system from a kernel that may be hostile must not hold.
//!
//! A kernel takes two things from it before any user code runs, and so before it is locked, which
//! could take the lock's place: ACPI tables in place of the firmware's, whose language can write to
//! memory (`acpi_table_upgrade`, Linux drivers/acpi/tables.c), and further words for its command line
//! (Documentation/admin-guide/bootconfig.rst). Either is found by a text that stands in the bytes as
//! they are, compressed or not, so its absence shows that neither is there.

/// The path of the tables, and the end of a boot configuration. The first byte of each is nowhere else
/// in it, which makes the search below exact.
const TEXTS: [&[u8]; 2] = [b"kernel/firmware/acpi/", b"#BOOTCONFIG\n"];

/// A search for them in bytes that come in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Search {
    /// How much of each text the latest bytes are.
    matched: [usize; TEXTS.len()],
    found: bool,
}

impl Search {
    /// Looks at the next bytes.
    pub fn update(&mut self, piece: &[u8]) {
        for byte in piece {
            for (matched, text) in self.matched.iter_mut().zip(TEXTS) {
                *matched = if text.get(*matched) == Some(byte) {
                    *matched + 1
                } else {
                    usize::from(text.first() == Some(byte))
                };
                self.found |= *matched == text.len();
            }
        }
    }

    /// Whether one of them was there.
    pub const fn found(&self) -> bool {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    #[test]
    fn a_first_byte_is_nowhere_else() {
        for text in TEXTS {
            assert_eq!(text.iter().filter(|byte| **byte == text[0]).count(), 1);
        }
    }

    /// Pieces of the texts, and other bytes.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let part = (0..TEXTS.len(), 0_usize..22, 0_usize..22).prop_map(|(which, from, count)| {
            TEXTS[which].iter().copied().skip(from).take(count).collect()
        });
        let whole = (0..TEXTS.len()).prop_map(|which| TEXTS[which].to_vec());
        let other = prop::collection::vec(any::<u8>(), 0..3);
        prop::collection::vec(prop_oneof![6 => part, 1 => whole, 2 => other], 0..20)
            .prop_map(|parts: Vec<Vec<u8>>| parts.concat())
    }

    proptest! {
        #[test]
        fn the_search_finds_what_a_plain_one_finds(
            bytes in bytes(), cuts in prop::collection::vec(1_usize..9, 0..40),
        ) {
            let expected = TEXTS
                .iter()
                .any(|text| bytes.windows(text.len()).any(|window| window == *text));
            let mut search = Search::default();
            let mut rest = bytes.as_slice();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                search.update(piece);
                rest = after;
            }
            prop_assert_eq!(search.found(), expected);
        }
    }
}
