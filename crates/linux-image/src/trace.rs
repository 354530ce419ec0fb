//! The function tracer: the places that it patches, and its own code.
//!
//! Every traced function starts with a five-byte NOP (behind ENDBR, if it has that), or, in a
//! kernel whose build left this to the boot, with a call of `__fentry__`; `__mcount_loc` has the
//! addresses. While a function is traced the place calls `ftrace_caller`, `ftrace_regs_caller`, a
//! copy of one of them in a page of its own, or the trampoline of a BPF program.
//! Where a later definition replaced a weak function its place stays behind; it is recorded like
//! the others, and Linux does not use it. Places outside text are left out.
//!
//! Source: Linux arch/x86/kernel/ftrace.c and ftrace_64.S, kernel/trace/ftrace.c.

use crate::ImageError;
use crate::bytes::u64_at;
use crate::kallsyms::Symbols;
use crate::kernel_table::{KernelTable, malformed};
use crate::layout::Layout;
use crate::sites::{Finder, site};
use crate::vmlinux::Image;
use abi::manifest::{Site, SiteKind, Span, TRACED_LENGTH};
use alloc::vec::Vec;

const MCOUNT: &str = "table of traced functions";
const TRACERS: &str = "function tracer";
const MCOUNT_ENTRY: usize = 8;

/// What the function tracer patches.
#[derive(Debug, Default)]
pub struct Trace {
    /// Places in text, ascending, [`TRACED_LENGTH`] bytes each.
    pub traced: Vec<u32>,
    /// The code of `ftrace_caller` and `ftrace_regs_caller`; empty where there is none.
    pub tracers: [Span; 2],
    /// The calls inside that code.
    pub calls: Vec<Site>,
}

impl Trace {
    /// Finds everything; empty for a kernel without the dynamic function tracer.
    ///
    /// # Errors
    /// `MissingSymbol`, `MalformedTable`.
    pub fn find(image: &Image<'_>, symbols: &Symbols, layout: &Layout) -> Result<Self, ImageError> {
        let names = ["__start_mcount_loc", "__stop_mcount_loc"];
        let table = KernelTable::find(image, symbols, names, MCOUNT)?;
        let finder = Finder { image, layout };
        let fentry = symbols.address_of("__fentry__");
        let mut traced = Vec::new();
        for (address, entry) in table.entries(MCOUNT_ENTRY)? {
            // The build may have zeroed entries of replaced weak functions.
            let place = u64_at(entry, 0).unwrap_or_default();
            let offset = image.offset(place).filter(|&at| layout.text.contains(at.into()));
            let Some(offset) = offset else { continue };
            match finder.instruction(place) {
                [0x0f, 0x1f, 0x44, 0, 0, ..] => {}
                [0xe8, ..] if finder.destination(place, 5) == fentry => {}
                _ => {
                    return Err(malformed(MCOUNT, address, "it names no place that can be traced"));
                }
            }
            traced.push(offset);
        }
        traced.sort_unstable();
        traced.dedup();
        let close = traced.windows(2).find(|w| matches!(w, [a, b] if b - a < TRACED_LENGTH));
        if let Some(&[offset, ..]) = close {
            let address = image.base().wrapping_add(offset.into());
            return Err(malformed(MCOUNT, address, "two places overlap"));
        }
        let mut trace = Self { traced, ..Self::default() };
        if !trace.traced.is_empty() {
            trace.find_tracers(&finder, symbols)?;
        }
        Ok(trace)
    }

    fn find_tracers(&mut self, finder: &Finder<'_>, symbols: &Symbols) -> Result<(), ImageError> {
        let names = [
            ["ftrace_caller", "ftrace_caller_end", "ftrace_call"],
            ["ftrace_regs_caller", "ftrace_regs_caller_end", "ftrace_regs_call"],
        ];
        for (tracer, [start, end, call]) in self.tracers.iter_mut().zip(names) {
            let Some(entry) = symbols.address_of(start) else { continue };
            let end = symbols.required(end)?;
            let bad = |reason| malformed(TRACERS, entry, reason);
            let span = finder.text(entry).zip(finder.text(end));
            let (start, end) = span.ok_or_else(|| bad("it is not in text"))?;
            let place = symbols.required(call)?;
            let at = finder.text(place).filter(|&at| start < at && at < end);
            let at = at.ok_or_else(|| bad("its call is not inside it"))?;
            let calls = matches!(finder.instruction(place), [0xe8, ..]);
            let target = finder.destination(place, 5).filter(|_| calls);
            let target = target.and_then(|target| finder.text(target));
            let target = target.ok_or_else(|| bad("its call does not call a function"))?;
            *tracer = Span { start, end };
            self.calls.push(site(at, target, SiteKind::TracerCall, 5));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
