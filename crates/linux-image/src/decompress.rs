//! Decompression of the payload.
//!
//! The kernel's build appends the uncompressed size to the payload (gzip has it in its own
//! trailer), so output is allocated once, at most [`LIMIT`] bytes, and must be filled exactly.

use crate::ImageError;
use crate::bytes::{array, size_at};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use lzma_rust2::{LzmaReader, Read, XzReader};
use ruzstd::decoding::FrameDecoder;

/// Largest kernel, in bytes; Debian's is 63 MiB.
const LIMIT: usize = 256 << 20;
/// Largest zstd window, in bytes: that of `zstd --ultra -22`.
const WINDOW_LIMIT: u64 = 128 << 20;
/// Most memory that an xz or lzma decoder may take, in KiB.
const LZMA_LIMIT_KIB: u32 = 256 << 10;
/// Bytes that one block of an lz4 legacy frame decodes to at most.
const LZ4_BLOCK: usize = 8 << 20;

/// Compression methods of the Linux build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_XZ`.
    Xz,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
    /// `CONFIG_KERNEL_LZ4`: the legacy frame.
    Lz4,
    /// `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// `CONFIG_KERNEL_LZO`; not supported.
    Lzo,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lzo => "lzo",
        })
    }
}

const MAGICS: [(&[u8], Compression); 7] = [
    (&[0x1f, 0x8b], Compression::Gzip),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
    (&[0x02, 0x21, 0x4c, 0x18], Compression::Lz4),
    (&[0x5d, 0, 0], Compression::Lzma),
    (b"BZh", Compression::Bzip2),
    (&[0x89, b'L', b'Z', b'O'], Compression::Lzo),
];

/// The method that made `payload`, by its first bytes.
///
/// # Errors
/// `UnknownCompression`.
pub fn method(payload: &[u8]) -> Result<Compression, ImageError> {
    MAGICS
        .iter()
        .find(|(magic, _)| payload.starts_with(magic))
        .map(|&(_, method)| method)
        .ok_or_else(|| ImageError::UnknownCompression(array(payload, 0).unwrap_or_default()))
}

/// Decompresses a whole payload.
///
/// # Errors
/// `UnknownCompression`, `UnsupportedCompression`, `Size`, `Decompression`.
pub fn decompress(payload: &[u8]) -> Result<Vec<u8>, ImageError> {
    let method = method(payload)?;
    let failed = |reason| ImageError::Decompression { method, reason };
    let (stream, size) = payload
        .split_last_chunk::<4>()
        .ok_or_else(|| failed("there is no size at its end".into()))?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || size > LIMIT {
        return Err(ImageError::Size { size: size as u64, limit: LIMIT as u64 });
    }
    // Zeroed by the system page by page as it is filled: a wrong size costs nothing.
    let mut output = vec![0; size];
    let decoded = match method {
        Compression::Gzip => gzip(stream, &mut output),
        Compression::Xz => {
            fill(XzReader::new_mem_limit(stream, false, LZMA_LIMIT_KIB), &mut output)
        }
        Compression::Lzma => LzmaReader::new_mem_limit(stream, LZMA_LIMIT_KIB, None)
            .map_err(|error| format!("{error:?}"))
            .and_then(|reader| fill(reader, &mut output)),
        Compression::Zstd => zstd(stream, &mut output),
        Compression::Lz4 => lz4(stream, &mut output),
        Compression::Bzip2 => bzip2(stream, &mut output),
        Compression::Lzo => return Err(ImageError::UnsupportedCompression(method)),
    };
    match decoded {
        Ok(length) if length == size => Ok(output),
        Ok(length) => Err(failed(format!("it holds {length} bytes instead of {size}"))),
        Err(reason) => Err(failed(reason)),
    }
}

/// Reads all of `reader` into `output`; anything left over is an error. Reading to the end makes
/// the decoder check its own checksum.
fn fill(mut reader: impl Read, output: &mut [u8]) -> Result<usize, String> {
    let text = |error| format!("{error:?}");
    reader.read_exact(output).map_err(text)?;
    match reader.read(&mut [0]).map_err(text)? {
        0 => Ok(output.len()),
        _ => Err("it is longer than the size at its end says".into()),
    }
}

/// RFC 1952: ten bytes of header, optional fields, deflate.
fn gzip(stream: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let body = gzip_body(stream).ok_or("its header is cut off")?;
    miniz_oxide::inflate::decompress_slice_iter_to_slice(
        output,
        core::iter::once(body),
        false,
        true,
    )
    .map_err(|status| format!("{status:?}"))
}

