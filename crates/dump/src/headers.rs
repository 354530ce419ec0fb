//! The ELF headers of a dump: which part of the file holds which physical memory, and the notes.

use crate::{DumpError, Source, formats};
use alloc::vec;
use alloc::vec::Vec;
use elf::abi::{EM_X86_64, ET_CORE, PN_XNUM, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::section::SectionHeader;
use elf::segment::{ProgramHeader, SegmentTable};

/// Bytes of the file header.
const HEADER: usize = 64;
/// Bytes of the part that says how the rest is written.
const IDENT: usize = 16;
/// Bytes of a program header, and of a section header.
const ENTRY: (usize, usize) = (56, 64);
/// Most program headers; a dump with paging has one for every contiguous piece of memory.
const MOST_HEADERS: u64 = 1 << 20;
/// Most notes: one segment is usual.
const MOST_NOTES: usize = 16;

/// A piece of physical memory.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Physical address of the first byte.
    pub start: u64,
    /// Bytes in the file.
    pub length: u64,
    /// Where they begin in the file.
    pub offset: u64,
}

/// What is in the file.
#[derive(Debug)]
pub struct Headers {
    /// Physical memory; pieces may overlap.
    pub loads: Vec<Load>,
    /// Position and length of each segment of notes.
    pub notes: Vec<(u64, u64)>,
}

/// Reads the headers.
pub fn read(source: &impl Source) -> Result<Headers, DumpError> {
    let mut bytes = [0; HEADER];
    source.read_at(0, &mut bytes).ok_or(DumpError::NotADump("it is too short"))?;
    if let Some((what, instead)) = formats::known(&bytes) {
        return Err(DumpError::Format { what, instead });
    }
    let (ident, tail) = bytes.split_at(IDENT);
    let ident = parse_ident::<LittleEndian>(ident)
        .map_err(|_| DumpError::NotADump("it does not begin as a little-endian ELF file"))?;
    let header = FileHeader::parse_tail(ident, tail)
        .map_err(|_| DumpError::NotADump("its ELF header is malformed"))?;
    if header.class != Class::ELF64 || header.e_machine != EM_X86_64 {
        return Err(DumpError::NotADump("it is of another machine than x86-64"));
    }
    if header.e_type != ET_CORE {
        return Err(DumpError::NotADump("it is an ELF file of another kind"));
    }
    let table = program_headers(source, &header)?;
    let mut headers = Headers { loads: Vec::new(), notes: Vec::new() };
    for header in SegmentTable::new(LittleEndian, Class::ELF64, &table).iter() {
        add(&mut headers, &header);
    }
    if headers.loads.is_empty() {
        return Err(DumpError::NotADump("it holds no memory"));
    }
    Ok(headers)
}

fn add(headers: &mut Headers, header: &ProgramHeader) {
    match header.p_type {
        PT_LOAD if header.p_filesz > 0 => headers.loads.push(Load {
            start: header.p_paddr,
            length: header.p_filesz,
            offset: header.p_offset,
        }),
        PT_NOTE if headers.notes.len() < MOST_NOTES => {
            headers.notes.push((header.p_offset, header.p_filesz));
        }
        _ => {}
    }
}

/// The bytes of all program headers.
fn program_headers(
    source: &impl Source,
    header: &FileHeader<LittleEndian>,
) -> Result<Vec<u8>, DumpError> {
    if usize::from(header.e_phentsize) != ENTRY.0 {
        return Err(DumpError::Damaged("its program headers have an unknown size"));
    }
    let count = if header.e_phnum == PN_XNUM {
        extended_count(source, header.e_shoff)?
    } else {
        header.e_phnum.into()
    };
    if count > MOST_HEADERS {
        return Err(DumpError::Damaged("it has more than a million program headers"));
    }
    let length = count * ENTRY.0 as u64;
    let end = header.e_phoff.saturating_add(length);
    if end > source.length() {
        let what = "the table of program headers";
        return Err(DumpError::Truncated { what, end, length: source.length() });
    }
    let mut table = vec![0; addr::length(length)];
    source
        .read_at(header.e_phoff, &mut table)
        .ok_or(DumpError::Unreadable("table of program headers"))?;
    Ok(table)
}

/// The number of program headers where 16 bits do not hold it: in the first section header.
fn extended_count(source: &impl Source, at: u64) -> Result<u64, DumpError> {
    let mut bytes = [0; ENTRY.1];
    source.read_at(at, &mut bytes).ok_or(DumpError::Unreadable("first section header"))?;
    let sections =
        elf::parse::ParsingTable::<_, SectionHeader>::new(LittleEndian, Class::ELF64, &bytes);
    let first = sections.get(0).map_err(|_| DumpError::Damaged("its section header is malformed"));
    first.map(|section| section.sh_info.into())
}
