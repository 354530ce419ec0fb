//! Records of the event channel, out of the bytes that the emulator hands over.
//!
//! The bytes come in pieces of any length, and a guest may have written some of them: a
//! [`Decoder`] takes anything, keeps at most one unfinished record, and skips what is none.

use abi::event::{
    Alias, Header, LockReport, MAGIC, MAX_PAYLOAD, Promotion, RecordKind, StatePart, Succession,
    Violation,
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Counts from 1; starts again when the machine is reset.
    pub sequence: u64,
    /// Time-stamp counter of the reporting CPU.
    pub tsc: u64,
    /// Records that are missing just before this one.
    pub missing: u64,
    /// What is reported.
    pub body: Body,
}

/// What a [`Record`] reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A line for the person who watches.
    Log(String),
    /// An attempt.
    Violation(Violation),
    /// The kernel was locked.
    Locked(LockReport),
    /// A page became code.
    Promoted(Promotion),
    /// Why the machine cannot go on.
    Fatal(String),
    /// A frame that is writable under one alias and executable under another.
    Alias(Alias),
    /// The kernel has left for another one.
    Succession(Succession),
    /// A piece of a VM's protection state.
    State(StatePart, Vec<u8>),
    /// A record of a kind or length that this program does not know.
    Unknown {
        /// Its kind.
        kind: u16,
        /// Bytes of its payload.
        length: u16,
    },
}

impl Record {
    /// The record that this header and payload make.
    pub fn new(header: &Header, payload: &[u8], missing: u64) -> Self {
        let body = body(header, payload);
        Self { sequence: header.sequence, tsc: header.time, missing, body }
    }
}

/// Finds records in a stream of bytes.
#[derive(Default)]
pub struct Decoder {
    pending: Vec<u8>,
    last: u64,
    skipped: u64,
}

/// The longest record in bytes.
const LONGEST: usize = size_of::<Header>() + MAX_PAYLOAD;

enum Step {
    Found(Header, Body),
    Garbage,
    Incomplete,
}

impl Decoder {
    /// Takes the next bytes of the stream and gives the records that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(rest) = self.pending.get(start..) {
            match step(rest) {
                Step::Found(header, body) => {
                    start += size_of::<Header>() + usize::from(header.length);
                    records.push(number(&mut self.last, header, body));
                }
                Step::Garbage => {
                    start += 1;
                    self.skipped += 1;
                }
                Step::Incomplete => break,
            }
        }
        self.pending.drain(..start);
        debug_assert!(self.pending.len() < LONGEST);
        records
    }

    /// Bytes so far that belonged to no record.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

fn number(last: &mut u64, header: Header, body: Body) -> Record {
    // The count starts again at 1 when the machine is reset; nothing is missing then.
    let missing = header.sequence.saturating_sub(last.saturating_add(1));
    *last = header.sequence;
    Record { sequence: header.sequence, tsc: header.time, missing, body }
}

fn step(rest: &[u8]) -> Step {
    let magic = MAGIC.to_le_bytes();
    let seen = rest.len().min(magic.len());
    if rest.get(..seen) != magic.get(..seen) {
        return Step::Garbage;
    }
    let Ok((header, rest)) = Header::read_from_prefix(rest) else { return Step::Incomplete };
    if usize::from(header.length) > MAX_PAYLOAD {
        return Step::Garbage;
    }
    match rest.get(..usize::from(header.length)) {
        Some(payload) => Step::Found(header, body(&header, payload)),
        None => Step::Incomplete,
    }
}

fn body(header: &Header, payload: &[u8]) -> Body {
    let text = || String::from_utf8_lossy(payload).trim_end().to_owned();
    let known = RecordKind::from_number(header.kind).and_then(|kind| match kind {
        RecordKind::Log => Some(Body::Log(text())),
        RecordKind::Fatal => Some(Body::Fatal(text())),
        RecordKind::Violation => read(payload).map(Body::Violation),
        RecordKind::Locked => read(payload).map(Body::Locked),
        RecordKind::Promoted => read(payload).map(Body::Promoted),
        RecordKind::Alias => read(payload).map(Body::Alias),
        RecordKind::Succession => read(payload).map(Body::Succession),
        RecordKind::State => StatePart::read_from_prefix(payload)
            .ok()
            .map(|(part, bytes)| Body::State(part, bytes.to_vec())),
    });
    known.unwrap_or(Body::Unknown { kind: header.kind, length: header.length })
}

