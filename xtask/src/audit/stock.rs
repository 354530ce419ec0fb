//! A stock kernel of Debian 13 with default options: what the audit finds is what the kernel's own
//! checker (`CONFIG_DEBUG_WX`) complained of when it started its first process, which is nothing; and
//! what each frame can be used for is what QEMU's walk of the same page tables says.

use super::idle::when_idle;
use super::{Audit, Dump};
use crate::apt::Apt;
use crate::boot;
use crate::build::On;
use crate::e2e::{Case, Place, case};
use crate::guest_image::initramfs;
use crate::packages::{self, Flavour, kernel};
use crate::shell::guest_folder;
use addr::Gpa;
use anyhow::{Context, ensure};
use paging::Level;
use ravelin::dump_file::DumpFile;
use ravelin::machine::Protection;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// The release of Debian; its kernel is a 6.12.
const SUITE: &str = "trixie";

/// The cases: the usual CPU, and if `full` one on which the kernel isolates its page tables.
pub fn cases(full: bool, install: bool) -> impl Iterator<Item = Case> {
    let on = |name: &str, cpu: Option<&'static str>| {
        let run = move |name: &str, place: &Place<'_>| agrees(name, place, cpu, install);
        Case { on: &[On::Qemu], ..case(name, run) }
    };
    let isolated = full.then(|| on("audit-debian-13-isolated", Some("Skylake-Client-v1")));
    [on("audit-debian-13", None)].into_iter().chain(isolated)
}

fn agrees(name: &str, place: &Place<'_>, cpu: Option<&str>, install: bool) -> anyhow::Result<()> {
    packages::install(&["debian-archive-keyring"], install)?;
    let kernel = kernel(&Apt::of(SUITE)?, Flavour::Generic)?;
    // Without a module, which would take this kernel's headers.
    let initrd = guest_folder("initramfs")?.join(format!("{}.cpio", kernel.release));
    ravelin::cache::write_atomically(&initrd, &initramfs(&place.built.init, None)?)?;
    let emulator = place.built.emulator(place.on)?;
    let mut machine = boot::machine(emulator, &kernel.image, &initrd, "idle", Protection::Bare);
    machine.memory = 512 << 20;
    machine.cpu = cpu.map(str::to_owned);
    let path = guest_folder("logs")?.join(format!("{name}.dump"));
    let mut leaves = String::new();
    let report = when_idle(name, machine, |monitor| {
        monitor.stop_in_kernel()?;
        leaves = monitor.leaves()?;
        monitor.dump(false, &path)
    })?;
    let log = std::fs::read_to_string(&report.log)?;
    ensure!(log.contains("page tables isolation: enabled") == cpu.is_some(), "isolated or not");
    let complaints = complaints(&log).context("the kernel has not checked its page tables")?;
    let found = Audit::of(place, &path).run(Some(i32::from(complaints > 0)))?;
    ensure!(found["kernel"] == json!(kernel.release), "it took the kernel for {}", found["kernel"]);
    let ours = writable_and_executable(&found)?;
    ensure!(ours == complaints, "{ours} pages found, {complaints} by the kernel: {found}");
    same_rights(&Dump::open(DumpFile::open(&path)?)?, &leaves, &found)?;
    Ok(std::fs::remove_file(&path)?)
}

/// How many pages the kernel found writable and executable when it checked its own page tables. With
/// isolated ones it goes on with those of user mode, of which it speaks in a second line.
fn complaints(log: &str) -> Option<u64> {
    let said = log.lines().find_map(|line| line.split_once("x86/mm: Checked W+X mappings: "))?.1;
    if said.starts_with("passed") {
        return Some(0);
    }
    said.strip_prefix("FAILED, ")?.split(' ').next()?.parse().ok()
}

/// How many pages the audit found writable and executable, each through one mapping. The kernel looks
/// at each by itself, so whatever takes two is an error here.
fn writable_and_executable(found: &Value) -> anyhow::Result<u64> {
    let list = |name: &str| found[name].as_array().with_context(|| format!("no {name}"));
    let mut single = list("outside")?.clone();
    for finding in list("findings")? {
        let mappings = finding["mappings"].as_array().context("no mappings")?;
        let wx = mappings.iter().filter(|mapping| mapping["rights"] == json!("rwx"));
        let before = single.len();
        single.extend(wx.cloned());
        ensure!(single.len() > before, "no single mapping: {finding}");
    }
    ensure!(*list("open_to_processes")? == [] as [Value; 0], "open: {found}");
    Ok(single.iter().filter_map(|mapping| mapping["pages"].as_u64()).sum())
}

