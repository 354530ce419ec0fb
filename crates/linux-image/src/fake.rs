//! A tiny kernel for tests: bzImage around payload around ELF around text, tables and kallsyms in
//! any of the layouts that Linux has had.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;

/// Link-time address of `_text`.
pub const BASE: u64 = 0xffff_ffff_8100_0000;
/// Where the fake's read-only data starts, from `_text`.
pub const RODATA: u64 = 0x2000;
/// Where the fake's init text lies, from `_text`.
pub const INIT: u64 = 0x20_0000;
/// Bytes of init text.
const INIT_LENGTH: usize = 0x100;

/// Layouts and encodings of kallsyms, by the first kernel that had them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    V6_1,
    V6_2,
    V6_4,
    V6_15,
    V7_0,
    V7_2,
}

pub const ERAS: [Era; 6] = [Era::V6_1, Era::V6_2, Era::V6_4, Era::V6_15, Era::V7_0, Era::V7_2];

/// A symbol: address, then type letter and name.
pub type FakeSymbol = (u64, String);

/// What a fake kernel is made of.
#[derive(Clone, Debug)]
pub struct Fake {
    pub era: Era,
    /// Text from `_text` to `_etext`, at most 0x2000 bytes.
    pub text: Vec<u8>,
    pub init_text: Vec<u8>,
    /// Offsets of jump labels and their targets.
    pub jumps: Vec<(u32, u32)>,
    /// Offsets of static calls and the low bits of their keys.
    pub calls: Vec<(u32, u32)>,
    /// Addresses in the table of traced functions.
    pub traced: Vec<u64>,
    /// Offsets in the exception table.
    pub faulting: Vec<u32>,
    /// Addresses in the kprobe blacklist.
    pub blacklist: Vec<u64>,
    /// Data with a symbol each, in read-only data.
    pub named: Vec<(&'static str, Vec<u8>)>,
    /// Further symbols by address.
    pub symbols: Vec<FakeSymbol>,
}

impl Fake {
    /// A kernel with one site of each form.
    pub fn new(era: Era) -> Self {
        let mut text = vec![0x90; 0x1ff0];
        let mut put = |at: usize, bytes: &[u8]| text[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x100, &[0x0f, 0x1f, 0x44, 0, 0]);
        put(0x108, &[0x66, 0x90]);
        put(0x110, &[0xeb, 0x0e]);
        put(0x118, &[0xe9, 3, 0, 0, 0]);
        put(0x200, &[0xe8, 0xfb, 0x0f, 0, 0]);
        put(0x208, &[0xe9, 0xf3, 0x0f, 0, 0]);
        put(0x210, &[0x0f, 0x84, 0xea, 0x0f, 0, 0]);
        put(0x300, &[0x0f, 0x1f, 0x44, 0, 0]);
        put(0x324, &[0xe8, 0x57, 1, 0, 0]);
        put(0x520, &[0xe8, 0xdb, 0xfd, 0xff, 0xff]);
        put(0x1200, &[0xe9, 0xfb, 0xf0, 0xff, 0xff, 0x0f, 0xb9, 0xcc]);
        put(0x1210, &[0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f, 0xb9, 0xcc]);
        let mut init_text = vec![0x90; INIT_LENGTH];
        init_text[..2].copy_from_slice(&[0x66, 0x90]);
        let symbols = [
            (0x300, "Tfirst"),
            (0x310, "t__pfx_second"),
            (0x320, "tsecond"),
            (0x320, "Wsecond_alias"),
            (0x400, "T__x86_return_thunk"),
            (0x480, "T__fentry__"),
            (0x500, "Tftrace_caller"),
            (0x520, "Tftrace_call"),
            (0x540, "Tftrace_caller_end"),
            (0x600, "T__entry_text_start"),
            (0x680, "T__entry_text_end"),
            (0x700, "tfirst.cold"),
            (0x710, "tthird"),
            (0x1200, "t__SCT__one"),
            (0x1210, "t__SCT__none"),
        ];
        Self {
            era,
            text,
            init_text,
            jumps: vec![
                (0x100, 0x120),
                (0x108, 0x120),
                (0x110, 0x120),
                (0x118, 0x120),
                (0x20_0000, 0x20_0010),
                (0x30_0000, 0x120),
            ],
            calls: vec![(0x200, 0), (0x208, 1), (0x210, 3), (0x30_0000, 1)],
            traced: vec![0, BASE + 0x300, BASE + 0x324, BASE + INIT],
            faulting: vec![0x412, 0x402, 0x20_0008],
            blacklist: vec![BASE + 0x300, BASE + 0x660],
            named: vec![],
            symbols: symbols.map(|(offset, text)| (BASE + offset, text.to_string())).to_vec(),
        }
    }

