//! End-to-end tests of `ravelin audit`: a dump of a real kernel has no findings, and what is planted
//! in its page tables is found, that and nothing else.

use crate::boot::{Report, boot};
use crate::build::On;
use crate::e2e::{Case, Place, case};
use crate::packages::Flavour::Cloud;
use crate::shell::{guest_folder, run};
use addr::{Gpa, Gva};
use anyhow::{Context, bail, ensure};
use dump::Dump;
use paging::Level;
use paging::guest::{Translation, visit_kernel_half, walk};
use ravelin::dump_file::DumpFile;
use ravelin::machine::{Machine, Protection};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

const WRITE: u64 = 2;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The colour of what is writable and executable on the page.
const RED: [u8; 3] = [0xd4, 0x2a, 0x2a];

/// The tests; the one with a browser only if `full`.
pub fn cases(full: bool) -> Vec<Case> {
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
    cases.collect()
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

fn audits(name: &str, place: &Place<'_>, kind: &Dumped) -> anyhow::Result<()> {
    let path = guest_folder("logs")?.join(format!("{name}.dump"));
    take(name, place, kind, &path)?;
    let result = audits_file(place, kind, &path);
    if result.is_ok() {
        std::fs::remove_file(&path)?;
    }
    result
}

/// Boots a kernel without Ravelin and takes a dump when its first process is idle.
fn take(name: &str, place: &Place<'_>, kind: &Dumped, path: &Path) -> anyhow::Result<()> {
    let mut machine = place.built.machine(place.on, Cloud, "idle", Protection::Bare)?;
    machine.memory = 512 << 20;
    machine.cpu.clone_from(&kind.cpu);
    dump_when_idle(name, machine, kind.paging, path).map(drop)
}

/// Boots a machine whose job is to be idle, and takes a dump of all its memory then.
///
/// # Errors
/// It did not get so far, or QEMU took no dump.
pub fn dump_when_idle(
    name: &str,
    mut machine: Machine,
    paging: bool,
    path: &Path,
) -> anyhow::Result<Report> {
    // A socket's path must be short.
    let socket = std::env::temp_dir().join(format!("ravelin-{}-{name}.qmp", std::process::id()));
    let server = format!("unix:{},server=on,wait=off", socket.display());
    machine.extra = vec!["-qmp".to_owned(), server];
    let mut taken = None;
    let report = boot(name, &machine, &mut |word, _| {
        if word == "idle" {
            taken = Some(ask_for_dump(&socket, path, paging));
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    })?;
    let _ = std::fs::remove_file(&socket);
    taken
        .with_context(|| format!("the guest did not get ready, see {}", report.log.display()))??;
    Ok(report)
}

fn ask_for_dump(socket: &Path, path: &Path, paging: bool) -> anyhow::Result<()> {
    let mut socket = UnixStream::connect(socket)?;
    let mut lines = BufReader::new(socket.try_clone()?).lines();
    let protocol = format!("file:{}", path.display());
    for command in [
        json!({ "execute": "qmp_capabilities" }),
        json!({ "execute": "dump-guest-memory",
                "arguments": { "paging": paging, "protocol": protocol } }),
    ] {
        writeln!(socket, "{command}")?;
        loop {
            let line = lines.next().context("QEMU closed its control socket")??;
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU took no dump: {error}");
            }
            if answer.get("return").is_some() {
                break;
            }
        }
    }
    // QEMU lets its owner only read it.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(())
}

/// A change of one entry, and what must be found then.
struct Plant {
    what: &'static str,
    /// Where the entry is, and what it becomes.
    entry: (Gpa, u64),
    /// The first frame that can be written and executed then, and how many there are.
    found: (Gpa, u64),
    /// Where the changed mapping is.
    gva: Gva,
    single: bool,
}

fn audits_file(place: &Place<'_>, kind: &Dumped, path: &Path) -> anyhow::Result<()> {
    let audit =
        Audit { program: &place.built.ravelin, dump: path, page: path.with_extension("html") };
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
    for plant in plants(&dump)? {
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

fn write_entry(dump: &Dump<DumpFile>, file: &File, at: Gpa, entry: u64) -> anyhow::Result<()> {
    let offset = dump.memory.offset_of(at, 8).context("the entry to change is not in the dump")?;
    Ok(file.write_all_at(&entry.to_le_bytes(), offset)?)
}

/// Three ways to make something writable and executable.
fn plants(dump: &Dump<DumpFile>) -> anyhow::Result<[Plant; 3]> {
    let (root, image) = dump.find_root(None)?;
    let text = image.start().context("no image")?;
    let at = |gva| -> anyhow::Result<Translation> {
        Ok(walk(root.table, root.levels, gva, |entry| dump.read_u64(entry))?)
    };
    let entry = |translation: &Translation| {
        dump.read_u64(translation.entry).context("an entry is not in the dump")
    };
    let text_gpa = at(text)?.gpa;
    // The direct map comes first in the kernel half. A page of data elsewhere is vmalloc's.
    let (mut direct, mut data) = (None, None);
    let mut buffers = [[0; paging::ENTRIES]; 5];
    let read = |table, entries: &mut _| dump.read_table(table, entries).is_some();
    visit_kernel_half(root.table, root.levels, Gva::new(0), 1 << 20, &mut buffers, read, |leaf| {
        let base = leaf.gva.raw().wrapping_sub(leaf.gpa.raw());
        let direct = *direct.get_or_insert(base);
        let outside = base != direct && leaf.gva < text && leaf.level == Level::Page4K;
        if outside && leaf.rights.write && !leaf.rights.execute && data.is_none() {
            data = dump.memory.offset_of(leaf.gpa, 8).map(|_| leaf.gva);
        }
    })?;
    let direct = Gva::new(direct.context("no mapping at all")?.wrapping_add(text_gpa.raw()));
    let data = data.context("no page of data outside the direct map")?;
    let (by_direct, by_data) = (at(direct)?, at(data)?);
    let target = text_gpa.plus(0x5000);
    let moved = entry(&by_data)? & !ADDRESS | target.raw();
    let large = by_direct.level.frames();
    Ok([
        Plant {
            what: "a writable page of vmalloc that is kernel text",
            entry: (by_data.entry, moved),
            found: (target, 1),
            gva: data,
            single: false,
        },
        Plant {
            what: "kernel text that the direct map can write",
            entry: (by_direct.entry, entry(&by_direct)? | WRITE),
            found: (text_gpa, large),
            gva: direct,
            single: false,
        },
        Plant {
            what: "a writable page of vmalloc without NX",
            entry: (by_data.entry, entry(&by_data)? & !NO_EXECUTE),
            found: (by_data.gpa, 1),
            gva: data,
            single: true,
        },
    ])
}

/// Exactly what was planted is found.
fn check(found: &Value, plant: &Plant) -> anyhow::Result<()> {
    let [finding] = found["findings"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        bail!("the findings are {}", found["findings"]);
    };
    let (gpa, pages) = plant.found;
    let expected = (json!(format!("{:#x}", gpa.raw())), json!(pages));
    let frames = (finding["gpa"].clone(), finding["pages"].clone());
    ensure!(frames == expected, "frames {frames:?} instead of {expected:?}");
    let gva = json!(format!("{:#x}", plant.gva.raw()));
    let mappings = finding["mappings"].as_array().context("no mappings")?;
    let mapping = mappings.iter().find(|mapping| mapping["gva"] == gva);
    let rights = &mapping.with_context(|| format!("no mapping at {gva} in {finding}"))?["rights"];
    ensure!(*rights == json!(if plant.single { "rwx" } else { "rw-" }), "the rights are {rights}");
    let symbols = mappings.iter().filter_map(|mapping| mapping["place"].as_str());
    let named = symbols.filter(|place| place.contains('+')).count() > 0;
    ensure!(named != plant.single, "the mappings are called {mappings:?}");
    let outside = (&found["open_to_processes"], &found["outside"]);
    ensure!(outside == (&json!([]), &json!([])), "found besides: {outside:?}");
    Ok(())
}

/// `ravelin audit` of one dump.
struct Audit<'a> {
    program: &'a Path,
    dump: &'a Path,
    /// Where the page goes.
    page: PathBuf,
}

impl Audit<'_> {
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

/// How many pixels of a page have this colour in a browser.
fn pixels(page: &Path, colour: [u8; 3]) -> anyhow::Result<usize> {
    let picture = page.with_extension("png");
    let profile = page.with_extension("profile");
    let mut browser = Command::new("chromium");
    browser
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1200"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", page.display()));
    run(&mut browser)?;
    let _ = std::fs::remove_dir_all(&profile);
    let mut decoder = png::Decoder::new(BufReader::new(File::open(&picture)?));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().context("the picture is too large")?];
    let info = reader.next_frame(&mut bytes)?;
    let samples = info.color_type.samples();
    let shown = bytes.chunks_exact(samples).filter(|pixel| pixel.starts_with(&colour));
    Ok(shown.count())
}
