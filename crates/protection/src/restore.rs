//! A saved state takes the place of the one in force: of a VM that has been given its memory back
//! and has not run since.
//!
//! It can only narrow. What is in force there is what a VM of that policy starts with, or what an
//! earlier part of its life has brought it to.

use crate::Settings;
use crate::compare::{Difference, page_is_weaker, weaker};
use crate::record::Saved;
use abi::hypercall::SupervisorMode;
use addr::{FrameRange, Gfn, GuestPhysical};
use integrity::Rights;
use integrity::state::Page;

/// The guest's memory, as the hypervisor keeps it.
pub trait Gate {
    /// What is in force for a frame; `None` if it has no state.
    fn page(&self, frame: Gfn) -> Option<Page>;
    /// Enforces `page` on every frame of `run`.
    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page);
}

/// Why a saved state is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is weaker than what is in force, or of something else.
    #[error("{0}")]
    Weaker(#[from] Difference),
    /// A page allows more than it does now.
    #[error("the page at {:#x} allows more than it does now", .0.start().raw())]
    Page(Gfn),
    /// It withholds what this machine cannot withhold.
    #[error("this machine cannot enforce it: the page at {:#x}", .0.start().raw())]
    Unsupported(Gfn),
}

/// Judges the whole state, then applies its pages and answers the settings that take the place of
/// `now`, those of the machine apart.
///
/// # Errors
/// See [`Refusal`]; nothing was applied.
pub fn restore(
    saved: &Saved<'_>,
    now: &Settings,
    gate: &mut impl Gate,
) -> Result<Settings, Refusal> {
    if let Some(difference) = weaker(&saved.settings, now) {
        return Err(difference.into());
    }
    for (run, page) in saved.runs() {
        let unread = page.withholds(Rights::READ) && !now.execute_only;
        let unrun = page.withholds(Rights::EXECUTE) && now.separation == SupervisorMode::Off;
        if unread || unrun {
            return Err(Refusal::Unsupported(run.start));
        }
        let locked = now.stage > 0;
        let stronger =
            |frame: &Gfn| gate.page(*frame).is_some_and(|now| !page_is_weaker(page, now, locked));
        if let Some(frame) = run.iter().find(|frame| !stronger(frame)) {
            return Err(Refusal::Page(frame));
        }
    }
    for (run, page) in saved.runs() {
        let mut rest = run;
        while !rest.is_empty() {
            let differs = |frame: &Gfn| gate.page(*frame) != Some(page);
            let start = rest.iter().find(differs).unwrap_or(rest.end);
            let end = FrameRange::new(start, rest.end).iter().find(|frame| !differs(frame));
            rest = FrameRange::new(start, end.unwrap_or(rest.end));
            if !rest.is_empty() {
                gate.set(rest, page);
            }
            rest = FrameRange::new(rest.end, run.end);
        }
    }
    let Settings { separation, execute_only, .. } = *now;
    Ok(Settings { separation, execute_only, ..saved.settings })
}