    /// Puts these bytes, with this symbol, into the read-only data.
    pub fn name(&mut self, name: &'static str, bytes: &[u8]) {
        self.named.push((name, bytes.to_vec()));
    }

    /// Read-only data and all symbols, sorted as the kernel's build sorts them.
    fn rodata(&self) -> (Vec<u8>, Vec<FakeSymbol>) {
        let mut rodata = vec![];
        let relative = |rodata: &mut Vec<u8>, target: u64| {
            let here = RODATA + rodata.len() as u64;
            let distance = i32::try_from(target.cast_signed() - here.cast_signed()).unwrap();
            rodata.extend(distance.to_le_bytes());
        };
        for &(code, target) in &self.jumps {
            relative(&mut rodata, code.into());
            relative(&mut rodata, target.into());
            rodata.extend(0x1000_u64.to_le_bytes());
        }
        let calls = RODATA + rodata.len() as u64;
        for &(code, flags) in &self.calls {
            relative(&mut rodata, code.into());
            relative(&mut rodata, 0x4000 + u64::from(flags));
        }
        let calls_end = RODATA + rodata.len() as u64;
        for &place in &self.faulting {
            relative(&mut rodata, place.into());
            relative(&mut rodata, 0x400);
            rodata.extend([0; 4]);
        }
        let faulting_end = RODATA + rodata.len() as u64;
        rodata.extend(self.traced.iter().flat_map(|place| place.to_le_bytes()));
        let traced_end = RODATA + rodata.len() as u64;
        rodata.extend(self.blacklist.iter().flat_map(|place| place.to_le_bytes()));
        let end = RODATA + rodata.len() as u64;
        let marks = [
            (0, "T_text"),
            (0, "T_stext"),
            (0x80, "Tentry_SYSCALL_64"),
            (self.text.len() as u64, "T_etext"),
            (RODATA, "D__start_rodata"),
            (RODATA, "R__start___jump_table"),
            (calls, "R__stop___jump_table"),
            (calls, "R__start_static_call_sites"),
            (calls_end, "R__stop_static_call_sites"),
            (calls_end, "R__start___ex_table"),
            (faulting_end, "R__stop___ex_table"),
            (faulting_end, "D__start_mcount_loc"),
            (traced_end, "D__stop_mcount_loc"),
            (traced_end, "D__start_kprobe_blacklist"),
            (end, "D__stop_kprobe_blacklist"),
            (end, "D__start_ro_after_init"),
            (end, "D__end_ro_after_init"),
            (0x10_0000, "D__end_rodata"),
            (INIT, "T_sinittext"),
            (INIT + self.init_text.len() as u64, "T_einittext"),
            (0x30_0000, "B_end"),
        ];
        let mut symbols: Vec<_> =
            marks.iter().map(|&(offset, text)| (BASE + offset, text.to_string())).collect();
        symbols.extend(self.symbols.iter().cloned());
        for (name, bytes) in &self.named {
            symbols.push((BASE + RODATA + rodata.len() as u64, ["d", name].concat()));
            rodata.extend(bytes);
        }
        symbols.sort_by_key(|&(address, _)| address);
        rodata.resize(rodata.len().next_multiple_of(64), 0xa5);
        let tables = kallsyms(self.era, &symbols, BASE + RODATA + rodata.len() as u64);
        rodata.extend(tables);
        (rodata, symbols)
    }

