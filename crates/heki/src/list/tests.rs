//! The decoder against a plain one, on lists that are right, wrong and hostile.

use super::*;
use proptest::prelude::*;
use std::boxed::Box;
use std::vec;
use std::vec::Vec;

/// Guest memory from address 0 on, of which the first frame is no RAM.
pub struct Guest {
    pub bytes: Vec<u8>,
    pub copies: usize,
}

impl Guest {
    pub fn new(frames: usize) -> Self {
        Self { bytes: vec![0; frames * 4096], copies: 0 }
    }

    pub fn put(&mut self, at: u64, values: &[u64]) {
        for (index, value) in values.iter().enumerate() {
            let at = usize::try_from(at).unwrap() + 8 * index;
            if let Some(place) = self.bytes.get_mut(at..at + 8) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    pub fn copy(&mut self, at: Gpa, to: &mut [u8]) -> bool {
        self.copies += 1;
        let Ok(start) = usize::try_from(at.raw()) else { return false };
        let end = start.checked_add(to.len());
        match end.and_then(|end| self.bytes.get(start..end)).filter(|_| start >= 4096) {
            Some(from) => {
                to.copy_from_slice(from);
                true
            }
            None => false,
        }
    }
}

fn buffer() -> Box<Buffer> {
    Box::new(Buffer::new())
}

/// Reads the list at `first` into entries.
fn read(guest: &mut Guest, first: u64) -> Result<Vec<Entry>, Refusal> {
    let mut buffer = buffer();
    let list = buffer.read(Gpa::new(first), |at, to| guest.copy(at, to))?;
    Ok(list.entries.to_vec())
}

const RW: u64 = READ | WRITE;

#[test]
fn two_pages_come_out_in_order_of_address() {
    let mut guest = Guest::new(4);
    guest.put(0x1000, &[7, 0x2000, 2, 0x9000, 0xa000, RW, 0x3000, 0x5000, READ | IMMUTABLE]);
    // Not aligned, and across a page.
    guest.put(0x2000, &[0, 0x2ff0, 0]);
    guest.put(0x2ff0, &[0, 0, 1, 0x5000, 0x6000, EXEC]);
    let starts: Vec<u64> = read(&mut guest, 0x1000).unwrap().iter().map(|e| e.pa).collect();
    assert_eq!(starts, [0x3000, 0x5000, 0x9000]);
    assert_eq!(read(&mut guest, 0), Ok(vec![]));
}

#[test]
fn each_mistake_has_its_error() {
    let entry = [0x3000, 0x5000, RW];
    for (values, refusal) in [
        (vec![0, 0x1000, 0], Refusal::Invalid),
        (vec![0, 0x8000_0000, 0], Refusal::Fault),
        (vec![0, 0x10, 0], Refusal::Fault),
        (vec![0, u64::MAX, 0], Refusal::Fault),
        (vec![0, 0, 170], Refusal::TooBig),
        (vec![0, 0, u64::MAX], Refusal::TooBig),
        (vec![0, 0, 1, 0x3001, 0x5000, RW], Refusal::Invalid),
        (vec![0, 0, 1, 0x3000, 0x5800, RW], Refusal::Invalid),
        (vec![0, 0, 1, 0x3000, 0x3000, RW], Refusal::Invalid),
        (vec![0, 0, 1, 0x5000, 0x3000, RW], Refusal::Invalid),
        (vec![0, 0, 1, 0x3000, 0x5000, 0], Refusal::Invalid),
        (vec![0, 0, 1, 0x3000, 0x5000, 16], Refusal::Invalid),
        ([&[0, 0, 2][..], &entry, &entry].concat(), Refusal::Invalid),
        ([&[0, 0, 2][..], &[0x4000, 0x6000, RW], &entry].concat(), Refusal::Invalid),
    ] {
        let mut guest = Guest::new(2);
        guest.put(0x1000, &values);
        assert_eq!(read(&mut guest, 0x1000), Err(refusal), "{values:x?}");
    }
}

#[test]
fn the_longest_list_is_taken_and_a_longer_one_is_not() {
    for (pages, wanted) in [(MOST_PAGES, Ok(MOST_ENTRIES)), (MOST_PAGES + 1, Err(Refusal::TooBig))]
    {
        let mut guest = Guest::new(pages + 1);
        let mut address = 0;
        for page in 1..=pages as u64 {
            let next = if page == pages as u64 { 0 } else { (page + 1) << 12 };
            guest.put(page << 12, &[0, next, ENTRIES_PER_PAGE as u64]);
            for index in 0..ENTRIES_PER_PAGE as u64 {
                guest.put((page << 12) + 24 + 24 * index, &[address, address + 4096, READ]);
                address += 4096;
            }
        }
        assert_eq!(read(&mut guest, 0x1000).map(|list| list.len()), wanted);
    }
}

#[test]
fn a_circle_of_any_length_is_found() {
    for length in 1..=MOST_PAGES as u64 {
        let mut guest = Guest::new(MOST_PAGES + 1);
        for page in 1..=length {
            guest.put(page << 12, &[0, (page % length + 1) << 12, 0]);
        }
        assert_eq!(read(&mut guest, 0x1000), Err(Refusal::Invalid), "{length}");
        assert!(guest.copies <= 2 * MOST_PAGES);
    }
}

/// What a list means, as plainly as can be.
fn model(guest: &mut Guest, mut at: u64) -> Result<Vec<Entry>, Refusal> {
    let (mut entries, mut seen) = (vec![], vec![]);
    while at != 0 {
        if seen.contains(&at) {
            return Err(Refusal::Invalid);
        }
        if seen.len() == MOST_PAGES {
            return Err(Refusal::TooBig);
        }
        seen.push(at);
        let mut word = |at: u64| {
            let mut bytes = [0; 8];
            guest.copy(Gpa::new(at), &mut bytes).then_some(u64::from_le_bytes(bytes))
        };
        let (_, next, count) = (word(at), word(at.wrapping_add(8)), word(at.wrapping_add(16)));
        let count = count.ok_or(Refusal::Fault)?;
        if word(at).is_none() {
            return Err(Refusal::Fault);
        }
        if count > 169 {
            return Err(Refusal::TooBig);
        }
        for index in 0..count {
            let at = at + 24 + 24 * index;
            let words = [word(at), word(at + 8), word(at + 16)].map(|w| w.ok_or(Refusal::Fault));
            let [pa, epa, permissions] = words;
            entries.push(Entry { pa: pa?, epa: epa?, permissions: permissions? });
        }
        at = next.ok_or(Refusal::Fault)?;
    }
    let right = |e: &Entry| {
        e.pa.is_multiple_of(4096)
            && e.epa.is_multiple_of(4096)
            && (1..16).contains(&e.permissions)
            && e.pa < e.epa
    };
    let overlap = entries.iter().enumerate().any(|(index, one)| {
        entries.iter().skip(index + 1).any(|other| one.pa < other.epa && other.pa < one.epa)
    });
    if !entries.iter().all(right) || overlap {
        return Err(Refusal::Invalid);
    }
    entries.sort_by_key(|entry| entry.pa);
    Ok(entries)
}

/// A word of a list: mostly something that matters.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0_u64..16,
        4 => (0_u64..12).prop_map(|page| page << 12),
        2 => 0_u64..0x6000,
        1 => any::<u64>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn any_memory_reads_as_the_model_says(
        words in prop::collection::vec((1_u64..6, 0_u64..12, word()), 0..60),
        first in word(),
    ) {
        let mut guest = Guest::new(6);
        for (page, index, value) in words {
            guest.put((page << 12) + 8 * index, &[value]);
        }
        let read = read(&mut guest, first);
        prop_assert!(guest.copies <= 2 * MOST_PAGES);
        prop_assert_eq!(read, model(&mut guest, first));
    }
}
