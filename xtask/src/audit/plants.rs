//! What is planted in page tables, and must be found.

use super::Dump;
use addr::{Gpa, Gva};
use anyhow::{Context, bail, ensure};
use paging::Level;
use paging::guest::{Translation, visit_kernel_half, walk};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;

const WRITE: u64 = 2;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A change of one entry, and what must be found then.
pub struct Plant {
    pub what: &'static str,
    /// Where the entry is, and what it becomes.
    pub entry: (Gpa, u64),
    /// The first frame that can be written and executed then, and how many there are.
    found: (Gpa, u64),
    /// Where the changed mapping is, and its rights.
    changed: (Gva, &'static str),
    /// What one of the mappings is called, or a part of that.
    named: &'static str,
}

/// Writes an entry into the dump's file.
///
/// # Errors
/// It is not in the dump, or cannot be written.
pub fn write_entry(dump: &Dump, file: &File, at: Gpa, entry: u64) -> anyhow::Result<()> {
    let offset = dump.memory.offset_of(at, 8).context("the entry to change is not in the dump")?;
    Ok(file.write_all_at(&entry.to_le_bytes(), offset)?)
}

/// Ways to make something writable and executable: kernel text, a module's, and data.
///
/// # Errors
/// The dump is not of a running kernel that has a module's text at `module`.
pub fn plants(dump: &Dump, module: Gva) -> anyhow::Result<[Plant; 4]> {
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
    let own = entry(&by_data)?;
    let leading_to = |target: Gpa| own & !ADDRESS | target.raw();
    let (target, of_module) = (text_gpa.plus(0x5000), at(module)?.gpa.frame().start());
    Ok([
        Plant {
            what: "a writable page of vmalloc that is kernel text",
            entry: (by_data.entry, leading_to(target)),
            found: (target, 1),
            changed: (data, "rw-"),
            named: "+",
        },
        Plant {
            what: "a writable page of vmalloc that is a module's text",
            entry: (by_data.entry, leading_to(of_module)),
            found: (of_module, 1),
            changed: (data, "rw-"),
            named: "modules",
        },
        Plant {
            what: "kernel text that the direct map can write",
            entry: (by_direct.entry, entry(&by_direct)? | WRITE),
            found: (text_gpa, by_direct.level.frames()),
            changed: (direct, "rw-"),
            named: "+",
        },
        Plant {
            what: "a writable page of vmalloc without NX",
            entry: (by_data.entry, own & !NO_EXECUTE),
            found: (by_data.gpa, 1),
            changed: (data, "rwx"),
            named: "vmalloc",
        },
    ])
}

/// Exactly what was planted is found.
///
/// # Errors
/// Something else is.
pub fn check(found: &Value, plant: &Plant) -> anyhow::Result<()> {
    let [finding] = found["findings"].as_array().map(Vec::as_slice).unwrap_or_default() else {
        bail!("the findings are {}", found["findings"]);
    };
    let (gpa, pages) = plant.found;
    let expected = (json!(format!("{:#x}", gpa.raw())), json!(pages));
    let frames = (finding["gpa"].clone(), finding["pages"].clone());
    ensure!(frames == expected, "frames {frames:?} instead of {expected:?}");
    let (gva, rights) = plant.changed;
    let gva = json!(format!("{:#x}", gva.raw()));
    let mappings = finding["mappings"].as_array().context("no mappings")?;
    let mapping = mappings.iter().find(|mapping| mapping["gva"] == gva);
    let has = &mapping.with_context(|| format!("no mapping at {gva} in {finding}"))?["rights"];
    ensure!(*has == json!(rights), "the rights are {has}");
    let mut places = mappings.iter().filter_map(|mapping| mapping["place"].as_str());
    let named = places.any(|place| place.contains(plant.named));
    ensure!(named, "the mappings are called {mappings:?}");
    let outside = (&found["open_to_processes"], &found["outside"]);
    ensure!(outside == (&json!([]), &json!([])), "found besides: {outside:?}");
    Ok(())
}