    /// Every symbol that the kernel has, in its order.
    pub fn all_symbols(&self) -> Vec<FakeSymbol> {
        self.rodata().1
    }

    pub fn vmlinux(&self) -> Vec<u8> {
        let (rodata, _) = self.rodata();
        let mut first = self.text.clone();
        first.resize(usize::try_from(RODATA).unwrap(), 0xcc);
        first.extend(rodata);
        let text = self.text.len() as u64;
        let sections = [
            (".text", BASE, text, 6),
            (".rodata", BASE + RODATA, first.len() as u64 - RODATA, 2),
            (".init.text", BASE + INIT, self.init_text.len() as u64, 6),
            (".comment", 0, 3, 0),
        ];
        let file = elf(&[(0, &[1, 2, 3]), (BASE, &first), (BASE + INIT, &self.init_text)]);
        with_sections(file, &sections)
    }

    pub fn bzimage(&self) -> Vec<u8> {
        bzimage(&lz4(&self.vmlinux()))
    }
}

/// An x86-64 ELF file with these segments and nothing else.
pub fn elf(segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let mut push = |bytes: &[u8]| file.extend_from_slice(bytes);
    push(&2_u16.to_le_bytes());
    push(&62_u16.to_le_bytes());
    push(&1_u32.to_le_bytes());
    push(&0x100_0000_u64.to_le_bytes());
    push(&64_u64.to_le_bytes());
    push(&0_u64.to_le_bytes());
    push(&0_u32.to_le_bytes());
    for half in [64, 56, u16::try_from(segments.len()).unwrap(), 64, 0, 0] {
        push(&half.to_le_bytes());
    }
    let mut offset = 64 + 56 * segments.len() as u64;
    for (address, bytes) in segments {
        let length = bytes.len() as u64;
        push(&1_u32.to_le_bytes());
        push(&5_u32.to_le_bytes());
        for word in [offset, *address, 0, length, length + 0x1000, 0x1000] {
            push(&word.to_le_bytes());
        }
        offset += length;
    }
    for (_, bytes) in segments {
        push(bytes);
    }
    file
}

/// Puts headers of these sections (name, address, length, flags) at the end of an ELF file.
fn with_sections(mut file: Vec<u8>, sections: &[(&str, u64, u64, u64)]) -> Vec<u8> {
    let mut names = vec![0];
    let mut headers = vec![0; 64];
    let strings = (".shstrtab", 0, 0, 0);
    for &(name, address, length, flags) in sections.iter().chain([&strings]) {
        let kind: u32 = if name == strings.0 { 3 } else { 1 };
        headers.extend(u32::try_from(names.len()).unwrap().to_le_bytes());
        headers.extend(kind.to_le_bytes());
        for word in [flags, address, 0, length, 0, 1, 0] {
            headers.extend(word.to_le_bytes());
        }
        names.extend(name.bytes().chain([0]));
    }
    let last = headers.len() - 64;
    headers[last + 24..last + 32].copy_from_slice(&(file.len() as u64).to_le_bytes());
    headers[last + 32..last + 40].copy_from_slice(&(names.len() as u64).to_le_bytes());
    file.extend(names);
    let start = file.len() as u64;
    file[40..48].copy_from_slice(&start.to_le_bytes());
    let count = u16::try_from(headers.len() / 64).unwrap();
    file[60..62].copy_from_slice(&count.to_le_bytes());
    file[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    file.extend(headers);
    file
}

/// Byte values stand for themselves, 1 to 4 for common strings, the rest for nothing.
fn token(value: u8) -> String {
    match value {
        1 => "T_".into(),
        2 => "__start".into(),
        3 => "_text".into(),
        4 => "rodata".into(),
        _ if value.is_ascii_graphic() => char::from(value).to_string(),
        _ => String::new(),
    }
}

fn compressed(mut text: &str) -> Vec<u8> {
    let mut values = vec![];
    while let Some(first) = text.bytes().next() {
        let value = (1..5).find(|&value| text.starts_with(&token(value))).unwrap_or(first);
        text = &text[token(value).len()..];
        values.push(value);
    }
    values
}

/// The tables of kallsyms for symbols in order, as they lie at `address`.
pub fn kallsyms(era: Era, symbols: &[FakeSymbol], address: u64) -> Vec<u8> {
    let count = u32::try_from(symbols.len()).unwrap();
    let alignment = if era == Era::V7_2 { 4 } else { 8 };
    let align = |bytes: &mut Vec<u8>| bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    let mut out = vec![];
    let offsets = |out: &mut Vec<u8>| {
        for (symbol, _) in symbols {
            let here = address + out.len() as u64;
            let from = |base: u64| symbol.cast_signed() - base.cast_signed();
            let offset = match era {
                Era::V6_1 | Era::V6_2 | Era::V6_4 if *symbol < BASE => symbol.cast_signed(),
                Era::V6_1 | Era::V6_2 | Era::V6_4 => -1 - from(BASE),
                Era::V6_15 => from(BASE),
                Era::V7_0 | Era::V7_2 => from(here),
            };
            out.extend(i32::try_from(offset).unwrap().to_le_bytes());
        }
        align(out);
        if !matches!(era, Era::V7_0 | Era::V7_2) {
            out.extend(BASE.to_le_bytes());
        }
    };
    let sequence = |out: &mut Vec<u8>| {
        for number in 0..count {
            out.extend(&number.to_be_bytes()[1..]);
        }
        align(out);
    };
    if matches!(era, Era::V6_1 | Era::V6_2) {
        offsets(&mut out);
    }
    out.extend(count.to_le_bytes());
    align(&mut out);
    let names = out.len();
    let mut markers = vec![];
    for (number, (_, text)) in symbols.iter().enumerate() {
        if number % 256 == 0 {
            markers.extend(u32::try_from(out.len() - names).unwrap().to_le_bytes());
        }
        let values = compressed(text);
        let length = u8::try_from(values.len() & 0x7f).unwrap();
        match values.len() >> 7 {
            0 => out.push(length),
            high => out.extend([length | 0x80, u8::try_from(high).unwrap()]),
        }
        out.extend(values);
    }
    align(&mut out);
    out.extend(markers);
    align(&mut out);
    if era == Era::V6_2 {
        sequence(&mut out);
    }
    let mut index: Vec<u8> = vec![];
    let table = out.len();
    for value in 0..=255 {
        index.extend(u16::try_from(out.len() - table).unwrap().to_le_bytes());
        out.extend(token(value).bytes());
        out.push(0);
    }
    align(&mut out);
    out.extend(index);
    if !matches!(era, Era::V6_1 | Era::V6_2) {
        offsets(&mut out);
        sequence(&mut out);
    }
    out
}

/// An lz4 payload.
pub fn lz4(data: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
    for chunk in data.chunks(8 << 20) {
        let block = lz4_flex::block::compress(chunk);
        payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        payload.extend(block);
    }
    sized(payload, data)
}

/// `payload` with the size of `data` behind it.
pub fn sized(mut payload: Vec<u8>, data: &[u8]) -> Vec<u8> {
    payload.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
    payload
}

/// A bzImage around a payload.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 5 * 512 + 16];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[4]);
    put(0x201, &[0x20]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x20e, &0x100_u16.to_le_bytes());
    put(0x248, &16_u32.to_le_bytes());
    put(0x24c, &u32::try_from(payload.len()).unwrap().to_le_bytes());
    put(0x300, b"6.1.0-test (somebody@example.org) #1 SMP Test 6.1.1-1 (2026-01-01)\0");
    image.extend_from_slice(payload);
    image
}