fn gzip_body(stream: &[u8]) -> Option<&[u8]> {
    let flags = *stream.get(3)?;
    let mut rest = stream.get(10..)?;
    if flags & 4 != 0 {
        let length = u16::from_le_bytes(array(rest, 0)?);
        rest = rest.get(2 + usize::from(length)..)?;
    }
    // The original name, then a comment, each up to a NUL.
    for flag in [8, 16] {
        if flags & flag != 0 {
            let nul = rest.iter().position(|&byte| byte == 0)?;
            rest = rest.get(nul + 1..)?;
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

fn bzip2(stream: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let mut decoder = bzip2::Decompress::new(false);
    loop {
        let [read, written] = [decoder.total_in(), decoder.total_out()].map(index);
        let rest = stream.get(read..).unwrap_or_default();
        let space = output.get_mut(written..).unwrap_or_default();
        let status = decoder.decompress(rest, space).map_err(|error| format!("{error}"))?;
        let now = [decoder.total_in(), decoder.total_out()].map(index);
        match status {
            bzip2::Status::StreamEnd => return Ok(now[1]),
            _ if now == [read, written] => {
                return Err("it is cut off, or longer than the size at its end says".into());
            }
            _ => {}
        }
    }
}

/// A position in a slice; past every slice if it cannot be one.
fn index(position: u64) -> usize {
    usize::try_from(position).unwrap_or(usize::MAX)
}

fn zstd(stream: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(WINDOW_LIMIT);
    decoder.decode_all(stream, output).map_err(|error| format!("{error}"))
}

/// The legacy frame: a magic number, then blocks, each after its compressed length.
fn lz4(stream: &[u8], output: &mut [u8]) -> Result<usize, String> {
    let mut rest = stream.get(4..).unwrap_or_default();
    let mut filled = 0;
    while !rest.is_empty() {
        let block = size_at(rest, 0)
            .and_then(|length| rest.get(4..)?.split_at_checked(length))
            .ok_or("a block is cut off")?;
        let space = output.get_mut(filled..).unwrap_or_default();
        let length = space.len().min(LZ4_BLOCK);
        let space = space.get_mut(..length).unwrap_or_default();
        filled +=
            lz4_flex::block::decompress_into(block.0, space).map_err(|error| format!("{error}"))?;
        rest = block.1;
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use lzma_rust2::{FilterType, LzmaOptions, LzmaWriter, Write, XzOptions, XzWriter};
    use proptest::prelude::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn compressed(method: Compression, data: &[u8]) -> Vec<u8> {
        let payload = match method {
            Compression::Gzip => {
                // All optional fields: two extra bytes, a name, a comment, a checksum.
                let mut payload = vec![0x1f, 0x8b, 8, 0x1e, 0, 0, 0, 0, 0, 3];
                payload.extend(b"\x02\x00ab<name>\0<comment>\0cc");
                payload.extend(miniz_oxide::deflate::compress_to_vec(data, 6));
                payload.extend([0; 4]);
                payload
            }
            Compression::Xz => {
                let mut options = XzOptions::with_preset(1);
                options.prepend_pre_filter(FilterType::BcjX86, 0);
                let mut writer = XzWriter::new(Vec::new(), options).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Compression::Lzma => {
                let options = LzmaOptions::with_preset(1);
                let mut writer = LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
                writer.write_all(data).unwrap();
                writer.finish().unwrap()
            }
            Compression::Bzip2 => {
                let mut encoder =
                    bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
                std::io::Write::write_all(&mut encoder, data).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => compress_to_vec(data, CompressionLevel::Fastest),
            _ => return fake::lz4(data),
        };
        fake::sized(payload, data)
    }

    const METHODS: [Compression; 6] = [
        Compression::Gzip,
        Compression::Bzip2,
        Compression::Xz,
        Compression::Zstd,
        Compression::Lz4,
        Compression::Lzma,
    ];

    #[test]
    fn lz4_has_many_blocks() {
        let data: Vec<u8> = (0..=250).cycle().take(LZ4_BLOCK + 1000).collect();
        assert_eq!(decompress(&fake::lz4(&data)), Ok(data));
    }

    #[test]
    fn unknown_and_unsupported_are_named() {
        assert_eq!(decompress(b"MZ\0\0abcd"), Err(ImageError::UnknownCompression(*b"MZ\0\0")));
        assert_eq!(decompress(b""), Err(ImageError::UnknownCompression([0; 4])));
        let lzo = ImageError::UnsupportedCompression(Compression::Lzo);
        assert_eq!(decompress(b"\x89LZO....\x01\0\0\0"), Err(lzo));
    }

    #[test]
    fn bzip2_has_many_blocks() {
        let data: Vec<u8> =
            (0_u32..700_000).flat_map(|n| (n.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
        assert_eq!(decompress(&compressed(Compression::Bzip2, &data)), Ok(data));
    }

    #[test]
    fn the_size_is_bounded_and_exact() {
        let huge = [0x1f, 0x8b, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        let limit = LIMIT as u64;
        assert_eq!(decompress(&huge), Err(ImageError::Size { size: u32::MAX.into(), limit }));
        let data = [7; 5000];
        for method in METHODS {
            for wrong in [4999, 5001] {
                let mut payload = compressed(method, &data);
                let size = payload.len() - 4;
                payload[size..].copy_from_slice(&u32::to_le_bytes(wrong));
                let error = decompress(&payload).unwrap_err();
                assert!(matches!(error, ImageError::Decompression { .. }), "{method} {error}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_was_compressed_comes_back(
            data in prop::collection::vec(any::<u8>(), 1..40_000),
            method in prop::sample::select(&METHODS[..]),
        ) {
            prop_assert_eq!(decompress(&compressed(method, &data)), Ok(data));
        }

        #[test]
        fn damage_is_no_panic(
            data in prop::collection::vec(0_u8..4, 1..20_000),
            method in prop::sample::select(&METHODS[..]),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            keep in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let mut payload = compressed(method, &data);
            let end = payload.len() - 4;
            for (at, value) in damage {
                payload[at.index(end)] = value;
            }
            if cut {
                let size = payload.split_off(end);
                payload.truncate(keep.index(end));
                payload.extend(size);
            }
            if let Ok(output) = decompress(&payload) {
                prop_assert_eq!(output.len(), data.len());
            }
        }

        #[test]
        fn any_stream_is_answered(
            method in prop::sample::select(&MAGICS[..]),
            stream in prop::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut payload = method.0.to_vec();
            payload.extend(stream);
            payload.extend(1000_u32.to_le_bytes());
            let _ = decompress(&payload);
        }
    }
}
