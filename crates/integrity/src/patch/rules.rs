//! The allowed contents of a site, by its kind.

use super::{Kind, Memory, Pattern, Place};
use super::{tracer, trampoline};
use abi::manifest::{Manifest, SiteKind};
use abi::policy::Patching;

pub const CALL: u8 = 0xe8;
pub const JUMP: u8 = 0xe9;
const JUMP_SHORT: u8 = 0xeb;
/// Second byte of `0F 80` to `0F 8F`, conditional jumps, without the condition.
const JCC: u8 = 0x80;
const NOP2: [u8; 2] = [0x66, 0x90];
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0x00, 0x00];
/// `xor eax, eax` with three cs prefixes: a call of `__static_call_return0`. Linux 5.18 on.
const ZERO5: [u8; 5] = [0x2e, 0x2e, 0x2e, 0x31, 0xc0];
/// `xor rax, rax` with two data16 prefixes: the same before Linux 5.18.
const ZERO5_OLD: [u8; 5] = [0x66, 0x66, 0x48, 0x31, 0xc0];
const RETURN5: [u8; 5] = [0xc3, 0xcc, 0xcc, 0xcc, 0xcc];
/// A trampoline without a function, as it is linked: `ret; int3; nop; nop; nop`.
const RETURN5_LINKED: [u8; 5] = [0xc3, 0xcc, 0x90, 0x90, 0x90];

/// The allowed contents of a site.
pub struct Rules<'a, 'm> {
    pub(super) manifest: &'a Manifest<'m>,
    pub(super) allowed: Patching,
    pub(super) memory: &'a mut dyn Memory,
    pub(super) place: Place,
    /// The second byte as it is now. In a conditional jump it holds the condition, which stays.
    pub(super) second: u8,
}

impl Rules<'_, '_> {
    /// Whether some allowed content has the known bytes of `known`.
    pub(super) fn allow(&mut self, known: &Pattern) -> bool {
        let fixed = |content: &[u8]| matches(known, content);
        let Kind::Site(kind) = self.place.kind else {
            return fixed(&NOP5) || self.calls_tracer(known);
        };
        match (kind, self.place.length) {
            (SiteKind::JumpLabel, 2) => {
                fixed(&NOP2)
                    || i8::try_from(self.distance(self.place.target))
                        .is_ok_and(|distance| fixed(&[JUMP_SHORT, distance.cast_unsigned()]))
            }
            (SiteKind::JumpLabel, 5) => {
                fixed(&NOP5)
                    || i32::try_from(self.distance(self.place.target)).is_ok_and(|distance| {
                        let [a, b, c, d] = distance.to_le_bytes();
                        fixed(&[JUMP, a, b, c, d])
                    })
            }
            (SiteKind::StaticCall, 5) => {
                fixed(&NOP5) || fixed(&ZERO5) || fixed(&ZERO5_OLD) || self.branch(known, &[CALL])
            }
            (SiteKind::StaticTailCall, 5) => {
                fixed(&RETURN5) || fixed(&RETURN5_LINKED) || self.branch(known, &[JUMP])
            }
            (SiteKind::StaticConditional, 6) => {
                self.second & 0xf0 == JCC && self.branch(known, &[0x0f, self.second])
            }
            (SiteKind::TracerCall, 5) => {
                self.branch(known, &[CALL]) && (self.allowed.livepatch || !self.patches_live(known))
            }
            _ => false,
        }
    }

    /// Whether `known` may be a call of the tracer: of one of its entries, or, if the whole target is
    /// known, of a copy or of a BPF trampoline, which newer kernels also enter by a jump.
    fn calls_tracer(&mut self, known: &Pattern) -> bool {
        let entries = self.manifest.header().tracers;
        let mut entries = entries.iter().filter(|span| span.length() > 0);
        let calls = |distance: i32| {
            let [a, b, c, d] = distance.to_le_bytes();
            matches(known, &[CALL, a, b, c, d])
        };
        if entries.any(|span| i32::try_from(self.distance(span.start)).is_ok_and(calls)) {
            return true;
        }
        let [opcode, Some(a), Some(b), Some(c), Some(d), ..] = *known else { return false };
        let target = self.target(i32::from_le_bytes([a, b, c, d]));
        let (calls, jumps) = (opcode.is_none_or(|it| it == CALL), opcode == Some(JUMP));
        calls && tracer::is_copy(self.manifest, self.allowed, self.memory, target)
            || (calls || jumps) && trampoline::is_trampoline(self.manifest, self.memory, target)
    }

    /// Whether `known` is a call of what live patches hang on.
    fn patches_live(&self, known: &Pattern) -> bool {
        let target = i64::from(self.manifest.header().livepatch);
        i32::try_from(target - self.place.end()).is_ok_and(|distance| {
            let [a, b, c, d] = distance.to_le_bytes();
            matches(known, &[CALL, a, b, c, d])
        })
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
        is_function(self.manifest, target)
            || (target != 0 && target == i64::from(self.place.target))
    }

    /// Where a branch by `distance` leads, as an offset from `_text`.
    fn target(&self, distance: i32) -> i64 {
        self.place.end() + i64::from(distance)
    }

    /// From the end of the site to `target`.
    fn distance(&self, target: u32) -> i64 {
        i64::from(target) - self.place.end()
    }
}

/// Whether a known function of the kernel starts at `target`.
pub fn is_function(manifest: &Manifest<'_>, target: i64) -> bool {
    let header = manifest.header();
    u32::try_from(target).is_ok_and(|target| {
        manifest.is_function_entry(target)
            || (target != 0 && [header.return_thunk, header.return_zero].contains(&target))
    })
}

/// Whether the known bytes of `known` are those of `content`.
fn matches(known: &Pattern, content: &[u8]) -> bool {
    known.iter().zip(content).all(|(known, byte)| known.is_none_or(|known| known == *byte))
}
