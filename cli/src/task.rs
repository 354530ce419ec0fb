//! Task images ([`abi::task::image`]) out of static ELF programs, so that the hypervisor need not
//! read ELF.

use crate::check;
use abi::task::image::{
    self, Header, Image, MAGIC, MOST_BYTES, MOST_SEGMENTS, NAME_BYTES, Segment, VERSION, segment,
};
use abi::task::{STACK_BYTES, STACK_TOP, START};
use anyhow::{Context, bail, ensure};
use elf::abi::{
    EM_X86_64, ET_EXEC, PF_R, PF_W, PF_X, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_TLS, SHT_REL, SHT_RELA,
};
use elf::segment::ProgramHeader;
use elf::{ElfBytes, endian::LittleEndian, file::Class};
use std::path::Path;
use zerocopy::IntoBytes;

const PAGE: u64 = 4096;

/// The image of the task in the file at `path`, which is one already or an ELF program; then the
/// task has the name of the file, up to a dot and without `ravelin-` before it.
///
/// # Errors
/// The file cannot be read, or is no task.
pub fn load(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = check::read("task", path)?;
    let cannot = || format!("{} is no task", path.display());
    if bytes.starts_with(&MAGIC) {
        Image::parse(&bytes).with_context(cannot)?;
        return Ok(bytes);
    }
    convert(&bytes, &name(path)).with_context(cannot)
}

/// The name of the task in the file at `path`.
pub fn name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let name = file.split('.').next().unwrap_or_default();
    name.strip_prefix("ravelin-").unwrap_or(name).to_owned()
}

/// Makes an image of a static ELF program.
///
/// # Errors
/// It is none, or one that cannot be loaded as it is; the message says what to do about it.
pub fn convert(program: &[u8], name: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(
        program.len() as u64 <= MOST_BYTES,
        "it has {} bytes; a task can have {MOST_BYTES}",
        program.len()
    );
    let elf = ElfBytes::<LittleEndian>::minimal_parse(program)
        .context("it is neither an ELF program nor a task image")?;
    check_kind(&elf)?;
    let loads: Vec<ProgramHeader> = elf
        .segments()
        .context("it has no program headers: link it first")?
        .iter()
        .filter(|header| header.p_type == PT_LOAD && header.p_memsz > 0)
        .collect();
    ensure!(
        (1..=MOST_SEGMENTS).contains(&loads.len()),
        "it has {} segments; a task has 1 to {MOST_SEGMENTS}",
        loads.len()
    );
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        count: u32::try_from(loads.len())?,
        entry: elf.ehdr.e_entry,
        name: name_field(name)?,
        segments: [Segment::default(); MOST_SEGMENTS],
        digest: 0,
    };
    let mut contents = Vec::new();
    for (load, slot) in loads.iter().zip(&mut header.segments) {
        let bytes = elf.segment_data(load)?;
        *slot = Segment {
            address: load.p_vaddr,
            size: load.p_memsz.checked_next_multiple_of(PAGE).unwrap_or(u64::MAX),
            offset: (size_of::<Header>() + contents.len()) as u64,
            length: bytes.len() as u64,
            rights: rights(load)?,
        };
        contents.extend_from_slice(bytes);
    }
    let mut image = [header.as_bytes(), &contents].concat();
    header.digest = image::digest(&image);
    image.splice(..size_of::<Header>(), header.as_bytes().iter().copied());
    Image::parse(&image)
        .context("its segments overlap, are too large, or do not hold its entry")?;
    Ok(image)
}

/// The name as an image holds it.
fn name_field(name: &str) -> anyhow::Result<[u8; NAME_BYTES]> {
    let mut field = [0; NAME_BYTES];
    if let Some(place) = field.get_mut(..name.len()) {
        place.copy_from_slice(name.as_bytes());
    }
    ensure!(
        image::name(&field) == Some(name) && !name.is_empty(),
        "`{name}` cannot be a task's name, which has 1 to {NAME_BYTES} letters, digits and `-`"
    );
    Ok(field)
}

/// Checks that the program needs nobody to load it but a copier of segments.
fn check_kind(elf: &ElfBytes<'_, LittleEndian>) -> anyhow::Result<()> {
    ensure!(
        elf.ehdr.class == Class::ELF64 && elf.ehdr.e_machine == EM_X86_64,
        "it is for another machine than x86-64"
    );
    ensure!(
        elf.ehdr.e_type == ET_EXEC,
        "it can be loaded anywhere, or is not linked: link it with -static and -no-pie"
    );
    for header in elf.segments().iter().flat_map(|segments| segments.iter()) {
        match header.p_type {
            PT_INTERP => bail!("it asks for an interpreter: link it with -static"),
            PT_DYNAMIC => bail!("it is dynamically linked: link it with -static and -no-pie"),
            PT_TLS => bail!("it has thread-local variables, which a task cannot have"),
            _ => {}
        }
    }
    for header in elf.section_headers().iter().flat_map(|sections| sections.iter()) {
        let relocates = matches!(header.sh_type, SHT_REL | SHT_RELA) && header.sh_size > 0;
        ensure!(!relocates, "it has relocations, which nobody applies: link it with -no-pie");
    }
    Ok(())
}

/// The rights of a segment; its place is checked too.
fn rights(load: &ProgramHeader) -> anyhow::Result<u64> {
    let (address, end) = (load.p_vaddr, load.p_vaddr.saturating_add(load.p_memsz));
    ensure!(
        address >= START && end < STACK_TOP - STACK_BYTES,
        "its segment at {address:#x} is not between {START:#x} and {:#x}: link it with the \
         script in tasks/rt/link.ld",
        STACK_TOP - STACK_BYTES
    );
    ensure!(
        address.is_multiple_of(PAGE),
        "its segment at {address:#x} does not begin at a page: link it with the script in \
         tasks/rt/link.ld"
    );
    match load.p_flags & (PF_R | PF_W | PF_X) {
        PF_R => Ok(segment::READ),
        flags if flags == PF_R | PF_W => Ok(segment::READ_WRITE),
        flags if flags == PF_R | PF_X => Ok(segment::READ_EXECUTE),
        flags if flags & (PF_W | PF_X) == PF_W | PF_X => {
            bail!("its segment at {address:#x} is writable and executable, which no page may be")
        }
        _ => bail!("its segment at {address:#x} cannot be read"),
    }
}

#[cfg(test)]
mod tests;
