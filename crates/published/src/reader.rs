//! The reader's side: records in order, and what was lost.

use crate::layout::{
    HEADER_WORDS, LATEST_AT, MAGIC, MAGIC_AT, PAYLOAD_WORDS, SLOT_WORDS, SLOTS, VERSION,
    VERSION_AT, slot,
};
use abi::event::{Header, MAX_PAYLOAD};
use zerocopy::{FromBytes, IntoBytes};

/// A way to read the region.
pub trait Words {
    /// Why it could not be read.
    type Error;

    /// Fills `words` from word `first` on: in ascending order, each word in one access.
    ///
    /// # Errors
    /// They cannot be read.
    fn load(&self, first: usize, words: &mut [u64]) -> Result<(), Self::Error>;
}

/// Why there is nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError<E> {
    /// The words cannot be read.
    #[error(transparent)]
    Unreadable(E),
    /// It does not begin with [`MAGIC`].
    #[error("there is no published region at this address")]
    NoRegion,
    /// It has another layout.
    #[error(
        "the published region has layout version {0}, and this program knows version {VERSION}"
    )]
    Version(u64),
}

/// A record that was read whole.
#[derive(Clone, Debug)]
pub struct Published {
    /// Records just before this one that were overwritten before they were read.
    pub missing: u64,
    /// As on the event channel.
    pub header: Header,
    payload: [u64; PAYLOAD_WORDS],
}

impl Published {
    /// The record's payload.
    pub fn payload(&self) -> &[u8] {
        let length = usize::from(self.header.length).min(MAX_PAYLOAD);
        self.payload.as_bytes().get(..length).unwrap_or_default()
    }
}

/// Reads records one after the other.
#[derive(Clone, Debug)]
pub struct Reader<M> {
    pub(crate) memory: M,
    pub(crate) next: u64,
    pub(crate) missing: u64,
}

impl<M: Words> Reader<M> {
    /// A reader that starts with the oldest record there is.
    ///
    /// # Errors
    /// There is no region, or one that this reader does not understand.
    pub fn open(memory: M) -> Result<Self, OpenError<M::Error>> {
        let mut words = [0; VERSION_AT + 1];
        memory.load(0, &mut words).map_err(OpenError::Unreadable)?;
        if words[MAGIC_AT] != MAGIC {
            return Err(OpenError::NoRegion);
        }
        match words[VERSION_AT] {
            VERSION => Ok(Self { memory, next: 1, missing: 0 }),
            other => Err(OpenError::Version(other)),
        }
    }

    /// What is read from.
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// The next record; `None` if there is none yet. Where the writer is faster than this reader for
    /// a whole round, the answer is `None` as well, and what was lost is told with the next record.
    ///
    /// # Errors
    /// The region cannot be read any more.
    pub fn next_record(&mut self) -> Result<Option<Published>, M::Error> {
        for _ in 0..SLOTS {
            let mut latest = [0];
            self.memory.load(LATEST_AT, &mut latest)?;
            let [latest] = latest;
            if latest < self.next {
                return Ok(None);
            }
            let oldest = (latest + 1).saturating_sub(SLOTS as u64);
            self.skip(oldest.saturating_sub(self.next));
            let sequence = self.next;
            let found = self.read(sequence)?;
            // Either way this record is done with: it was read, or a newer one is in its place.
            self.next += 1;
            match found {
                Some((header, payload)) => {
                    let missing = core::mem::take(&mut self.missing);
                    return Ok(Some(Published { missing, header, payload }));
                }
                None => self.missing += 1,
            }
        }
        Ok(None)
    }

    fn skip(&mut self, count: u64) {
        self.next += count;
        self.missing += count;
    }

    /// The record with this number, unless it is overwritten meanwhile.
    fn read(&self, sequence: u64) -> Result<Option<(Header, [u64; PAYLOAD_WORDS])>, M::Error> {
        let mut words = [0; SLOT_WORDS];
        let mut stamp = [0];
        self.memory.load(slot(sequence), &mut words)?;
        self.memory.load(slot(sequence), &mut stamp)?;
        let [before, record @ ..] = &words;
        if *before != sequence || stamp != [sequence] {
            return Ok(None);
        }
        let (header, payload) = record.split_at(HEADER_WORDS);
        let header = Header::read_from_bytes(header.as_bytes()).ok();
        let payload = payload.try_into().ok();
        // Cannot fail: the sizes are those of the layout.
        Ok(header.zip(payload))
    }
}
