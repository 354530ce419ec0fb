//! Builds the two programs inside a test guest. Both builds are incremental: cargo's and make's
//! own rules decide what is stale.

use crate::shell::{command, guest_folder, run, target, workspace};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const MODULE: &str = "ravelin_probes.ko";

/// Builds the test program, linked statically, since nothing else is in the guest; gives its path.
///
/// # Errors
/// It does not compile; the message ends with the compiler's.
pub fn build_init() -> Result<PathBuf> {
    let build = ["rustc", "--release", "--package", "guest", "--bin", "guest", "--"];
    // For the last crate only, so that build scripts and macros stay dynamic.
    let options = ["-C", "target-feature=+crt-static", "-C", "strip=symbols"];
    run(command("cargo", &build).args(options))?;
    Ok(target().join("release/guest"))
}

/// Builds the probe module for the kernel `release` (as `uname -r` says); gives its path.
///
/// # Errors
/// The kernel's headers are not installed, or the module does not compile.
pub fn build_probes(release: &str) -> Result<PathBuf> {
    let headers = Path::new("/usr/src").join(format!("linux-headers-{release}"));
    ensure!(
        headers.join("Makefile").exists(),
        "{} holds no kernel headers: install the package linux-headers-{release}",
        headers.display()
    );
    let folder = guest_folder("probes")?.join(release);
    copy_changed(&workspace().join("tests/probes"), &folder)?;
    let mut module_folder = OsString::from("M=");
    module_folder.push(&folder);
    // Type information of the module would take a further tool, and nobody reads it.
    let options = ["CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"];
    run(command("make", &["-C"]).arg(&headers).arg(module_folder).args(options))?;
    Ok(folder.join(MODULE))
}

/// Makes the sources in `to` those of `from`, leaving equal files alone, so that their times say
/// when their content changed.
fn copy_changed(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let source = entry?.path();
        let copy = to.join(source.file_name().unwrap_or_default());
        let content = fs::read(&source).with_context(|| format!("reading {}", source.display()))?;
        if fs::read(&copy).ok().as_ref() != Some(&content) {
            fs::write(&copy, content).with_context(|| format!("writing {}", copy.display()))?;
        }
    }
    Ok(())
}
