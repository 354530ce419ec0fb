//! End-to-end tests of saved protection states that are given to another machine: what was asked for
//! in one life of a kernel is in force in the next one, and what is damaged or weaker is refused.

use crate::boot::Report;
use crate::build::On;
use crate::e2e::{Case, Place, case, protected, quietly};
use crate::packages::Flavour::Cloud;
use crate::requests::{ATTACKS, protects};
use crate::shell::guest_folder;
use abi::policy::{HekiExec, Patching, Policy};
use anyhow::{Context, bail, ensure};
use integrity::pins::MsrPins;
use integrity::state::{Page, PageState};
use protection::Settings;
use protection::record::{Saved, save};
use ravelin::events::Body;
use ravelin::machine::{Ended, Machine, Protection};

/// Every test of this file; `full`: every way to be refused.
pub fn cases(full: bool) -> Vec<Case> {
    let mut cases = vec![
        case("restore", restored),
        case("refuse-damaged-state", |name, place| {
            let mut state = made_up();
            if let Some(byte) = state.get_mut(40) {
                *byte ^= 1;
            }
            starts_nothing(
                name,
                &given(name, place, "poweroff", &state)?,
                "the digest does not match",
            )
        }),
    ];
    if full {
        cases.push(case("restore-refused", refused));
    }
    cases
}

/// Lets a kernel ask.
fn policy() -> Policy {
    Policy { announce: true, ..Policy::default() }
}

/// The same, and a little stronger: what a state brings with it.
fn stronger() -> Policy {
    Policy { heki_exec: HekiExec::Deny, ..policy() }
}

/// A machine whose kernel is at the same place each time. (Two CPUs take Bochs twice as long.)
fn machine(place: &Place<'_>, job: &str, policy: Policy) -> anyhow::Result<Machine> {
    let mut machine = protected(place, Cloud, job, policy)?;
    machine.append += " nokaslr norandmaps";
    machine.cpus = if place.on == On::Qemu { 2 } else { 1 };
    Ok(machine)
}

/// The same with a state to restore.
fn given(name: &str, place: &Place<'_>, job: &str, state: &[u8]) -> anyhow::Result<Machine> {
    let path = guest_folder("logs")?.join(format!("{name}.state"));
    std::fs::write(&path, state)?;
    let mut machine = machine(place, job, policy())?;
    if let Protection::Ravelin { restore, .. } = &mut machine.protection {
        *restore = Some(path);
    }
    Ok(machine)
}

/// A life in which the kernel asks for protection, and the state that is saved in the end.
fn first_life(name: &str, place: &Place<'_>) -> anyhow::Result<Vec<u8>> {
    let report = quietly(&format!("{name}-before"), &machine(place, "restore:ask", stronger())?)?;
    protects(&report, 0, 0, ATTACKS.len())?;
    let mut states = report.states();
    states.pop().context("no state was saved")
}

/// In another life what belongs to the kernel itself is back when it is locked, the rest when it
/// says so; and then the state is as it was.
fn restored(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let state = first_life(name, place)?;
    let report = quietly(name, &given(name, place, "restore:back", &state)?)?;
    protects(&report, 3, 0, ATTACKS.len())?;
    let again = report.states().pop().context("no state was saved")?;
    let (before, after) = (Saved::parse(&state)?, Saved::parse(&again)?);
    ensure!(before.settings == after.settings, "the settings differ: {:x?}", after.settings);
    let withheld = |saved: &Saved<'_>| -> Vec<_> {
        saved.runs().filter(|(_, page)| !page.withheld.is_empty() || page.immutable).collect()
    };
    ensure!(!withheld(&before).is_empty() && withheld(&before) == withheld(&after), "other pages");
    Ok(())
}

/// A state with other settings, and other pages in place of some.
fn changed(
    state: &[u8],
    settings: impl Fn(&mut Settings),
    page: impl Fn(u64, Page) -> Page,
) -> anyhow::Result<Vec<u8>> {
    let saved = Saved::parse(state)?;
    let mut pages = Vec::new();
    for (run, before) in saved.runs() {
        pages.extend(run.iter().map(|frame| page(frame.raw(), before)));
    }
    let mut other = saved.settings;
    settings(&mut other);
    let mut bytes = Vec::new();
    let page = |frame: addr::Gfn| {
        let index = usize::try_from(frame.raw()).unwrap_or(usize::MAX);
        pages.get(index).copied().unwrap_or(Page::new(PageState::Data))
    };
    save(&other, page, |piece| bytes.extend_from_slice(piece))?;
    Ok(bytes)
}

