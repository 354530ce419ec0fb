//! Where the kernel's parts lie, counted from `_text`, by the symbols of its linker script.

use crate::ImageError;
use crate::kallsyms::Symbols;
use crate::vmlinux::Image;
use abi::manifest::Span;

const PAGE: u32 = 4096;

/// The parts of a kernel, to the byte.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// `[_stext, _etext)`.
    pub text: Span,
    /// `[_sinittext, _einittext)`.
    pub init_text: Span,
    /// `[__start_rodata, __end_rodata)`.
    pub rodata: Span,
    /// `[__start_ro_after_init, __end_ro_after_init)`.
    pub ro_after_init: Span,
    /// `_end`.
    pub image_end: u32,
    /// `entry_SYSCALL_64`.
    pub entry_syscall: u32,
}

impl Layout {
    /// Looks all parts up and checks that they are in order.
    ///
    /// # Errors
    /// `MissingSymbol`, also where a symbol lies outside the part it belongs to.
    pub fn find(image: &Image<'_>, symbols: &Symbols) -> Result<Self, ImageError> {
        let end = offset(image, symbols, "_end")?.ok_or(ImageError::MissingSymbol("_end"))?;
        let at = |name| match offset(image, symbols, name)? {
            Some(offset) if offset <= end => Ok(offset),
            _ => Err(ImageError::MissingSymbol(name)),
        };
        let span = |first, last| match (at(first)?, at(last)?) {
            (start, end) if start <= end => Ok(Span { start, end }),
            _ => Err(ImageError::MissingSymbol(last)),
        };
        let layout = Self {
            text: span("_stext", "_etext")?,
            init_text: span("_sinittext", "_einittext")?,
            rodata: span("__start_rodata", "__end_rodata")?,
            ro_after_init: span("__start_ro_after_init", "__end_ro_after_init")?,
            image_end: end,
            entry_syscall: at("entry_SYSCALL_64")?,
        };
        let (outer, inner) = (layout.rodata, layout.ro_after_init);
        if !layout.text.contains(layout.entry_syscall.into()) {
            Err(ImageError::MissingSymbol("entry_SYSCALL_64"))
        } else if inner.start < outer.start || outer.end < inner.end {
            Err(ImageError::MissingSymbol("__end_ro_after_init"))
        } else {
            Ok(layout)
        }
    }

    /// Whether code that is part of the kernel file runs at `offset`.
    pub const fn is_code(&self, offset: u32) -> bool {
        self.text.contains(offset as u64) || self.init_text.contains(offset as u64)
    }

    /// The pages that hold any byte of `span`, up to the end of the image.
    pub fn outward(&self, span: Span) -> Span {
        let end = span.end.checked_next_multiple_of(PAGE).unwrap_or(span.end);
        Span { start: span.start / PAGE * PAGE, end: end.min(self.image_end) }
    }

    /// The pages that hold nothing but bytes of `span`.
    pub fn inward(span: Span) -> Span {
        let end = span.end / PAGE * PAGE;
        let start = span.start.checked_next_multiple_of(PAGE).unwrap_or(end);
        Span { start: start.min(end), end }
    }
}

fn offset(
    image: &Image<'_>,
    symbols: &Symbols,
    name: &'static str,
) -> Result<Option<u32>, ImageError> {
    Ok(image.offset(symbols.required(name)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_keeps_order(a in any::<u32>(), b in any::<u32>(), more in any::<u32>()) {
            let span = Span { start: a.min(b), end: a.max(b) };
            let image_end = span.end.saturating_add(more);
            let empty = Span { start: 0, end: 0 };
            let layout = Layout {
                text: empty, init_text: empty, rodata: empty, ro_after_init: empty,
                image_end, entry_syscall: 0,
            };
            let outward = layout.outward(span);
            prop_assert!(outward.start <= span.start && span.end <= outward.end);
            prop_assert!(outward.end <= image_end);
            let inward = Layout::inward(span);
            prop_assert!(inward.start <= inward.end && inward.end <= span.end);
            prop_assert!(inward.length() == 0 || span.start <= inward.start);
            prop_assert!(inward.start.is_multiple_of(PAGE) && inward.end.is_multiple_of(PAGE));
        }
    }
}
