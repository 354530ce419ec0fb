//! Writer and reader, interleaved: a reader that stops at every word that it loads, while the
//! writer's stores are made one by one.

use crate::layout::{LATEST_AT, SLOT_WORDS, SLOTS, WORDS, slot};
use crate::writer::write_record;
use crate::{OpenError, Published, Reader, Region, Words};
use abi::event::{Header, MAGIC, MAX_PAYLOAD, RecordKind, ViolationKind};
use abi::hypercall::{Counter, SupervisorMode};
use abi::policy::Policy;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use proptest::prelude::*;
use std::collections::VecDeque;
use std::format;
use std::string::String;
use std::vec::Vec;

/// The record with this number; no two are likely to have a word of payload in common.
fn record(sequence: u64, length: u16) -> (Header, Vec<u8>) {
    let kind = RecordKind::Log as u16;
    let header = Header { magic: MAGIC, kind, length, sequence, time: sequence * 3 };
    let bytes = abi::digest(&sequence.to_le_bytes()).to_le_bytes();
    (header, bytes.into_iter().cycle().take(length.into()).collect())
}

fn stores(sequence: u64, length: u16) -> Vec<(usize, u64)> {
    let (header, payload) = record(sequence, length);
    let mut stores = Vec::new();
    write_record(&header, &payload, &mut |index, value| stores.push((index, value)));
    stores
}

/// Memory in which some of the writer's stores are still to come: before each word that is loaded,
/// as many of them are made as the schedule says.
struct Shared<'a> {
    words: RefCell<Vec<u64>>,
    pending: RefCell<VecDeque<(usize, u64)>>,
    loads: Cell<usize>,
    schedule: &'a dyn Fn(usize) -> usize,
}

/// The words of a region to which these stores were made.
fn region_after(stores: impl IntoIterator<Item = (usize, u64)>) -> Vec<u64> {
    let region = Region::new();
    region.open(SupervisorMode::Views, &Policy::default().to_record(), "1.2.3");
    let mut words: Vec<u64> = (0..WORDS).map(|index| region.get(index)).collect();
    for (index, value) in stores {
        words[index] = value;
    }
    words
}

impl<'a> Shared<'a> {
    fn new(
        words: Vec<u64>,
        pending: impl IntoIterator<Item = (usize, u64)>,
        schedule: &'a dyn Fn(usize) -> usize,
    ) -> Self {
        let pending = RefCell::new(pending.into_iter().collect());
        Self { words: RefCell::new(words), pending, loads: Cell::new(0), schedule }
    }

    fn advance(&self, count: usize) {
        let mut pending = self.pending.borrow_mut();
        let count = count.min(pending.len());
        for (index, value) in pending.drain(..count) {
            self.words.borrow_mut()[index] = value;
        }
    }
}

impl Words for &Shared<'_> {
    type Error = Infallible;
    fn load(&self, first: usize, words: &mut [u64]) -> Result<(), Infallible> {
        for (index, word) in words.iter_mut().enumerate() {
            let load = self.loads.replace(self.loads.get() + 1);
            self.advance((self.schedule)(load));
            *word = self.words.borrow()[first + index];
        }
        Ok(())
    }
}

/// Reads the records from `next` to `last` until all are accounted for; fails on one that nobody
/// wrote. Gives how many were read.
fn drain(
    shared: &Shared<'_>,
    next: u64,
    last: u64,
    length: impl Fn(u64) -> u16,
) -> Result<u64, String> {
    let mut reader = Reader { memory: shared, next, missing: 0 };
    let (mut accounted, mut read) = (next - 1, 0);
    // Once the schedule is used up nothing is pending, so this ends.
    for _ in 0..10_000 {
        let Ok(next) = reader.next_record();
        match next {
            Some(published) => {
                accounted += published.missing + 1;
                read += 1;
                check(&published, accounted, &length)?;
            }
            None if accounted == last => return Ok(read),
            None => shared.advance(1),
        }
    }
    Err(format!("{accounted} of {last} accounted for"))
}

