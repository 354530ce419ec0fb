//! Text patching: which writes to locked kernel text are legal.
//!
//! A site of the manifest holds one of its *allowed contents*. Linux goes from one to another by
//! the breakpoint protocol (`text_poke_bp_batch`, arch/x86/kernel/alternative.c): `int3` over the
//! first byte, then the other bytes (the *tail*), then the new first byte. [`judge`] accepts these
//! three steps and refuses all else, so what always holds at a site is:
//!
//! - it is an allowed content, or it starts with `int3`;
//! - behind an `int3` is the tail of an allowed content. There are two exceptions, parts that the
//!   kernel may write one after the other: where a page boundary divides the tail, each part is
//!   that of an allowed content (as far as its target can be told from it); and the first four of
//!   five tail bytes, which the kernel's `memcpy` stores before the last four.
//!
//! The second rule matters because an attacker can jump behind the `int3`.

use abi::manifest::{Manifest, Site, SiteKind};
use addr::PAGE_SIZE;
use core::ops::Range;

/// Longest site in bytes.
const MAX_SITE: usize = 6;

const INT3: u8 = 0xcc;
const CALL: u8 = 0xe8;
const JUMP: u8 = 0xe9;
const JUMP_SHORT: u8 = 0xeb;
/// Second byte of `0F 80` to `0F 8F`, conditional jumps, without the condition.
const JCC: u8 = 0x80;
const NOP2: [u8; 2] = [0x66, 0x90];
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `xor eax, eax` with three cs prefixes: a call of `__static_call_return0`. Linux 5.18 on.
const ZERO5: [u8; 5] = [0x2e, 0x2e, 0x2e, 0x31, 0xc0];
/// `xor rax, rax` with two data16 prefixes: the same before Linux 5.18.
const ZERO5_OLD: [u8; 5] = [0x66, 0x66, 0x48, 0x31, 0xc0];
const RETURN5: [u8; 5] = [0xc3, INT3, INT3, INT3, INT3];
/// A trampoline without a function, as it is linked: `ret; int3; nop; nop; nop`.
const RETURN5_LINKED: [u8; 5] = [0xc3, INT3, 0x90, 0x90, 0x90];

/// The step that a legal write makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legal {
    /// It changes nothing.
    Unchanged,
    /// `int3` over the first byte of an allowed content.
    Breakpoint,
    /// Bytes behind an `int3`.
    Tail,
    /// The first byte of an allowed content, in place of an `int3`.
    Opcode,
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It touches no site.
    NoSite,
    /// It touches a site and bytes outside of it.
    AcrossSite,
    /// The site's present bytes cannot be read.
    Unreadable,
    /// The site's present bytes are no allowed content.
    UnknownContent,
    /// It leads to no allowed content of the site.
    IllegalBytes,
    /// It is no step of the breakpoint protocol in the site's present state.
    IllegalStep,
}

/// Whether bytes `[offset, offset + length)`, counted from `_text`, touch a site.
pub fn covers(manifest: &Manifest<'_>, offset: u64, length: u64) -> bool {
    let end = offset.saturating_add(length);
    let next = manifest.sites().partition_point(|site| site.end() <= offset);
    length > 0 && manifest.sites().get(next).is_some_and(|site| u64::from(site.offset) < end)
}

/// Judges a write of `bytes` at `offset` from `_text`. `current` reads the byte at an offset.
///
/// The bytes must be all that one instruction writes (a whole `rep movs`, or a store over a page
/// boundary, is one write). The caller performs the write itself, with no other write to the site
/// between question and deed.
///
/// # Errors
/// See [`Refused`].
pub fn judge(
    manifest: &Manifest<'_>,
    offset: u64,
    current: impl Fn(u64) -> Option<u8>,
    bytes: &[u8],
) -> Result<Legal, Refused> {
    let Some(site) = manifest.site_at(offset) else {
        let across = covers(manifest, offset, bytes.len() as u64);
        return Err(if across { Refused::AcrossSite } else { Refused::NoSite });
    };
    let write = Write::new(site, offset, current, bytes)?;
    let [_, second, ..] = write.before;
    write.judge(&Rules { manifest, site, second })
}

/// Bytes of a site; those past its length are 0.
type Content = [u8; MAX_SITE];
/// Bytes of a site, some or all of them known.
type Pattern = [Option<u8>; MAX_SITE];

/// The pattern that knows the bytes of `content` inside `range`.
fn pattern(content: &Content, range: Range<usize>) -> Pattern {
    let mut index = 0..;
    content.map(|byte| index.next().is_some_and(|i| range.contains(&i)).then_some(byte))
}

/// A write inside one site.
struct Write {
    before: Content,
    after: Content,
    /// The bytes of the site that it writes.
    range: Range<usize>,
}

impl Write {
    fn new(
        site: &Site,
        offset: u64,
        current: impl Fn(u64) -> Option<u8>,
        bytes: &[u8],
    ) -> Result<Self, Refused> {
        let start = usize::try_from(offset - u64::from(site.offset)).unwrap_or(MAX_SITE);
        let range = start..start.saturating_add(bytes.len());
        if range.end > usize::from(site.length) {
            return Err(Refused::AcrossSite);
        }
        let mut before = [0; MAX_SITE];
        for (byte, offset) in before.iter_mut().zip(u64::from(site.offset)..site.end()) {
            *byte = current(offset).ok_or(Refused::Unreadable)?;
        }
        let mut after = before;
        after.get_mut(range.clone()).ok_or(Refused::AcrossSite)?.copy_from_slice(bytes);
        Ok(Self { before, after, range })
    }

