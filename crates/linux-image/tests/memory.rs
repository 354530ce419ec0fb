//! How much memory a hostile kernel file can make the reader take.
//!
//! One test, since the count is of the whole process.

use abi::manifest::VERSION;
use linux_image::{ImageError, inspect, manifest, unpack};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

/// A bzImage around a compressed stream that claims to hold `size` bytes.
fn bzimage(stream: &[u8], size: u32) -> Vec<u8> {
    let mut image = vec![0; 5 * 512];
    image[0x1f1] = 4;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    let length = stream.len() as u64 + 4;
    image[0x24c..0x250].copy_from_slice(&length.to_le_bytes()[..4]);
    image.extend(stream);
    image.extend(size.to_le_bytes());
    image
}

#[test]
fn memory_is_bounded() {
    // The error that reading `file` ends in, and the most memory that it took beyond the file.
    let refused = |file: &[u8]| {
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let error = manifest(file).unwrap_err();
        assert_eq!(inspect(file).unwrap_err(), error);
        (error, MEMORY.peak_usage().saturating_sub(before))
    };
    let streams: [(&str, Vec<u8>); 6] = [
        ("gzip", [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0xff; 60]].concat()),
        ("bzip2", [&b"BZh9\x31\x41\x59\x26\x53\x59"[..], &[0xff; 60]].concat()),
        // A zstd frame that asks for the largest window there is.
        ("zstd", [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff][..], &[0xff; 60]].concat()),
        ("lz4", [&[0x02, 0x21, 0x4c, 0x18, 0xff, 0xff, 0xff, 0xff][..], &[0xff; 60]].concat()),
        // An lzma dictionary of 4 GiB and an unknown length.
        ("lzma", [&[0x5d, 0, 0, 0, 0xff][..], &[0xff; 8], &[0; 60]].concat()),
        ("xz", xz_with_the_largest_dictionary()),
    ];
    for (name, stream) in streams {
        // More than any kernel holds: nothing is set aside at all.
        let (error, peak) = refused(&bzimage(&stream, u32::MAX));
        assert!(matches!(error, ImageError::Size { .. }) && peak < MIB, "{name}: {error}, {peak}");
        // As much as a kernel may hold: that, and what the decoder needs for a small stream.
        let (error, peak) = refused(&bzimage(&stream, 256 << 20));
        assert!(peak < 520 * MIB, "{name}: {error}, {} MiB", peak / MIB);
        // A small kernel with a hostile stream: the decoder alone.
        let (error, peak) = refused(&bzimage(&stream, 4096));
        assert!(peak < 260 * MIB, "{name}: {error}, {} MiB", peak / MIB);
    }

    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    for length in [0, 1, 8 << 20, (8 << 20) + 1, u32::MAX] {
        let mut packed = b"RVPACKED".to_vec();
        packed.extend(VERSION.to_le_bytes());
        packed.extend(length.to_le_bytes());
        packed.extend([0xff; 60]);
        assert!(unpack(&packed).is_err(), "{length}");
    }
    assert!(MEMORY.peak_usage() - before < 9 * MIB);
}

/// A stream header, and a block header whose LZMA2 filter has a dictionary of 4 GiB.
fn xz_with_the_largest_dictionary() -> Vec<u8> {
    let mut stream = vec![0xfd, b'7', b'z', b'X', b'Z', 0, 0, 1];
    stream.extend(crc32(&[0, 1]).to_le_bytes());
    let block = [2, 0, 0x21, 1, 40, 0, 0, 0];
    stream.extend(block);
    stream.extend(crc32(&block).to_le_bytes());
    stream.extend([1, 0xff, 0xff, 0xff]);
    stream
}

/// CRC-32 of ISO 3309, which xz uses, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |c, _| step(c)))
}