fn check(published: &Published, sequence: u64, length: impl Fn(u64) -> u16) -> Result<(), String> {
    let (header, payload) = record(sequence, length(sequence));
    let same = published.header.sequence == sequence
        && published.header.time == header.time
        && published.header.length == header.length
        && published.payload() == payload;
    if same { Ok(()) } else { Err(format!("record {sequence} is {published:?}")) }
}

const ROUND: u64 = SLOTS as u64;

/// Every way to make the stores of more records in three pieces while the record `next` is read, out
/// of a region in which the next record takes the place of the first. Gives how often one was lost.
fn every_interleaving(pending: &[(usize, u64)], next: u64, last: u64) -> Result<u64, String> {
    const LENGTH: u16 = 20;
    // The loads for a record: latest, slot, stamp.
    const LOADS: usize = 1 + SLOT_WORDS + 1;
    let before = region_after((1..=ROUND).flat_map(|sequence| stores(sequence, LENGTH)));
    let mut lost = 0;
    for pause in 0..=pending.len() {
        for begin in 0..LOADS {
            for end in [begin, begin + 1, LOADS - 1, LOADS] {
                let schedule = |load: usize| match load {
                    _ if load == begin => pause,
                    _ if load >= end => usize::MAX,
                    _ => 0,
                };
                let shared = Shared::new(before.clone(), pending.iter().copied(), &schedule);
                lost += last + 1 - next - drain(&shared, next, last, |_| LENGTH)?;
            }
        }
    }
    Ok(lost)
}

#[test]
fn no_interleaving_tears_a_record() {
    let last = ROUND + 2;
    let pending: Vec<_> = [last - 1, last].into_iter().flat_map(|n| stores(n, 20)).collect();
    assert!(every_interleaving(&pending, 1, last).unwrap() > 0);
    // Nothing takes the place of a record that is new.
    assert_eq!(every_interleaving(&pending, ROUND + 1, last), Ok(0));
}

/// The test above finds a writer that does not mark the slot first, and one that says that a record
/// is there before it is.
#[test]
fn a_wrong_order_is_found() {
    let last = ROUND + 1;
    let right = stores(last, 20);
    let [mark, record @ .., stamp, latest] = right.as_slice() else { panic!("{right:?}") };
    let unmarked = [record, &[*stamp, *latest]].concat();
    assert!(every_interleaving(&unmarked, 1, last).is_err());
    let early = [&[*mark, *stamp, *latest], record].concat();
    assert!(every_interleaving(&early, last, last).is_err());
}

proptest! {
    #[test]
    fn every_record_is_read_whole_or_counted_as_lost(
        lengths in prop::collection::vec(0_u16..=256, 8),
        before in 0_u64..600,
        more in 0_u64..40,
        steps in prop::collection::vec(prop_oneof![8 => Just(0_usize), 3 => 1_usize..4, 1 => 30_usize..400], 1..400),
    ) {
        let length = |sequence: u64| lengths[(sequence % 8) as usize];
        let written = |from, to| (from..=to).flat_map(|n| stores(n, length(n))).collect::<Vec<_>>();
        let schedule = |load: usize| steps[load % steps.len()];
        let words = region_after(written(1, before));
        let shared = Shared::new(words, written(before + 1, before + more), &schedule);
        let read = drain(&shared, 1, before + more, length).map_err(TestCaseError::fail)?;
        prop_assert!(read <= before + more);
    }
}

/// As a program in a guest reads the region.
impl Words for &Region {
    type Error = Infallible;
    fn load(&self, first: usize, words: &mut [u64]) -> Result<(), Infallible> {
        for (index, word) in words.iter_mut().enumerate() {
            *word = self.get(first + index);
        }
        Ok(())
    }
}

