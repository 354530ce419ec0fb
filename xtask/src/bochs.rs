//! Bochs, built here: Debian 12 has an older version without mode-based execute control, and every
//! version of Debian's has a debugger in it that makes it three times slower.
//!
//! The source is Debian's own, from wherever this machine gets its packages, and is known by its
//! digest. It is built once and kept under `target/guest/bochs`.

use crate::packages::{self, fetch};
use crate::progress::step;
use crate::shell::{command, guest_folder, run};
use anyhow::Context;
use std::path::{Path, PathBuf};

/// What building and running it takes.
pub const PACKAGES: [&str; 5] = ["g++", "make", "xz-utils", "bochsbios", "vgabios"];

const VERSION: &str = "3.0";
const ARCHIVE: &str = "bochs_3.0+dfsg.orig.tar.xz";
const SHA256: &str = "78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b";

/// The CPU that is emulated, without display, debugger and plug-ins. The registers of `msrs.def`
/// need `configurable-msrs`.
const OPTIONS: [&str; 21] = [
    "--with-nogui",
    "--disable-plugins",
    "--disable-docbook",
    "--disable-debugger",
    "--enable-x86-64",
    "--enable-cpu-level=6",
    "--enable-vmx=2",
    "--enable-svm",
    "--enable-smp",
    "--enable-all-optimizations",
    "--enable-configurable-msrs",
    "--enable-avx",
    "--enable-evex",
    "--enable-cet",
    "--enable-memtype",
    "--enable-protection-keys",
    "--enable-perfmon",
    "--enable-x86-debugger",
    "--enable-pci",
    "--enable-alignment-check",
    "--enable-monitor-mwait",
];

/// Installs what is missing and builds Bochs unless it is there; gives the program.
///
/// # Errors
/// A package is missing, the source cannot be had or is another one, or it does not build.
pub fn prepare(install: bool) -> anyhow::Result<PathBuf> {
    packages::install(&PACKAGES, install)?;
    let folder = guest_folder("bochs")?;
    let program = folder.join("bochs");
    if !program.is_file() {
        let label = format!("build Bochs {VERSION}, which takes about three minutes, once");
        step(&label, || build(&folder, &program))?;
    }
    Ok(program)
}

fn build(folder: &Path, program: &Path) -> anyhow::Result<()> {
    let archive = folder.join(ARCHIVE);
    fetch("bochs", ARCHIVE, SHA256, &archive)?;
    let source = folder.join(format!("bochs-{VERSION}"));
    let _ = std::fs::remove_dir_all(&source);
    run(command("tar", &["-x", "-f"]).arg(&archive).arg("-C").arg(folder))?;
    let mut configure = command("./configure", &OPTIONS);
    configure.args(["CFLAGS=-O2 -pipe", "CXXFLAGS=-O2 -pipe"]);
    run(configure.current_dir(&source))?;
    let jobs = std::thread::available_parallelism()?;
    run(command("make", &["-j", &jobs.to_string()]).current_dir(&source))?;
    run(command("strip", &["bochs"]).current_dir(&source))?;
    // Last, so that what is there is whole.
    std::fs::rename(source.join("bochs"), program)
        .with_context(|| format!("cannot write {}", program.display()))?;
    std::fs::remove_dir_all(&source)?;
    Ok(())
}
