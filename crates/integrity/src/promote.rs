//! Whether a page may become code after the lock.
//!
//! The decision stands behind [`CodeAuthority`], so that an authority which authenticates code
//! can take the place of the policy's plain answer. The caller has frozen the pages (no CPU can
//! write them) before it asks, and promotes exactly the pages it asked about.

use crate::Rights;
use abi::policy::{Modules, Policy};
use addr::Gva;
use core::ops::Range;

pub mod jit;

/// Where Linux puts modules and other generated kernel code, as virtual addresses, in a kernel
/// built with KASLR (Linux, `Documentation/arch/x86/x86_64/mm.rst`).
pub const MODULE_RANGE: Range<u64> = 0xffff_ffff_c000_0000..0xffff_ffff_ff00_0000;

/// Authority number of code that nobody vouched for.
pub const UNAUTHENTICATED: u32 = 0;

/// Pages that are to become code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Address of the first byte.
    pub start: Gva,
    /// Length in bytes, not 0.
    pub length: u64,
    /// What the guest's own tables allow at these addresses, on every page.
    pub mapped: Rights,
    /// What the guest's own tables allow through any alias, on any page.
    pub aliases: Rights,
    /// Whether they lie in a mapping for BPF programs ([`jit::is_bpf`]).
    pub bpf: bool,
}

impl Candidate {
    /// Whether all of it lies in [`MODULE_RANGE`].
    pub const fn in_module_range(&self) -> bool {
        let start = self.start.raw();
        self.length > 0
            && MODULE_RANGE.start <= start
            && start < MODULE_RANGE.end
            && self.length <= MODULE_RANGE.end - start
    }
}

/// The answer to a [`Candidate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// It may become code.
    Promote {
        /// Who vouches for it; [`UNAUTHENTICATED`] if nobody.
        authority: u32,
    },
    /// It may not.
    Refuse(Refusal),
}

/// Why pages may not become code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy lets nothing become code.
    Policy,
    /// The policy lets BPF's compiler make no code.
    Jit,
    /// Not, or not entirely, where kernel modules live.
    OutsideModuleRange,
    /// The guest's own tables do not make it executable.
    NotExecutable,
    /// Some alias can write it.
    Writable,
}

/// Who decides what becomes code.
pub trait CodeAuthority {
    /// Judges one candidate.
    fn judge(&self, candidate: &Candidate) -> Authority;
}

/// The policy alone: it looks at the mapping, and at the bytes only where BPF's compiler is denied.
impl CodeAuthority for Policy {
    fn judge(&self, candidate: &Candidate) -> Authority {
        if self.modules == Modules::Deny {
            Authority::Refuse(Refusal::Policy)
        } else if candidate.bpf && !self.jit {
            Authority::Refuse(Refusal::Jit)
        } else if !candidate.in_module_range() {
            Authority::Refuse(Refusal::OutsideModuleRange)
        } else if !candidate.mapped.contains(Rights::EXECUTE) {
            Authority::Refuse(Refusal::NotExecutable)
        } else if (candidate.mapped | candidate.aliases).contains(Rights::WRITE) {
            Authority::Refuse(Refusal::Writable)
        } else {
            Authority::Promote { authority: UNAUTHENTICATED }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(start: u64, length: u64) -> Candidate {
        let mapped = Rights::READ | Rights::EXECUTE;
        Candidate { start: Gva::new(start), length, mapped, aliases: mapped, bpf: false }
    }

    fn standard() -> Policy {
        Policy::default()
    }

    #[test]
    fn the_module_range_has_sharp_ends() {
        let Range { start, end } = MODULE_RANGE;
        let refused = Authority::Refuse(Refusal::OutsideModuleRange);
        let promoted = Authority::Promote { authority: UNAUTHENTICATED };
        for (first, length, expected) in [
            (start, 0x1000, promoted),
            (start, end - start, promoted),
            (end - 0x1000, 0x1000, promoted),
            (start, 0, refused),
            (start - 0x1000, 0x1000, refused),
            (start - 0x1000, 0x2000, refused),
            (end - 0x1000, 0x1001, refused),
            (end, 0x1000, refused),
            (u64::MAX, u64::MAX, refused),
            (start, u64::MAX, refused),
            (0, u64::MAX, refused),
        ] {
            assert_eq!(standard().judge(&candidate(first, length)), expected);
        }
    }

    #[test]
    fn every_combination_of_rights() {
        for mapped in (0..8).map(Rights::from_bits_truncate) {
            for aliases in (0..8).map(Rights::from_bits_truncate) {
                let candidate =
                    Candidate { mapped, aliases, ..candidate(MODULE_RANGE.start, 0x1000) };
                let granted = matches!(standard().judge(&candidate), Authority::Promote { .. });
                let legitimate = mapped.contains(Rights::EXECUTE)
                    && !mapped.contains(Rights::WRITE)
                    && !aliases.contains(Rights::WRITE);
                assert_eq!(granted, legitimate);
                let strict = Policy { modules: Modules::Deny, ..standard() };
                assert_eq!(strict.judge(&candidate), Authority::Refuse(Refusal::Policy));
            }
        }
    }

    #[test]
    fn compiled_programs_go_by_a_key_of_their_own() {
        let bpf = Candidate { bpf: true, ..candidate(MODULE_RANGE.start, 0x1000) };
        assert_eq!(standard().judge(&bpf), Authority::Promote { authority: UNAUTHENTICATED });
        let denied = Policy { jit: false, ..standard() };
        assert_eq!(denied.judge(&bpf), Authority::Refuse(Refusal::Jit));
        let module = Candidate { bpf: false, ..bpf };
        assert_eq!(denied.judge(&module), Authority::Promote { authority: UNAUTHENTICATED });
    }
}
