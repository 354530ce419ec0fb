//! Text patching: which writes to locked kernel text are legal.
//!
//! A site of the manifest holds one of its *allowed contents* (`patch/rules.rs`). Linux goes from
//! one to another by the breakpoint protocol (`text_poke_bp_batch`, arch/x86/kernel/alternative.c):
//! `int3` over the first byte, then the other bytes (the *tail*), then the new first byte.
//! [`judge`] accepts these three steps and refuses all else, so what always holds at a site is:
//!
//! - it is an allowed content, or it starts with `int3`;
//! - behind an `int3` is the tail of an allowed content. There are two exceptions, parts that the
//!   kernel may write one after the other: where a page boundary divides the tail, each part is
//!   that of an allowed content (as far as its target can be told from it); and the first four of
//!   five tail bytes, which the kernel's `memcpy` stores before the last four.
//!
//! The second rule matters because an attacker can jump behind the `int3`. The places of the function
//! tracer know no exceptions: they take their tail in one piece.
//!
//! Linux patches all of them by that protocol (read: a 6.13 or later; tried: 6.1, 6.12, 6.18):
//! static keys and calls, and the tracer's places (`ftrace_replace_code`, up to 256 of them with
//! each step in one batch) and own calls (`ftrace_update_ftrace_func`, arch/x86/kernel/ftrace.c).
//! The function graph tracer writes nothing else where the kernel has `DYNAMIC_FTRACE_WITH_ARGS`;
//! the jump `ftrace_graph_call` of others is no site, and writing it is refused.
//!
//! kprobes are no sites; their rules are in [`probes`].

pub mod probes;
mod rules;
mod tracer;
mod trampoline;

use abi::manifest::{Manifest, SiteKind, TRACED_LENGTH};
use abi::policy::Patching;
use addr::PAGE_SIZE;
use core::ops::Range;
use rules::Rules;

/// Longest site in bytes.
const MAX_SITE: usize = 6;

const INT3: u8 = 0xcc;

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
    /// `int3` over the first byte of an instruction: a kprobe ([`probes`]).
    Probe,
    /// The byte that a kprobe displaced, in its place.
    ProbeRemoved,
}

/// Why a write is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It touches no site.
    NoSite,
    /// It touches a site and bytes outside of it.
    AcrossSite,
    /// The policy does not let the kernel patch sites of this kind.
    Policy,
    /// The site's present bytes cannot be read.
    Unreadable,
    /// The site's present bytes are no allowed content.
    UnknownContent,
    /// It leads to no allowed content of the site.
    IllegalBytes,
    /// It is no step of the breakpoint protocol in the site's present state.
    IllegalStep,
    /// A kprobe that is not at the first byte of an instruction, as far as that can be told.
    InsideInstruction,
    /// There are as many kprobes as can be.
    TooMany,
}

/// The guest's memory, as far as a verdict depends on it.
pub trait Memory {
    /// Copies locked text at `offset` from `_text`; `None` if it cannot be read.
    fn text(&self, offset: u64, bytes: &mut [u8]) -> Option<()>;
    /// Copies code outside the kernel's image, `distance` bytes from `_text` and all in one page, that
    /// no CPU can write at that time; `None` if there is none.
    fn code(&mut self, distance: i64, bytes: &mut [u8]) -> Option<()>;
}

/// Whether bytes `[offset, offset + length)`, counted from `_text`, touch a site.
pub fn covers(manifest: &Manifest<'_>, offset: u64, length: u64) -> bool {
    let end = offset.saturating_add(length);
    let next = manifest.sites().partition_point(|site| site.end() <= offset);
    let site = manifest.sites().get(next).map(|site| u64::from(site.offset));
    let past = |start: &u32| u64::from(*start) + u64::from(TRACED_LENGTH) <= offset;
    let next = manifest.traced().partition_point(past);
    let traced = manifest.traced().get(next).map(|start| u64::from(*start));
    length > 0 && [site, traced].into_iter().flatten().any(|start| start < end)
}

