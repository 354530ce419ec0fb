//! `ravelin state`: a VM's protection state, asked for, shown and compared.

use crate::args::StateCommand;
use abi::hypercall::SAVE_STATE;
use abi::hypercall::errno::{E2BIG, EALREADY, ENODEV};
use addr::Gfn;
use anyhow::{Context, bail};
use hypercall::Ravelin;
use integrity::Rights;
use integrity::pins::{ControlPin, Pins};
use integrity::state::{Page, PageState};
use protection::compare::{first_weaker_page, weaker};
use protection::record::Saved;
use protection::restore::Refusal;
use ravelin::table::table;
use ravelin::{policy, state};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

/// Runs the command.
///
/// # Errors
/// A file cannot be read or is no state, or there is no Ravelin here.
pub fn run(command: &StateCommand) -> anyhow::Result<ExitCode> {
    match command {
        StateCommand::Save => save(),
        StateCommand::Show { file, json } => {
            let bytes = state::read(file)?;
            let saved = state::parse(file, &bytes)?;
            if *json {
                anstream::println!("{}", serde_json::to_string_pretty(&as_json(&saved))?);
            } else {
                print(&saved);
            }
            Ok(ExitCode::SUCCESS)
        }
        StateCommand::Compare { file, with } => compare(file, with),
    }
}

/// In a guest: has the state written to the host.
fn save() -> anyhow::Result<ExitCode> {
    let ravelin = Ravelin::detect()?
        .context("no Ravelin answers: this machine is not a guest of it (see `ravelin run`)")?;
    match ravelin.call(SAVE_STATE, 0).wrapping_neg() {
        0 => anstream::println!("the state was written to the host's event channel"),
        EALREADY => anstream::println!("nothing has changed since it was last written"),
        E2BIG => bail!("the pages' states change too often from page to page to be written"),
        ENODEV => bail!("this machine's event channel takes text alone: start it by `ravelin run`"),
        _ => bail!("this Ravelin writes no states: it is of an older version"),
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(file: &Path, with: &Path) -> anyhow::Result<ExitCode> {
    let (bytes, other_bytes) = (state::read(file)?, state::read(with)?);
    let (saved, other) = (state::parse(file, &bytes)?, state::parse(with, &other_bytes)?);
    let pages: Vec<Page> =
        other.runs().flat_map(|(run, page)| run.iter().map(move |_| page)).collect();
    let page = |frame: Gfn| pages.get(usize::try_from(frame.raw()).ok()?).copied();
    let locked = other.settings.stage > 0;
    let refusal = weaker(&saved.settings, &other.settings)
        .map(Refusal::from)
        .or_else(|| first_weaker_page(&saved, page, locked).map(Refusal::Page));
    match refusal {
        None => {
            anstream::println!("nothing is weaker");
            Ok(ExitCode::SUCCESS)
        }
        Some(refusal) => {
            anstream::println!("weaker, or not to be compared: {refusal}");
            Ok(ExitCode::FAILURE)
        }
    }
}

const fn name(state: PageState) -> &'static str {
    match state {
        PageState::Data => "data",
        PageState::Code => "code",
        PageState::LockedCode => "locked code",
        PageState::LockedReadOnly => "locked read-only",
        PageState::Released => "released",
        PageState::Own => "the hypervisor's",
        PageState::Published => "published by the hypervisor",
    }
}

fn letters(rights: Rights) -> String {
    let letter = |right, letter| if rights.contains(right) { letter } else { '-' };
    [letter(Rights::READ, 'r'), letter(Rights::WRITE, 'w'), letter(Rights::EXECUTE, 'x')]
        .iter()
        .collect()
}

/// Pages by what they are: state, withheld rights, immutable.
fn kinds(saved: &Saved<'_>) -> BTreeMap<u8, (Page, u64)> {
    let mut kinds = BTreeMap::new();
    for (run, page) in saved.runs() {
        kinds.entry(u8::from(page)).or_insert((page, 0)).1 += run.count();
    }
    kinds
}

fn stage(saved: &Saved<'_>) -> &'static str {
    match saved.settings.stage {
        0 => "no",
        1 => "text",
        _ => "whole",
    }
}

fn pin(pin: ControlPin) -> String {
    format!("{:#x} stay 1, {:#x} stay 0", pin.must_be_one, pin.must_be_zero)
}

/// The pins of each vCPU that has some.
fn vcpus<'a>(saved: &'a Saved<'_>) -> impl Iterator<Item = (usize, &'a Pins)> {
    let all = saved.settings.vcpus.iter().enumerate();
    all.filter_map(|(index, pins)| Some((index, pins.as_ref()?)))
}

fn print(saved: &Saved<'_>) {
    let settings = &saved.settings;
    let mut rows = table(["protection", ""]);
    rows.add_row(["kernel locked", stage(saved)]);
    if let Some(kernel) = settings.kernel {
        rows.add_row(["kernel at", &format!("{:#x}, physical {:#x}", kernel.gva, kernel.gpa)]);
    }
    rows.add_row(["supervisor_exec", settings.separation.name()]);
    for (register, requested) in ["CR0", "CR4"].into_iter().zip(settings.requested) {
        rows.add_row([format!("{register}, as requested"), pin(requested)]);
    }
    for (index, pins) in vcpus(saved) {
        rows.add_row([format!("vCPU {index}, CR0"), pin(pins.cr0)]);
        rows.add_row([format!("vCPU {index}, CR4"), pin(pins.cr4)]);
        rows.add_row([format!("vCPU {index}, EFER"), pin(pins.efer)]);
    }
    let mut pages = table(["pages", "state", "withheld", "immutable"]);
    for (page, count) in kinds(saved).values() {
        let immutable = if page.immutable { "yes" } else { "" };
        pages.add_row([&count.to_string(), name(page.state), &letters(page.withheld), immutable]);
    }
    anstream::println!("{rows}\n{pages}\n{}", policy::to_toml(&settings.policy).trim_end());
}

fn as_json(saved: &Saved<'_>) -> Value {
    let settings = &saved.settings;
    let hex = |value: u64| format!("{value:#x}");
    let pin =
        |pin: ControlPin| json!({"ones": hex(pin.must_be_one), "zeros": hex(pin.must_be_zero)});
    let runs = saved.runs().map(|(run, page)| {
        json!({
            "gpa": hex(run.start.start().raw()),
            "pages": run.count(),
            "state": name(page.state),
            "withheld": letters(page.withheld),
            "immutable": page.immutable,
        })
    });
    let vcpus = vcpus(saved).map(|(index, pins)| {
        json!({
            "vcpu": index,
            "cr0": pin(pins.cr0),
            "cr4": pin(pins.cr4),
            "efer": pin(pins.efer),
            "msrs": pins.msrs.values().map(hex),
            "gdtr": hex(pins.gdtr.base),
            "idtr": hex(pins.idtr.base),
            "ldtr": pins.ldtr.selector,
            "tr": pins.tr.selector,
        })
    });
    json!({
        "locked": stage(saved),
        "kernel": settings.kernel.map(|it| json!({"gva": hex(it.gva), "gpa": hex(it.gpa)})),
        "kernel_digest": hex(settings.kernel_digest),
        "supervisor_exec": settings.separation.name(),
        "execute_only": settings.execute_only,
        "policy": policy::to_toml(&settings.policy),
        "requested": { "cr0": pin(settings.requested[0]), "cr4": pin(settings.requested[1]) },
        "vcpus": vcpus.collect::<Vec<_>>(),
        "runs": runs.collect::<Vec<_>>(),
    })
}
