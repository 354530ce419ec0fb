//! Hypercall 14: what a request makes of each page.
//!
//! A page has a state, which is Ravelin's ([`integrity::state`]), and rights withheld from it, which
//! are the guest's. It allows what its state allows, less what is withheld. So a request replaces
//! what is withheld, and no request widens what the state allows:
//!
//! | page | request | result |
//! |---|---|---|
//! | immutable by an earlier request | any | refused |
//! | locked by Ravelin | no more than it allows now | the rest is withheld |
//! | | anything more | refused |
//! | unlocked code, given free | any | the rest is withheld |
//! | data | without EXEC | the rest is withheld: the page is never promoted |
//! | | EXEC without WRITE | `heki_exec`: `trust`: unlocked code; `verify`: promoted if it passes when it is executed; `deny`: refused |
//! | | EXEC and WRITE | `trust`, `verify`: nothing is withheld, and it is one or the other by promotion; `deny`: refused |

use crate::Refusal;
use crate::list::{List, Wanted};
use abi::policy::HekiExec;
use addr::{FrameRange, Gfn, GuestPhysical};
use integrity::Rights;
use integrity::state::{Page, PageState, View};

/// What the machine can enforce, and what the policy wants.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Pages can be executable and not readable.
    pub execute_only: bool,
    /// Execution can be withheld from the kernel alone.
    pub separates_execution: bool,
    /// Whether a request alone makes code.
    pub exec: HekiExec,
}

/// The guest's memory, as the hypervisor keeps it.
pub trait Gate {
    /// A frame of RAM; `None` if it is not the guest's.
    fn page(&self, frame: Gfn) -> Option<Page>;
    /// Enforces `page` on every frame of `run`, which had one and the same page before. Does not
    /// fail: [`protect`] asks only for frames of RAM, whose state it has seen.
    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page);
}

/// Judges the whole list, then applies it; `ram` are the guest's ranges of RAM, which do not overlap.
///
/// # Errors
/// Nothing was applied. [`Refusal::Unsupported`]: a right cannot be withheld here.
/// [`Refusal::Fault`]: a range touches no RAM, or does so in part and would withhold reading or
/// writing or be immutable, which is not enforced on devices. [`Refusal::NotPermitted`]: by the
/// table above.
pub fn protect(
    list: &List<'_>,
    ram: &[FrameRange<GuestPhysical>],
    rules: Rules,
    gate: &mut impl Gate,
) -> Result<(), Refusal> {
    for wanted in list.wanted() {
        rules.check(&wanted)?;
        let inside: u64 = parts(&wanted, ram).map(FrameRange::count).sum();
        let enforceable = wanted.rights.contains(Rights::READ | Rights::WRITE) && !wanted.immutable;
        if inside == 0 || (inside < wanted.frames.count() && !enforceable) {
            return Err(Refusal::Fault);
        }
        for frame in parts(&wanted, ram).flat_map(FrameRange::iter) {
            rules.combine(gate.page(frame).ok_or(Refusal::Fault)?, &wanted)?;
        }
    }
    for wanted in list.wanted() {
        for part in parts(&wanted, ram) {
            apply(part, &wanted, rules, gate);
        }
    }
    Ok(())
}

/// The parts of a range that are RAM.
fn parts(
    wanted: &Wanted,
    ram: &[FrameRange<GuestPhysical>],
) -> impl Iterator<Item = FrameRange<GuestPhysical>> {
    let frames = wanted.frames;
    ram.iter()
        .filter(move |range| range.overlaps(frames))
        .map(move |range| FrameRange::new(range.start.max(frames.start), range.end.min(frames.end)))
}

/// Sets a part run by run, as long as frames are alike.
fn apply(part: FrameRange<GuestPhysical>, wanted: &Wanted, rules: Rules, gate: &mut impl Gate) {
    let mut start = part.start;
    while start < part.end {
        let before = gate.page(start);
        let rest = FrameRange::new(start.plus(1), part.end);
        let end = rest.iter().find(|frame| gate.page(*frame) != before).unwrap_or(part.end);
        // It was judged, and nothing has changed since.
        if let Some(before) = before
            && let Ok(after) = rules.combine(before, wanted)
            && after != before
        {
            gate.set(FrameRange::new(start, end), after);
        }
        start = end;
    }
}

impl Rules {
    /// Whether what an entry withholds can be withheld at all.
    fn check(self, wanted: &Wanted) -> Result<(), Refusal> {
        // Without READ there can be EXEC alone, if that: a page that is written and not read does
        // not exist, and one without any right would look like one that is not there.
        let readable = wanted.rights.contains(Rights::READ)
            || (self.execute_only && wanted.rights == Rights::EXECUTE);
        let executable = wanted.rights.contains(Rights::EXECUTE) || self.separates_execution;
        if readable && executable { Ok(()) } else { Err(Refusal::Unsupported) }
    }

    /// What the request makes of a page, by the table of this module.
    fn combine(self, page: Page, wanted: &Wanted) -> Result<Page, Refusal> {
        let view = if self.separates_execution { View::Kernel } else { View::Single };
        if page.immutable || (page.state.is_locked() && !page.allows(view).contains(wanted.rights))
        {
            return Err(Refusal::NotPermitted);
        }
        let writes = wanted.rights.contains(Rights::WRITE);
        let state = match (page.state, wanted.rights.contains(Rights::EXECUTE), self.exec) {
            (PageState::Own | PageState::Published, ..) => return Err(Refusal::Fault),
            (PageState::Data, true, HekiExec::Deny) => return Err(Refusal::NotPermitted),
            (PageState::Data, true, HekiExec::Trust) if !writes => PageState::Code,
            (state, ..) => state,
        };
        Ok(Page { state, withheld: wanted.rights.complement(), immutable: wanted.immutable })
    }
}

#[cfg(test)]
mod tests;