#[test]
fn threads_agree() {
    const RECORDS: u64 = 200_000;
    let region = Region::new();
    region.open(SupervisorMode::Off, &Policy::default().to_record(), "");
    let length = |sequence: u64| u16::try_from(sequence % 200).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for sequence in 1..=RECORDS {
                let (header, payload) = record(sequence, length(sequence));
                region.record(&header, &payload);
            }
        });
        let mut reader = Reader::open(&region).unwrap();
        let mut accounted = 0;
        while accounted < RECORDS {
            let Ok(next) = reader.next_record();
            match next {
                Some(published) => {
                    accounted += published.missing + 1;
                    check(&published, accounted, length).unwrap();
                }
                None => std::thread::yield_now(),
            }
        }
    });
}

#[test]
fn a_slow_reader_is_told_what_it_lost() {
    let region = Region::new();
    region.open(SupervisorMode::Off, &Policy::default().to_record(), "");
    let mut reader = Reader::open(&region).unwrap();
    let Ok(none) = reader.next_record();
    assert!(none.is_none());
    for sequence in 1..=ROUND + 44 {
        let (header, payload) = record(sequence, 9);
        region.record(&header, &payload);
    }
    let Ok(first) = reader.next_record();
    let first = first.unwrap();
    assert_eq!((first.missing, first.header.sequence), (44, 45));
    let Ok(second) = reader.next_record();
    assert_eq!(second.unwrap().missing, 0);
}

#[test]
fn what_is_no_region_is_refused() {
    let region = Region::new();
    assert_eq!(Reader::open(&region).err(), Some(OpenError::NoRegion));
    let schedule = |_| 0;
    let shared = Shared::new(region_after([]), [], &schedule);
    shared.words.borrow_mut()[crate::layout::VERSION_AT] = 7;
    assert_eq!(Reader::open(&shared).err(), Some(OpenError::Version(7)));
}

#[test]
fn a_snapshot_says_what_was_written() {
    let region = Region::new();
    let policy = Policy { announce: true, ..Policy::default() };
    region.open(SupervisorMode::Mbec, &policy.to_record(), "12.34.56-alpha.1");
    region.set_stage(2);
    for cpu in [0, 3, abi::MAX_CPUS - 1] {
        region.count(cpu, Counter::Msr);
    }
    region.count(3, Counter::ALL[Counter::ALL.len() - 1]);
    region.count_violation(ViolationKind::Undecodable);
    let (header, payload) = record(1, 40);
    region.record(&header, &payload);
    let reader = Reader::open(&region).unwrap();
    let Ok(snapshot) = reader.snapshot();
    assert_eq!(snapshot.latest(), 1);
    assert_eq!(snapshot.stage(), 2);
    assert_eq!(snapshot.mode(), Some(SupervisorMode::Mbec));
    assert_eq!(snapshot.release(), Some("12.34.56-alpha.1"));
    assert_eq!(snapshot.policy(), Some(policy));
    for kind in ViolationKind::ALL {
        assert_eq!(snapshot.violations(kind), u64::from(kind == ViolationKind::Undecodable));
    }
    for counter in Counter::ALL {
        let expected = match counter {
            Counter::Msr => 3,
            _ if Some(&counter) == Counter::ALL.last() => 1,
            _ => 0,
        };
        assert_eq!(snapshot.total(counter), expected);
        assert_eq!(region.total(counter), expected);
    }
}

#[test]
fn an_overlong_payload_stays_in_its_slot() {
    let (header, _) = record(ROUND - 1, 0);
    let mut stores = Vec::new();
    write_record(&header, &[7; 2 * MAX_PAYLOAD], &mut |index, _| stores.push(index));
    let last = slot(ROUND - 1) + SLOT_WORDS;
    assert_eq!(last, WORDS);
    assert!(
        stores.iter().all(|index| *index == LATEST_AT || (slot(ROUND - 1)..last).contains(index))
    );
}