/// Holds the number of leaves, of frames by what all mappings together allow, and of those that are code
/// and also mapped as data, against QEMU's list of leaves. That has the rights in the leaves only; in the kernel half Linux restricts nothing above.
fn same_rights(dump: &Dump, leaves: &str, found: &Value) -> anyhow::Result<()> {
    const KERNEL_HALF: u64 = 1 << 63;
    const EXECUTE: u8 = 4;
    let mut counts = [0_u64; 2];
    let mut frames: HashMap<u64, (u8, bool)> = HashMap::new();
    for line in leaves.lines() {
        let Some((gva, gpa, flags)) = leaf(line) else { continue };
        if gva & KERNEL_HALF == 0 {
            continue;
        }
        let large = flags.contains('P');
        counts[usize::from(large)] += 1;
        let level = if large { Level::Page2M } else { Level::Page4K };
        let write = u8::from(flags.contains('W')) << 1;
        let execute = if flags.contains('X') { 0 } else { EXECUTE };
        for page in 0..level.frames() {
            let at = gpa.plus(page << addr::PAGE_SHIFT);
            if dump.memory.offset_of(at, addr::PAGE_SIZE).is_some() {
                let (rights, data) = frames.entry(at.raw()).or_default();
                *rights |= 1 | write | execute;
                *data |= execute == 0;
            }
        }
    }
    let ours = &found["leaves"];
    ensure!(
        *ours == json!({ "4k": counts[0], "2m": counts[1], "1g": 0 }),
        "{counts:?}, not {ours}"
    );
    let mut theirs: BTreeMap<&str, u64> = BTreeMap::new();
    for (rights, _) in frames.values() {
        let name = ["---", "r--", "-w-", "rw-", "--x", "r-x", "-wx", "rwx"][usize::from(*rights)];
        *theirs.entry(name).or_default() += 1;
    }
    let mut ours: BTreeMap<&str, u64> = BTreeMap::new();
    for row in found["rights"].as_array().context("no rights")? {
        let count = |key: &str| row[key].as_u64().context("no number");
        let all = count("no_process")? + count("processes_read")? + count("processes_write")?;
        ours.insert(row["kernel"].as_str().context("no name")?, all);
    }
    ours.remove("---");
    ensure!(ours == theirs, "frames by rights: {ours:?}; by QEMU: {theirs:?}");
    let as_data = frames.values().filter(|(rights, data)| rights & EXECUTE != 0 && *data).count();
    let ours = &found["code"]["also_data"];
    ensure!(*ours == json!(as_data), "code that is mapped as data: {ours}; by QEMU: {as_data}");
    Ok(())
}

/// Address, physical address and flags in `ffff888000000000: 0000000000000000 XG-DA---W`.
fn leaf(line: &str) -> Option<(u64, Gpa, &str)> {
    let (gva, rest) = line.split_once(": ")?;
    let (gpa, flags) = rest.trim_end().split_once(' ')?;
    let number = |digits| u64::from_str_radix(digits, 16).ok();
    Some((number(gva)?, Gpa::new(number(gpa)?), flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_words_are_understood() {
        let passed = "[ 2.2] x86/mm: Checked W+X mappings: passed, no W+X pages found.";
        assert_eq!(complaints(&format!("x\n{passed}\n{passed}")), Some(0));
        assert_eq!(
            complaints("x86/mm: Checked W+X mappings: FAILED, 17 W+X pages found."),
            Some(17)
        );
        assert_eq!(complaints("x86/mm: Memory block size: 128MB"), None);
    }

    #[test]
    fn leaves_are_read() {
        let line = "ffff8f8a80001000: 0000000000001000 XG-DA---W\r";
        assert_eq!(leaf(line), Some((0xffff_8f8a_8000_1000, Gpa::new(0x1000), "XG-DA---W")));
        assert_eq!(leaf(""), None);
    }
}
