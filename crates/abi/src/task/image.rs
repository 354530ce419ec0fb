//! The file that a task is loaded from: a header, segments, and their bytes. `ravelin` makes it
//! of a static ELF program before boot, so that the hypervisor parses no ELF.
//!
//! [`Image::parse`] checks everything: what it gives can be mapped as it stands.

use super::{INFO, STACK_BYTES, STACK_TOP, START};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes.
pub const MAGIC: [u8; 8] = *b"RVTASK\0\0";
/// Version of this layout.
pub const VERSION: u32 = 1;
/// Most segments.
pub const MOST_SEGMENTS: usize = 8;
/// Most bytes of an image, and of all its segments in memory: 8 MiB.
pub const MOST_BYTES: u64 = 8 << 20;
/// Bytes of a name.
pub const NAME_BYTES: usize = 16;
const PAGE: u64 = 4096;

/// Begins an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// Segments in use, 1 to [`MOST_SEGMENTS`].
    pub count: u32,
    /// First instruction, in an executable segment.
    pub entry: u64,
    /// Name in reports: ASCII letters, digits and `-`, zero-padded.
    pub name: [u8; NAME_BYTES],
    /// The segments, in the order of their addresses.
    pub segments: [Segment; MOST_SEGMENTS],
    /// [`crate::digest`] of the whole image with this field 0.
    pub digest: u64,
}

/// Pages with the same rights.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Segment {
    /// Address of the first byte, a multiple of 4096.
    pub address: u64,
    /// Bytes in memory, a multiple of 4096; those behind the file's are zero.
    pub size: u64,
    /// Where the bytes begin in the image.
    pub offset: u64,
    /// Bytes in the image, at most `size`.
    pub length: u64,
    /// 0: read. 1: read and write. 2: read and execute. Nothing else.
    pub rights: u64,
}

/// Rights of a [`Segment`].
pub mod segment {
    /// Read.
    pub const READ: u64 = 0;
    /// Read and write.
    pub const READ_WRITE: u64 = 1;
    /// Read and execute.
    pub const READ_EXECUTE: u64 = 2;
}

/// Why bytes are no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Too short, too long, or without its magic number.
    #[error("it is no task image")]
    NotAnImage,
    /// Another version of the layout.
    #[error("it is of version {0}, not {VERSION}: make it anew")]
    Version(u32),
    /// The digest does not match.
    #[error("it is damaged: its digest does not match")]
    Damaged,
    /// A segment, the entry or the name is not as it must be.
    #[error("segment, entry or name number {0} is not as it must be")]
    Malformed(u32),
}

/// An image whose every field was checked.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    header: &'a Header,
    bytes: &'a [u8],
}

impl<'a> Image<'a> {
    /// Checks `bytes`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ImageError> {
        let (header, _) = Header::ref_from_prefix(bytes).map_err(|_| ImageError::NotAnImage)?;
        if header.magic != MAGIC || bytes.len() as u64 > MOST_BYTES {
            return Err(ImageError::NotAnImage);
        }
        if header.version != VERSION {
            return Err(ImageError::Version(header.version));
        }
        if header.digest != digest(bytes) {
            return Err(ImageError::Damaged);
        }
        let image = Self { header, bytes };
        image.check()?;
        Ok(image)
    }

    fn check(&self) -> Result<(), ImageError> {
        if !(1..=MOST_SEGMENTS).contains(&(self.header.count as usize)) {
            return Err(ImageError::Malformed(u32::MAX));
        }
        let (mut from, mut total, mut entered) = (START, 0_u64, false);
        for (number, segment) in (0..).zip(self.segments()) {
            let end = segment.address.checked_add(segment.size);
            let inside = |end: &u64| {
                segment.address >= from && *end <= STACK_TOP - STACK_BYTES - PAGE && *end < INFO
            };
            let end = end.filter(inside).ok_or(ImageError::Malformed(number))?;
            total = total.saturating_add(segment.size);
            let last = segment.offset.checked_add(segment.length);
            let fits = segment.address.is_multiple_of(PAGE)
                && segment.size.is_multiple_of(PAGE)
                && segment.size > 0
                && total <= MOST_BYTES
                && segment.length <= segment.size
                && segment.rights <= segment::READ_EXECUTE
                && last.is_some_and(|last| last <= self.bytes.len() as u64);
            if !fits {
                return Err(ImageError::Malformed(number));
            }
            let holds = (segment.address..end).contains(&self.header.entry);
            entered |= holds && segment.rights == segment::READ_EXECUTE;
            from = end;
        }
        let named = self.name().is_some_and(|name| !name.is_empty());
        if entered && named { Ok(()) } else { Err(ImageError::Malformed(self.header.count)) }
    }

    /// The segments, in the order of their addresses.
    pub fn segments(&self) -> impl Iterator<Item = &'a Segment> + use<'a> {
        self.header.segments.iter().take(self.header.count as usize)
    }

    /// The bytes of a segment that are in the image.
    pub fn bytes_of(&self, segment: &Segment) -> &'a [u8] {
        let start = usize::try_from(segment.offset).unwrap_or(usize::MAX);
        let length = usize::try_from(segment.length).unwrap_or(usize::MAX);
        let end = start.saturating_add(length);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// Address of the first instruction.
    pub fn entry(&self) -> u64 {
        self.header.entry
    }

    /// The name as the image has it, zero-padded.
    pub fn name_field(&self) -> [u8; NAME_BYTES] {
        self.header.name
    }

    /// Name in reports.
    pub fn name(&self) -> Option<&'a str> {
        name(&self.header.name)
    }
}

