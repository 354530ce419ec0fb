//! Copies of the function tracer.
//!
//! For almost every use of the tracer Linux makes a *trampoline*: a copy of `ftrace_caller` or
//! `ftrace_regs_caller` in a page of the module range, in which it changes four things
//! (`create_trampoline`, arch/x86/kernel/ftrace.c; read: a 6.13 or later; tried: 6.1, 6.12, 6.18).
//! Traced functions call the copy. What passes here is, byte by byte, the tracer's code as it
//! stands in the guest's locked text, apart from
//!
//! - its own call, which calls a known function of the kernel (that of live patches only where the policy
//!   allows them);
//! - the distance in the one `mov rdx, [rip + distance]` (what the called function is told);
//! - in `ftrace_regs_caller`, a NOP for the jump behind `test rax, rax`;
//! - a return behind it all, plain or as a jump to a known function of the kernel, a return thunk.

use super::Memory;
use super::rules::{CALL, JUMP, is_function};
use abi::manifest::{Manifest, SiteKind, Span};
use abi::policy::Patching;

/// Longest code of a tracer, in bytes. Those of Debian's kernels fit twice.
const MOST: usize = 512;
/// Length of a near call or jump.
const BRANCH: usize = 5;
const RETURN: u8 = 0xc3;
/// `mov rdx, [rip + distance]`, without the distance.
const LOAD: [u8; 3] = [0x48, 0x8b, 0x15];
/// `test rax, rax` and `jne` with a distance of one byte, without the distance.
const TEST_AND_JUMP: [u8; 4] = [0x48, 0x85, 0xc0, 0x75];
/// `test rax, rax` and a NOP.
const TEST_ALONE: [u8; 5] = [0x48, 0x85, 0xc0, 0x66, 0x90];

/// Whether the code at `target`, counted from `_text`, is a copy of a tracer outside the image.
pub fn is_copy(
    manifest: &Manifest<'_>,
    allowed: Patching,
    memory: &mut dyn Memory,
    target: i64,
) -> bool {
    let outside = !(0..i64::from(manifest.header().image_end)).contains(&target);
    let tracers = manifest.header().tracers;
    let mut copied = |span| is_copy_of(manifest, allowed, memory, span, target).is_some();
    outside && tracers.into_iter().any(&mut copied)
}

/// `Some` if it is a copy of the tracer at `span`.
fn is_copy_of(
    manifest: &Manifest<'_>,
    allowed: Patching,
    memory: &mut dyn Memory,
    span: Span,
    target: i64,
) -> Option<()> {
    let first = manifest.sites().partition_point(|site| site.offset < span.start);
    let mut inside = manifest.sites().get(first..)?.iter().take_while(|s| s.offset < span.end);
    let call = inside.find(|site| site.kind == SiteKind::TracerCall as u8)?;
    let call = usize::try_from(call.offset.checked_sub(span.start)?).ok()?;
    let length = usize::try_from(span.length()).ok()?;
    let (mut own, mut copy) = ([0; MOST], [0; MOST + BRANCH]);
    let (own, copy) = (own.get_mut(..length)?, copy.get_mut(..length + BRANCH)?);
    memory.text(span.start.into(), own)?;
    memory.code(target, copy)?;
    let function = |at: usize| {
        let distance = copy.get(at + 1..)?.first_chunk::<4>()?;
        let end = target.checked_add(i64::try_from(at + BRANCH).ok()?)?;
        let leads_to = end.checked_add(i32::from_le_bytes(*distance).into())?;
        is_function(manifest, leads_to).then_some(leads_to)
    };

    let mut at = 0;
    let (mut called, mut loaded) = (false, false);
    while at < length {
        // Most bytes are alike: none of them begins what may differ.
        let special = |at: usize, byte: u8| at == call || byte == LOAD[0];
        let rest = own.get(at..)?.iter().zip(at..);
        let next = rest.take_while(|(byte, at)| !special(*at, **byte)).count() + at;
        (own.get(at..next)? == copy.get(at..next)?).then_some(())?;
        at = next;
        if at == length {
            break;
        }
        let (own, copy) = (own.get(at..)?, copy.get(at..)?);
        at += if at == call {
            (copy.first() == Some(&CALL)).then_some(())?;
            let calls = function(at)?;
            (allowed.livepatch || calls != manifest.header().livepatch.into()).then_some(())?;
            called = true;
            BRANCH
        } else if own.starts_with(&LOAD) && !loaded {
            copy.starts_with(&LOAD).then_some(())?;
            loaded = true;
            LOAD.len() + 4
        } else if own.starts_with(&TEST_AND_JUMP) {
            copy.starts_with(&TEST_ALONE).then_some(())?;
            TEST_ALONE.len()
        } else {
            (own.first() == copy.first()).then_some(())?;
            1
        };
    }
    // No field reached over the call or the end.
    (called && at == length).then_some(())?;
    match *copy.get(length)? {
        RETURN => Some(()),
        JUMP => function(length).map(drop),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