    /// The three steps of the breakpoint protocol.
    fn judge(&self, rules: &Rules<'_>) -> Result<Legal, Refused> {
        let length = usize::from(rules.site.length);
        let [from, ..] = self.before;
        let [to, ..] = self.after;
        let legal = |step, condition, refused| if condition { Ok(step) } else { Err(refused) };
        if self.before == self.after {
            Ok(Legal::Unchanged)
        } else if self.range.start > 0 && from == INT3 {
            let whole = rules.allow(&pattern(&self.after, 1..length));
            let part = || {
                self.is_part(rules.site) && rules.allow(&pattern(&self.after, self.range.clone()))
            };
            legal(Legal::Tail, whole || part(), Refused::IllegalBytes)
        } else if self.range == (0..1) && to == INT3 {
            let allowed = rules.allow(&pattern(&self.before, 0..length));
            legal(Legal::Breakpoint, allowed, Refused::UnknownContent)
        } else if self.range == (0..1) && from == INT3 {
            let allowed = rules.allow(&pattern(&self.after, 0..length));
            legal(Legal::Opcode, allowed, Refused::IllegalBytes)
        } else {
            Err(Refused::IllegalStep)
        }
    }

    /// Whether it writes a part of the tail that the kernel may write by itself (see above).
    fn is_part(&self, site: &Site) -> bool {
        let length = usize::from(site.length);
        let on_page =
            |index: usize| (u64::from(site.offset) + index as u64).is_multiple_of(PAGE_SIZE);
        (self.range.start == 1 && on_page(self.range.end))
            || (self.range.end == length && on_page(self.range.start))
            || (self.range == (1..5) && length == 6)
    }
}

/// The allowed contents of a site.
struct Rules<'a> {
    manifest: &'a Manifest<'a>,
    site: &'a Site,
    /// The second byte as it is now. In a conditional jump it holds the condition, which stays.
    second: u8,
}

impl Rules<'_> {
    /// Whether some allowed content has the known bytes of `known`.
    fn allow(&self, known: &Pattern) -> bool {
        let fixed = |content: &[u8]| matches(known, content);
        match (SiteKind::from_number(self.site.kind), self.site.length) {
            (Some(SiteKind::JumpLabel), 2) => {
                fixed(&NOP2)
                    || i8::try_from(self.distance(self.site.target))
                        .is_ok_and(|distance| fixed(&[JUMP_SHORT, distance.cast_unsigned()]))
            }
            (Some(SiteKind::JumpLabel), 5) => {
                fixed(&NOP5)
                    || i32::try_from(self.distance(self.site.target)).is_ok_and(|distance| {
                        let [a, b, c, d] = distance.to_le_bytes();
                        fixed(&[JUMP, a, b, c, d])
                    })
            }
            (Some(SiteKind::StaticCall), 5) => {
                fixed(&NOP5) || fixed(&ZERO5) || fixed(&ZERO5_OLD) || self.branch(known, &[CALL])
            }
            (Some(SiteKind::StaticTailCall), 5) => {
                fixed(&RETURN5) || fixed(&RETURN5_LINKED) || self.branch(known, &[JUMP])
            }
            (Some(SiteKind::StaticConditional), 6) => {
                self.second & 0xf0 == JCC && self.branch(known, &[0x0f, self.second])
            }
            _ => false,
        }
    }

    /// Whether `known` may be `opcode` and a 32-bit distance to a function.
    fn branch(&self, known: &Pattern, opcode: &[u8]) -> bool {
        let distance = known.get(opcode.len()..).and_then(|rest| rest.first_chunk::<4>());
        matches(known, opcode) && distance.is_some_and(|distance| self.reaches_function(distance))
    }

    /// Whether some distance with these bytes leads to a function. Where more than one byte is
    /// unknown, whether it may lead into the kernel's text.
    fn reaches_function(&self, distance: &[Option<u8>; 4]) -> bool {
        let filled = |fill| i32::from_le_bytes(distance.map(|byte| byte.unwrap_or(fill)));
        match (distance.iter().filter(|byte| byte.is_none()).count(), distance) {
            (0, _) => self.is_function(self.target(filled(0))),
            (1, _) => (0..=u8::MAX).any(|fill| self.is_function(self.target(filled(fill)))),
            (_, [.., None]) => true,
            _ => {
                let text = self.manifest.header().text;
                self.target(filled(0)) < i64::from(text.end)
                    && self.target(filled(u8::MAX)) >= i64::from(text.start)
            }
        }
    }

    fn is_function(&self, target: i64) -> bool {
        let header = self.manifest.header();
        u32::try_from(target).is_ok_and(|target| {
            self.manifest.is_function_entry(target)
                || (target != 0
                    && [header.return_thunk, header.return_zero, self.site.target]
                        .contains(&target))
        })
    }

    /// Where a branch by `distance` leads, as an offset from `_text`.
    fn target(&self, distance: i32) -> i64 {
        self.end() + i64::from(distance)
    }

    /// From the end of the site to `target`.
    fn distance(&self, target: u32) -> i64 {
        i64::from(target) - self.end()
    }

    fn end(&self) -> i64 {
        i64::from(self.site.offset) + i64::from(self.site.length)
    }
}

/// Whether the known bytes of `known` are those of `content`.
fn matches(known: &Pattern, content: &[u8]) -> bool {
    known.iter().zip(content).all(|(known, byte)| known.is_none_or(|known| known == *byte))
}

#[cfg(test)]
mod tests;