/// The name in a name field: none if it holds more than ASCII letters, digits, `-` and padding.
pub fn name(field: &[u8; NAME_BYTES]) -> Option<&str> {
    let length = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let (name, rest) = field.split_at_checked(length)?;
    let plain = name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    let padded = rest.iter().all(|byte| *byte == 0);
    (plain && padded).then(|| core::str::from_utf8(name).ok()).flatten()
}

/// The digest of an image, whatever its digest field says. 0 for what is shorter than a header.
pub fn digest(bytes: &[u8]) -> u64 {
    let at = core::mem::offset_of!(Header, digest);
    let mut digest = crate::Digest::default();
    let (Some(before), Some(after)) = (bytes.get(..at), bytes.get(at + 8..)) else { return 0 };
    for piece in [before, &[0; 8], after] {
        digest.update(piece);
    }
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn image(count: u32, entry: u64, segments: [Segment; MOST_SEGMENTS]) -> Vec<u8> {
        let mut name = [0; 16];
        name[..4].copy_from_slice(b"test");
        let header =
            Header { magic: MAGIC, version: VERSION, count, entry, name, segments, digest: 0 };
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0x90; 64]);
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let digest = digest(bytes).to_le_bytes();
        let at = core::mem::offset_of!(Header, digest);
        bytes[at..at + 8].copy_from_slice(&digest);
    }

    fn good() -> [Segment; MOST_SEGMENTS] {
        let mut segments = [Segment::default(); MOST_SEGMENTS];
        let offset = size_of::<Header>() as u64;
        segments[0] = Segment {
            address: START,
            size: PAGE,
            offset,
            length: 64,
            rights: segment::READ_EXECUTE,
        };
        segments[1] = Segment {
            address: START + PAGE,
            size: 2 * PAGE,
            offset,
            length: 0,
            rights: segment::READ_WRITE,
        };
        segments
    }

    #[test]
    fn a_good_image_reads_back() {
        let bytes = image(2, START + 8, good());
        let image = Image::parse(&bytes).unwrap();
        assert_eq!(image.name(), Some("test"));
        assert_eq!(image.segments().copied().collect::<Vec<_>>(), good()[..2]);
        assert_eq!(image.bytes_of(&good()[0]), [0x90; 64]);
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let refused = |change: &dyn Fn(&mut [Segment; MOST_SEGMENTS]), entry| {
            let mut segments = good();
            change(&mut segments);
            assert!(Image::parse(&image(2, entry, segments)).is_err());
        };
        refused(&|_| {}, START + PAGE);
        refused(&|_| {}, START - 1);
        refused(&|segments| segments[0].rights = 3, START);
        refused(&|segments| segments[0].address -= PAGE, START);
        refused(&|segments| segments[1].address = START, START);
        refused(&|segments| segments[1].size = MOST_BYTES + PAGE, START);
        refused(&|segments| segments[1].address = INFO, START);
        refused(&|segments| segments[1].address = STACK_TOP - STACK_BYTES - 2 * PAGE, START);
        refused(&|segments| segments[1].address = !(PAGE - 1), START);
        refused(&|segments| segments[0].length = PAGE, START);
        refused(&|segments| segments[1].address += 8, START);
        assert!(Image::parse(&image(0, START, good())).is_err());
        assert!(Image::parse(&image(9, START, good())).is_err());
    }

    proptest! {
        #[test]
        fn any_damage_is_noticed(at in 0_usize..400, bit in 0_u32..8) {
            let mut bytes = image(2, START, good());
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Image::parse(&bytes).is_err());
        }

        #[test]
        fn no_numbers_bring_it_down(words in prop::collection::vec(any::<u64>(), 50), length in 0_usize..500) {
            let mut bytes = image(2, START, good());
            for (at, word) in words.iter().enumerate().filter(|(_, word)| *word % 3 == 0) {
                let at = 16 + at * 8;
                if let Some(place) = bytes.get_mut(at..at + 8) {
                    place.copy_from_slice(&(word / 3).to_le_bytes());
                }
            }
            bytes.truncate(length);
            if bytes.len() >= size_of::<Header>() {
                seal(&mut bytes);
            }
            if let Ok(image) = Image::parse(&bytes) {
                for segment in image.segments() {
                    prop_assert_eq!(image.bytes_of(segment).len() as u64, segment.length);
                }
            }
        }
    }
}
