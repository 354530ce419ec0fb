//! End-to-end tests of `ravelin audit`: a dump of a real kernel has no findings but what the kernel
//! itself complains of, and what is planted in its page tables is found, that and nothing else.

mod idle;
mod page;
mod plants;
mod stock;

pub use idle::dump_when_idle;

use crate::build::On;
use crate::e2e::{Case, Place, case};
use crate::guest_image::module;
use crate::packages::Flavour::Cloud;
use crate::shell::guest_folder;
use addr::Gva;
use anyhow::{Context, ensure};
use page::pixels;
use plants::{check, plants, write_entry};
use ravelin::dump_file::DumpFile;
use ravelin::machine::Protection;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

type Dump = dump::Dump<DumpFile>;

/// The colour of what is writable and executable on the page.
const RED: [u8; 3] = [0xd4, 0x2a, 0x2a];
/// The module that is loaded; every flavour of kernel has it.
const MODULE: &str = "dummy";

/// The tests; the one with a browser, and some machines, only if `full`.
pub fn cases(full: bool, install: bool) -> Vec<Case> {
    let plain = |name: &str, page| Dumped { name: name.to_owned(), cpu: None, paging: false, page };
    let five = Some("EPYC-v3,+la57".to_owned());
    let mut kinds = vec![
        plain("audit", false),
        Dumped { name: "audit-five-levels".to_owned(), cpu: five, paging: true, page: false },
    ];
    if full {
        kinds.push(plain("audit-page", true));
    }
    let cases = kinds.into_iter().map(|kind| {
        let name = kind.name.clone();
        let run = move |name: &str, place: &Place<'_>| audits(name, place, &kind);
        Case { on: &[On::Qemu], ..case(name, run) }
    });
    cases.chain(stock::cases(full, install)).collect()
}

/// A kind of dump.
struct Dumped {
    name: String,
    /// The CPU, in QEMU's words.
    cpu: Option<String>,
    /// Whether QEMU sorts the memory by the page tables.
    paging: bool,
    /// Whether a browser shows the page.
    page: bool,
}

/// What the guest says of the module that it has loaded.
#[derive(Deserialize)]
struct Loaded {
    /// Address of its text.
    text: u64,
}

/// Boots a kernel without Ravelin, takes a dump when its first process is idle, and audits that.
fn audits(name: &str, place: &Place<'_>, kind: &Dumped) -> anyhow::Result<()> {
    let path = guest_folder("logs")?.join(format!("{name}.dump"));
    let job = format!("load:{MODULE}+idle");
    let mut machine = place.built.machine(place.on, Cloud, &job, Protection::Bare)?;
    machine.initrd = with_module(place, &machine.initrd)?;
    machine.memory = 512 << 20;
    machine.cpu.clone_from(&kind.cpu);
    let report = dump_when_idle(name, machine, kind.paging, &path)?;
    let loaded: Vec<Loaded> = report.all("loaded")?;
    let loaded = loaded.first().context("the guest loaded no module")?;
    audits_file(place, kind, &path, Gva::new(loaded.text))?;
    Ok(std::fs::remove_file(&path)?)
}

/// An initial file system that holds a module of the kernel's own as well. The probe module would not
/// do: it keeps a page writable and executable.
fn with_module(place: &Place<'_>, initrd: &Path) -> anyhow::Result<PathBuf> {
    let kernel = &place.built.guest(Cloud)?.kernel;
    let folder = kernel.root.join("lib/modules").join(&kernel.release);
    let file = folder.join("kernel/drivers/net").join(format!("{MODULE}.ko"));
    let mut archive = std::fs::read(initrd)?;
    archive.extend(module(MODULE, &file)?);
    let path = guest_folder("initramfs")?.join("audit.cpio");
    std::fs::write(&path, archive)?;
    Ok(path)
}

fn audits_file(place: &Place<'_>, kind: &Dumped, path: &Path, text: Gva) -> anyhow::Result<()> {
    let audit = Audit::of(place, path);
    let clean = audit.run(Some(0))?;
    ensure!(clean["findings"] == json!([]), "findings in a stock kernel: {}", clean["findings"]);
    let levels = if kind.cpu.is_some() { 5 } else { 4 };
    ensure!(clean["root"]["levels"] == json!(levels), "it walked {} levels", clean["root"]);
    ensure!(clean["symbols"].as_u64() > Some(50_000), "it found {} symbols", clean["symbols"]);
    let kernel = json!(place.built.guest(Cloud)?.kernel.release);
    ensure!(clean["kernel"] == kernel, "it took the kernel for {}", clean["kernel"]);
    if kind.page {
        ensure!(pixels(&audit.page, RED)? < 200, "the page of a clean kernel is red");
    }

    let dump = Dump::open(DumpFile::open(path)?)?;
    let file = OpenOptions::new().write(true).open(path)?;
    for plant in plants(&dump, text)? {
        let (at, entry) = plant.entry;
        let before = dump.read_u64(at).context("the entry to change is not in the dump")?;
        write_entry(&dump, &file, at, entry)?;
        check(&audit.run(Some(1))?, &plant).with_context(|| format!("planted: {}", plant.what))?;
        if kind.page {
            ensure!(pixels(&audit.page, RED)? > 200, "the page shows nothing red");
        }
        write_entry(&dump, &file, at, before)?;
    }
    audit.run(Some(0)).map(drop)
}

/// `ravelin audit` of one dump.
struct Audit<'a> {
    program: &'a Path,
    dump: &'a Path,
    /// Where the page goes.
    page: PathBuf,
}

impl<'a> Audit<'a> {
    fn of(place: &'a Place<'_>, dump: &'a Path) -> Self {
        Self { program: &place.built.ravelin, dump, page: dump.with_extension("html") }
    }

    /// What it finds; it must end with `code`.
    fn run(&self, code: Option<i32>) -> anyhow::Result<Value> {
        let mut command = Command::new(self.program);
        let command =
            command.arg("audit").arg(self.dump).arg("--json").arg("--html").arg(&self.page);
        let output = command.output().context("cannot run ravelin")?;
        let ended = output.status.code();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(ended == code, "the exit code is {ended:?} instead of {code:?}: {errors}");
        serde_json::from_slice(&output.stdout).context("it prints no JSON")
    }
}
