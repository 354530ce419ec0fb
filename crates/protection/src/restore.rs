//! A saved state takes the place of the one in force: of a VM whose kernel has just been locked, or of
//! one that goes back to an earlier part of its life.
//!
//! It can only narrow. Whether a page is data or code is not taken over: that is a verdict on what it
//! held, which this memory need not hold, and is given anew when the page is written or executed.

use crate::Settings;
use crate::compare::{Difference, page_is_weaker, weaker};
use crate::record::Saved;
use abi::hypercall::SupervisorMode;
use addr::{FrameRange, Gfn, GuestPhysical};
use integrity::Rights;
use integrity::state::{Page, PageState};

/// The guest's memory, as the hypervisor keeps it.
pub trait Gate {
    /// What is in force for a frame; `None` if it has no state.
    fn page(&self, frame: Gfn) -> Option<Page>;
    /// Whether the frame is RAM of the guest; any other stays as it is.
    fn is_ram(&self, frame: Gfn) -> bool;
    /// Enforces `page` on every frame of `run`.
    fn set(&mut self, run: FrameRange<GuestPhysical>, page: Page);
}

/// Which pages are restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those that are locked now. They hold the kernel's text and read-only data, which are the
    /// same on every machine that has this kernel at this place.
    Locked,
    /// All, for a guest whose memory is what it was.
    Whole,
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
    /// A control register, by number, has another value than the guest had pinned.
    #[error("CR{0} is not as the guest had it pinned")]
    Register(u8),
}

/// Judges the whole state, then applies its pages in `scope`. Answers how many have changed. What
/// takes force of the settings is the caller's part.
///
/// # Errors
/// See [`Refusal`]; nothing was applied.
pub fn restore(
    saved: &Saved<'_>,
    now: &Settings,
    scope: Scope,
    gate: &mut impl Gate,
) -> Result<u64, Refusal> {
    if let Some(difference) = weaker(&saved.settings, now) {
        return Err(difference.into());
    }
    for (run, page) in saved.runs() {
        for frame in run.iter() {
            judge(page, frame, now, scope, gate)?;
        }
    }
    let mut changed = 0;
    for (run, page) in saved.runs() {
        let change = |gate: &_, frame: &Gfn| change(page, *frame, scope, gate);
        let mut rest = run;
        while let Some(start) = rest.iter().find(|frame| change(gate, frame).is_some()) {
            let page = change(gate, &start);
            rest = FrameRange::new(start, rest.end);
            let end = rest.iter().find(|frame| change(gate, frame) != page).unwrap_or(rest.end);
            if let Some(page) = page {
                gate.set(FrameRange::new(start, end), page);
                changed += end.raw() - start.raw();
            }
            rest = FrameRange::new(end, rest.end);
        }
    }
    Ok(changed)
}

/// What the page becomes that was `saved`, if that is another than it is.
fn change(saved: Page, frame: Gfn, scope: Scope, gate: &impl Gate) -> Option<Page> {
    let now = gate.page(frame)?;
    let judged_anew =
        [saved, now].iter().all(|it| matches!(it.state, PageState::Data | PageState::Code));
    let page = if judged_anew { saved.with_state(now.state) } else { saved };
    let concerned = scope == Scope::Whole || now.state.is_locked();
    (concerned && page != now).then_some(page)
}

fn judge(
    saved: Page,
    frame: Gfn,
    now: &Settings,
    scope: Scope,
    gate: &impl Gate,
) -> Result<(), Refusal> {
    let before = gate.page(frame).ok_or(Refusal::Page(frame))?;
    let Some(page) = change(saved, frame, scope, gate) else { return Ok(()) };
    let unread = page.withholds(Rights::READ) && !now.execute_only;
    let unrun = page.withholds(Rights::EXECUTE) && now.separation == SupervisorMode::Off;
    if unread || unrun {
        Err(Refusal::Unsupported(frame))
    } else if !gate.is_ram(frame) || page_is_weaker(page, before, now.stage > 0) {
        Err(Refusal::Page(frame))
    } else {
        Ok(())
    }
}