fn read<T: FromBytes + KnownLayout + Immutable>(payload: &[u8]) -> Option<T> {
    T::read_from_bytes(payload).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn record(sequence: u64, kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = payload.len().try_into().unwrap();
        let header = Header { magic: MAGIC, kind, length, sequence, time: 7 };
        [header.as_bytes(), payload].concat()
    }

    fn log(sequence: u64, text: &str) -> Vec<u8> {
        record(sequence, RecordKind::Log as u16, text.as_bytes())
    }

    #[test]
    fn garbage_around_records_is_skipped() {
        let mut decoder = Decoder::default();
        let bytes = [b"noise RVE".to_vec(), log(1, "one\n"), b"RVEV".to_vec(), log(2, "two")];
        let records = decoder.push(&bytes.concat());
        // The bare magic number swallows the start of the second record, so that one is lost.
        assert_eq!(records[0].body, Body::Log("one".into()));
        let records = decoder.push(&[log(3, "three"), log(4, "four")].concat());
        let last = records.last().unwrap();
        assert_eq!((last.sequence, &last.body), (4, &Body::Log("four".into())));
        assert!(decoder.skipped() >= 9);
    }

    #[test]
    fn a_header_with_an_absurd_length_is_skipped() {
        let mut bad = log(1, "x");
        bad[6..8].copy_from_slice(&u16::MAX.to_le_bytes());
        let mut decoder = Decoder::default();
        let records = decoder.push(&[bad, log(2, "y")].concat());
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].missing, 1);
    }

    #[test]
    fn a_payload_of_the_wrong_size_is_unknown() {
        let mut decoder = Decoder::default();
        let records = decoder.push(&record(1, RecordKind::Violation as u16, &[0; 9]));
        assert_eq!(records[0].body, Body::Unknown { kind: 2, length: 9 });
        assert_eq!(
            decoder.push(&record(2, 99, &[]))[0].body,
            Body::Unknown { kind: 99, length: 0 }
        );
    }

    #[test]
    fn a_truncated_record_waits_for_its_end() {
        let mut decoder = Decoder::default();
        let bytes = log(1, "hello");
        let (head, tail) = bytes.split_at(bytes.len() - 1);
        assert_eq!(decoder.push(head), []);
        assert_eq!(decoder.push(tail).len(), 1);
    }

    #[test]
    fn a_reset_starts_the_count_again() {
        let mut decoder = Decoder::default();
        let records = decoder.push(&[log(1, "a"), log(2, "b"), log(1, "a"), log(4, "d")].concat());
        let missing: Vec<u64> = records.iter().map(|record| record.missing).collect();
        assert_eq!(missing, [0, 0, 0, 2]);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(
            texts in proptest::collection::vec("[a-z]{0,40}", 0..8),
            cuts in proptest::collection::vec(1usize..30, 0..40),
        ) {
            let bytes: Vec<u8> =
                (1..).zip(&texts).flat_map(|(sequence, text)| log(sequence, text)).collect();
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            let mut rest = bytes.as_slice();
            for cut in cuts.into_iter().chain([usize::MAX]) {
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                found.extend(decoder.push(piece));
                rest = after;
            }
            let found: Vec<Body> = found.into_iter().map(|record| record.body).collect();
            prop_assert_eq!(found, texts.into_iter().map(Body::Log).collect::<Vec<_>>());
            prop_assert_eq!(decoder.skipped(), 0);
        }

        #[test]
        fn any_bytes_are_survived(pieces in proptest::collection::vec(any::<Vec<u8>>(), 0..8)) {
            let mut decoder = Decoder::default();
            for piece in pieces {
                decoder.push(&piece);
            }
        }
    }
}
