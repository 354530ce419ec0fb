//! Programs are put together by hand: a header, program headers, section headers, 64 bytes.

use super::*;
use proptest::prelude::*;

const CODE: u64 = 1024;

struct Program {
    kind: u16,
    machine: u16,
    entry: u64,
    /// Type, flags, address, bytes in the file, bytes in memory.
    segments: Vec<(u32, u32, u64, u64, u64)>,
    /// Types; each has 24 bytes.
    sections: Vec<u32>,
}

impl Default for Program {
    fn default() -> Self {
        Self {
            kind: ET_EXEC,
            machine: EM_X86_64,
            entry: START + 8,
            segments: vec![
                (PT_LOAD, PF_R | PF_X, START, 64, 64),
                (PT_LOAD, PF_R, START + PAGE, 32, 32),
                (PT_LOAD, PF_R | PF_W, START + 2 * PAGE, 16, 3 * PAGE + 1),
            ],
            sections: vec![],
        }
    }
}

fn count(length: usize) -> u16 {
    length.try_into().unwrap()
}

impl Program {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.machine.to_le_bytes());
        bytes.extend(1_u32.to_le_bytes());
        let sections_at = if self.sections.is_empty() { 0 } else { CODE + 64 };
        for word in [self.entry, 64, sections_at] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(0_u32.to_le_bytes());
        let counts = [64, 56, count(self.segments.len()), 64, count(self.sections.len()), 0];
        bytes.extend(counts.iter().flat_map(|count| count.to_le_bytes()));
        for (kind, flags, address, in_file, in_memory) in &self.segments {
            bytes.extend(kind.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            for word in [CODE, *address, *address, *in_file, *in_memory, PAGE] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes.resize(1024, 0);
        bytes.extend(0..64);
        for kind in &self.sections {
            let mut section = [0; 64];
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[32..40].copy_from_slice(&24_u64.to_le_bytes());
            bytes.extend(section);
        }
        bytes
    }
}

#[test]
fn a_program_becomes_the_same_segments() {
    let image = convert(&Program::default().bytes(), "a-task").unwrap();
    let image = Image::parse(&image).unwrap();
    assert_eq!((image.name(), image.entry()), (Some("a-task"), START + 8));
    let found: Vec<_> = image
        .segments()
        .map(|segment| (segment.address, segment.size, segment.rights, image.bytes_of(segment)))
        .collect();
    let bytes: Vec<u8> = (0..64).collect();
    assert_eq!(
        found,
        [
            (START, PAGE, segment::READ_EXECUTE, &bytes[..]),
            (START + PAGE, PAGE, segment::READ, &bytes[..32]),
            (START + 2 * PAGE, 4 * PAGE, segment::READ_WRITE, &bytes[..16]),
        ]
    );
}

#[test]
fn what_cannot_be_loaded_is_refused_with_the_reason() {
    let refused = |word: &str, change: &dyn Fn(&mut Program)| {
        let mut program = Program::default();
        change(&mut program);
        let message = format!("{:#}", convert(&program.bytes(), "x").unwrap_err());
        assert!(message.contains(word), "{message}");
    };
    refused("another machine", &|program| program.machine = 3);
    refused("-no-pie", &|program| program.kind = elf::abi::ET_DYN);
    refused("not linked", &|program| program.kind = elf::abi::ET_REL);
    refused("interpreter", &|program| program.segments.push((PT_INTERP, PF_R, 0, 8, 8)));
    refused("dynamically", &|program| program.segments.push((PT_DYNAMIC, PF_R, 0, 8, 8)));
    refused("thread-local", &|program| program.segments.push((PT_TLS, PF_R, 0, 8, 8)));
    refused("relocations", &|program| program.sections = vec![0, SHT_RELA]);
    refused("writable and executable", &|program| program.segments[0].1 |= PF_W);
    refused("cannot be read", &|program| program.segments[0].1 = PF_X);
    refused("link.ld", &|program| program.segments[0].2 = 0x20_0000);
    refused("begin at a page", &|program| program.segments[0].2 += 8);
    refused("overlap", &|program| program.segments[1].2 = START);
    refused("too large", &|program| program.segments[2].4 = MOST_BYTES);
    refused("entry", &|program| program.entry = START + PAGE);
    refused("0 segments", &|program| program.segments.clear());
    refused("9 segments", &|program| {
        program.segments = vec![program.segments[0]; 9];
    });
}

#[test]
fn names_are_short_words() {
    let program = Program::default().bytes();
    assert!(convert(&program, "0123456789abcdef").is_ok());
    for bad in ["", "0123456789abcdefg", "a b", "ä", "a\0"] {
        assert!(convert(&program, bad).is_err(), "{bad:?}");
    }
    assert_eq!(name(Path::new("/x/ravelin-warden")), "warden");
    assert_eq!(name(Path::new("loop.task")), "loop");
}

#[test]
fn a_file_is_an_image_or_a_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ravelin-one");
    let write = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();
    write(&Program::default().bytes());
    let image = load(&path).unwrap();
    assert_eq!(Image::parse(&image).unwrap().name(), Some("one"));
    write(&image);
    assert_eq!(load(&path).unwrap(), image);
    write(&image[..image.len() - 1]);
    assert!(format!("{:#}", load(&path).unwrap_err()).contains("damaged"));
    write(b"#!/bin/sh\n");
    assert!(format!("{:#}", load(&path).unwrap_err()).contains("neither"));
}

proptest! {
    #[test]
    fn no_bytes_bring_it_down(changes in prop::collection::vec((0_usize..1200, any::<u8>()), 1..20), length in 0_usize..1400) {
        let mut bytes = Program { sections: vec![0, 1, SHT_RELA], ..Program::default() }.bytes();
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(length);
        if let Ok(image) = convert(&bytes, "x") {
            prop_assert!(Image::parse(&image).is_ok());
        }
    }
}