/// Everything that is weaker, or of something else, with what is said of it.
fn refused(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let state = first_life(name, place)?;
    let same = |_, page| page;
    let refuses = |what: &str, state: Vec<u8>, words: &str| {
        let name = format!("{name}-{what}");
        let machine = given(&name, place, "restore:back", &state)?;
        starts_nothing(&name, &machine, words)
    };
    // What is known before the kernel starts.
    let text = b"This is no state.".to_vec();
    refuses("text", text, "not the protection state of a VM")?;
    let short = state.get(..state.len() / 2).unwrap_or_default().to_vec();
    refuses("short", short, "it is cut short")?;
    let other = |change: &dyn Fn(&mut Settings)| changed(&state, change, same);
    refuses("kernel", other(&|it| it.kernel_digest ^= 1)?, "it is of another kernel")?;
    let mut machine = given(&format!("{name}-policy"), place, "restore:back", &state)?;
    if let Protection::Ravelin { policy, .. } = &mut machine.protection {
        policy.patching = Patching { kprobes: false, ..policy.patching };
    }
    starts_nothing(&format!("{name}-policy"), &machine, "the policy allows more")?;
    let mut machine = given(&format!("{name}-memory"), place, "restore:back", &state)?;
    machine.memory -= 64 << 20;
    starts_nothing(&format!("{name}-memory"), &machine, "another size of memory")?;
    let stage = other(&|it| it.stage = 1)?;
    refuses("stage", stage, "the kernel is locked less far")?;

    // What is known when it is locked.
    let stops = |what: &str, state: Vec<u8>, words: &str| {
        let name = format!("{name}-{what}");
        let report = quietly(&name, &given(&name, place, "restore:back", &state)?)?;
        ensure!(report.words.is_empty(), "the kernel went on, see {}", report.log.display());
        says(&report, words)
    };
    let moved = other(&|it| it.kernel.iter_mut().for_each(|kernel| kernel.gpa += 2 << 20))?;
    stops("moved", moved, "of one at another place")?;
    let released = |_, page: Page| {
        let text = page.state == PageState::LockedCode;
        if text { Page::new(PageState::Released) } else { page }
    };
    stops("released", changed(&state, |_| {}, released)?, "allows more than it does now")?;
    stops("register", other(&|it| it.requested[1].must_be_one |= 1)?, "CR4 is not as")?;
    let moved_entry = other(&|it| {
        if let Some(pins) = it.vcpus.iter_mut().flatten().last() {
            let mut values = pins.msrs.values();
            values.iter_mut().for_each(|value| *value ^= 1 << 20);
            pins.msrs = MsrPins::from_values(values);
        }
    })?;
    stops("entry", moved_entry, "has a register that is not pinned")?;

    // What is known when the kernel asks: it is told, and nothing has changed.
    let wide = |frame, page| if frame == 0x51 { Page::new(PageState::Released) } else { page };
    let name = format!("{name}-asked");
    let state = changed(&state, |_| {}, wide)?;
    let report = quietly(&name, &given(&name, place, "restore:back", &state)?)?;
    protects(&report, 3, 1, 3)?;
    let said = |text: &str| text.contains("the page at 0x51000 allows more than it does now");
    let mut lines = report.records.iter().filter_map(|record| match &record.body {
        Body::Log(text) => Some(text),
        _ => None,
    });
    ensure!(lines.any(|text| said(text)), "the hypervisor does not say why");
    Ok(())
}

/// Checks that the kernel was not started, and why.
fn starts_nothing(name: &str, machine: &Machine, words: &str) -> anyhow::Result<()> {
    let report = quietly(name, machine)?;
    let console = std::fs::read_to_string(&report.log)?;
    let started = !report.words.is_empty() || console.contains("Linux version");
    ensure!(!started, "the kernel was started, see {}", report.log.display());
    says(&report, words)
}

fn says(report: &Report, words: &str) -> anyhow::Result<()> {
    match &report.outcome.ended {
        Ended::Failed(reason) if reason.contains(words) => Ok(()),
        ended => bail!("it ended with {ended:?}, not with a message about `{words}`"),
    }
}

/// A state of no machine that there is.
fn made_up() -> Vec<u8> {
    let free = integrity::pins::ControlPin { must_be_one: 0, must_be_zero: 0 };
    let settings = Settings {
        policy: stronger(),
        stage: 2,
        separation: abi::hypercall::SupervisorMode::Views,
        execute_only: false,
        frames: 7,
        kernel_digest: 0,
        kernel: Some(protection::Kernel { gva: 0, gpa: 0 }),
        requested: [free; 2],
        vcpus: [None; abi::MAX_CPUS],
    };
    let mut bytes = Vec::new();
    // So few pages are few runs.
    let _ = save(&settings, |_| Page::new(PageState::Data), |it| bytes.extend_from_slice(it));
    bytes
}