/// Judges a write of `bytes` at `offset` from `_text`, under a policy that allows `allowed`.
///
/// The bytes must be all that one instruction writes (a whole `rep movs`, or a store over a page
/// boundary, is one write). The caller performs the write itself, with no other write to the site
/// between question and deed.
///
/// # Errors
/// See [`Refused`].
pub fn judge(
    manifest: &Manifest<'_>,
    allowed: Patching,
    memory: &mut dyn Memory,
    offset: u64,
    bytes: &[u8],
) -> Result<Legal, Refused> {
    let Some(place) = Place::at(manifest, offset) else {
        let across = covers(manifest, offset, bytes.len() as u64);
        return Err(if across { Refused::AcrossSite } else { Refused::NoSite });
    };
    let write = Write::new(place, offset, memory, bytes)?;
    if !place.kind.is_in(allowed) {
        return Err(Refused::Policy);
    }
    let [_, second, ..] = write.before;
    write.judge(&mut Rules { manifest, allowed, memory, place, second })
}

/// What is patched at a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Site(SiteKind),
    /// Where a traced function calls the tracer.
    Traced,
}

impl Kind {
    fn is_in(self, allowed: Patching) -> bool {
        match self {
            Self::Site(SiteKind::JumpLabel) => allowed.jump_label,
            Self::Site(
                SiteKind::StaticCall | SiteKind::StaticTailCall | SiteKind::StaticConditional,
            ) => allowed.static_call,
            Self::Site(SiteKind::TracerCall) | Self::Traced => allowed.ftrace,
        }
    }
}

/// A place that the kernel patches.
#[derive(Clone, Copy)]
struct Place {
    /// First byte, from `_text`.
    offset: u32,
    length: u8,
    kind: Kind,
    /// As in the manifest; 0 if it has none.
    target: u32,
}

impl Place {
    /// The place that holds byte `offset`.
    fn at(manifest: &Manifest<'_>, offset: u64) -> Option<Self> {
        if let Some(site) = manifest.site_at(offset) {
            let kind = Kind::Site(SiteKind::from_number(site.kind)?);
            return Some(Self {
                offset: site.offset,
                length: site.length,
                kind,
                target: site.target,
            });
        }
        let offset = manifest.traced_at(offset)?;
        Some(Self { offset, length: 5, kind: Kind::Traced, target: 0 })
    }

    /// One past the last byte.
    fn end(self) -> i64 {
        i64::from(self.offset) + i64::from(self.length)
    }
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
    fn new(place: Place, offset: u64, memory: &dyn Memory, bytes: &[u8]) -> Result<Self, Refused> {
        let length = usize::from(place.length);
        let start = usize::try_from(offset - u64::from(place.offset)).unwrap_or(MAX_SITE);
        let range = start..start.saturating_add(bytes.len());
        if range.end > length {
            return Err(Refused::AcrossSite);
        }
        let mut before = [0; MAX_SITE];
        let present = before.get_mut(..length).ok_or(Refused::AcrossSite)?;
        memory.text(place.offset.into(), present).ok_or(Refused::Unreadable)?;
        let mut after = before;
        after.get_mut(range.clone()).ok_or(Refused::AcrossSite)?.copy_from_slice(bytes);
        Ok(Self { before, after, range })
    }

    /// The three steps of the breakpoint protocol.
    fn judge(&self, rules: &mut Rules<'_, '_>) -> Result<Legal, Refused> {
        let length = usize::from(rules.place.length);
        let [from, ..] = self.before;
        let [to, ..] = self.after;
        let legal = |step, condition, refused| if condition { Ok(step) } else { Err(refused) };
        if self.before == self.after {
            Ok(Legal::Unchanged)
        } else if self.range.start > 0 && from == INT3 {
            let allowed = rules.allow(&pattern(&self.after, 1..length))
                || (self.is_part(rules.place)
                    && rules.allow(&pattern(&self.after, self.range.clone())));
            legal(Legal::Tail, allowed, Refused::IllegalBytes)
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
    fn is_part(&self, place: Place) -> bool {
        if matches!(place.kind, Kind::Traced | Kind::Site(SiteKind::TracerCall)) {
            return false;
        }
        let length = usize::from(place.length);
        let on_page =
            |index: usize| (u64::from(place.offset) + index as u64).is_multiple_of(PAGE_SIZE);
        (self.range.start == 1 && on_page(self.range.end))
            || (self.range.end == length && on_page(self.range.start))
            || (self.range == (1..5) && length == 6)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
