//! The setup header: the start of a bzImage, which says where the compressed kernel lies.
//!
//! Source: Linux Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".

use crate::ImageError;
use crate::bytes::{array, size_at, u16_at};
use abi::Fingerprint;
use abi::manifest::{Load, SETUP_HEADER};
use alloc::string::String;

/// Bytes in a sector of the setup code.
const SECTOR: usize = 512;
const SETUP_SECTS: usize = SETUP_HEADER;
/// What the setup header's length, counted from its magic number, is stored at.
const HEADER_LENGTH: usize = 0x201;
const MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// Since protocol 2.10; 0 in what is older.
const INIT_SIZE: usize = 0x260;
/// One past the last field that is read here.
const HEADER_END: usize = 0x250;
/// Protocol 2.08 added the payload fields.
const OLDEST_PROTOCOL: u16 = 0x0208;
/// Longest version string looked at, in bytes.
const VERSION_LIMIT: usize = 512;

/// What the setup header says.
#[derive(Debug)]
pub struct Setup<'a> {
    /// The compressed kernel, with the size that the kernel's build appends.
    pub payload: &'a [u8],
    /// What follows it: most of the stub that unpacks it, not compressed.
    pub stub: &'a [u8],
    /// `uname -r` and `uname -v`, without the builder between them; empty if not given.
    pub release: String,
    /// How a boot loader loads the file.
    pub load: Load,
}

/// Reads the setup header of a bzImage.
///
/// # Errors
/// `NotABzImage`, `OldProtocol`, `Truncated`.
pub fn parse(image: &[u8]) -> Result<Setup<'_>, ImageError> {
    if array(image, MAGIC) != Some(*b"HdrS") {
        return Err(ImageError::NotABzImage);
    }
    let truncated = |what, end: usize| ImageError::Truncated {
        what,
        end: end as u64,
        length: image.len() as u64,
    };
    let header = || truncated("the setup header", HEADER_END);
    let protocol = u16_at(image, PROTOCOL).ok_or_else(header)?;
    if protocol < OLDEST_PROTOCOL {
        let [minor, major] = protocol.to_le_bytes();
        return Err(ImageError::OldProtocol { major, minor });
    }
    // 0 means 4, for boot loaders of the last century.
    let sectors = match image.get(SETUP_SECTS).ok_or_else(header)? {
        0 => 4,
        &sectors => usize::from(sectors),
    };
    let setup_length = (sectors + 1) * SECTOR;
    let offset = size_at(image, PAYLOAD_OFFSET).ok_or_else(header)?;
    let length = size_at(image, PAYLOAD_LENGTH).ok_or_else(header)?;
    let start = setup_length.saturating_add(offset);
    let end = start.saturating_add(length);
    let payload = image.get(start..end).ok_or_else(|| truncated("the payload", end))?;
    let stub = image.get(end..).unwrap_or_default();
    let release = release(image, setup_length).unwrap_or_default();
    let load = load(image, setup_length).ok_or_else(header)?;
    Ok(Setup { payload, stub, release, load })
}

fn load(image: &[u8], setup_length: usize) -> Option<Load> {
    let header_end = MAGIC + usize::from(*image.get(HEADER_LENGTH)?);
    let mut setup_header = [0; 128];
    let header = image.get(SETUP_HEADER..header_end.max(SETUP_HEADER))?;
    for (to, from) in setup_header.iter_mut().zip(header) {
        *to = *from;
    }
    let mut fingerprint = Fingerprint::default();
    fingerprint.update(image.get(setup_length..)?);
    Some(Load {
        setup_length: u32::try_from(setup_length).ok()?,
        init_size: u32::from_le_bytes(array(image, INIT_SIZE).unwrap_or_default()),
        fingerprint: fingerprint.finish(),
        setup_header,
    })
}

/// The version string: "RELEASE (BUILDER) VERSION".
fn release(image: &[u8], setup_length: usize) -> Option<String> {
    let pointer = match u16_at(image, KERNEL_VERSION)? {
        0 => return None,
        pointer => usize::from(pointer) + 0x200,
    };
    let setup = image.get(..setup_length)?;
    let text = setup.get(pointer..)?.split(|&byte| byte == 0).next()?;
    let text = core::str::from_utf8(text.get(..VERSION_LIMIT).unwrap_or(text)).ok()?;
    let without_builder = text.split_once(" (").and_then(|(release, rest)| {
        rest.split_once(") ").map(|(_, version)| [release, version].join(" "))
    });
    Some(without_builder.unwrap_or_else(|| text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::bzimage;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn reads_payload_and_release() {
        let image = bzimage(b"payload");
        let setup = parse(&image).unwrap();
        assert_eq!(setup.payload, b"payload");
        assert_eq!(setup.release, "6.1.0-test #1 SMP Test 6.1.1-1 (2026-01-01)");
        let mut fingerprint = Fingerprint::default();
        fingerprint.update(&image[5 * 512..]);
        assert_eq!((setup.load.setup_length, setup.load.fingerprint), (2560, fingerprint.finish()));
        assert_eq!(setup.load.setup_header[..0x31], image[0x1f1..0x222]);
        assert_eq!(setup.load.setup_header[0x31..], [0; 79]);
    }

    #[test]
    fn names_what_is_wrong() {
        let image = bzimage(b"payload");
        assert_eq!(parse(b"\x7fELF").unwrap_err(), ImageError::NotABzImage);
        let mut old = image.clone();
        old[PROTOCOL] = 7;
        assert_eq!(parse(&old).unwrap_err(), ImageError::OldProtocol { major: 2, minor: 7 });
        let cut = &image[..image.len() - 1];
        let length = cut.len() as u64;
        assert_eq!(
            parse(cut).unwrap_err(),
            ImageError::Truncated { what: "the payload", end: length + 1, length }
        );
        assert!(matches!(parse(&image[..0x240]), Err(ImageError::Truncated { .. })));
    }

    #[test]
    fn a_release_out_of_bounds_is_empty() {
        let mut image = bzimage(b"payload");
        image[KERNEL_VERSION] = 0xff;
        image[KERNEL_VERSION + 1] = 0xff;
        assert_eq!(parse(&image).unwrap().release, "");
    }

    proptest! {
        #[test]
        fn any_header_is_answered(fields in prop::collection::vec(any::<u8>(), 0x60), length in 0_usize..4096) {
            let mut image = vec![0; 4096];
            image[0x1f1..0x251].copy_from_slice(&fields);
            image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
            image.truncate(length);
            if let Ok(setup) = parse(&image) {
                prop_assert!(setup.payload.len() <= length);
            }
        }
    }
}
