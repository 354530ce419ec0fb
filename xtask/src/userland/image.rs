//! A Debian system on a disk image, for one kernel: that kernel's modules, an initial file system
//! made by Debian's own tools, and the checks of `tests/userland`.
//!
//! It is built once for each kernel and kept under `target/guest/userland`, with a file that says
//! what it was made of; when that would be another, it is built anew.

use crate::apt::{sources, with_root};
use crate::packages::{self, Kernel};
use crate::progress::step;
use crate::shell::{guest_folder, run, workspace};
use anyhow::Context;
use std::fs;
use std::path::PathBuf;

/// What building it takes.
pub const PACKAGES: &[&str] = &["mmdebstrap", "e2fsprogs", "debian-archive-keyring"];

/// What the system has beyond Debian's essential packages.
/// iproute2 is in every installed Debian, and with it comes the library by which systemd attaches
/// BPF programs.
const INCLUDED: &str =
    "systemd-sysv,udev,dbus,kmod,procps,iproute2,initramfs-tools,zstd,nftables,stress-ng";

/// Files of `tests/userland` that the image depends on.
const SOURCES: [&str; 4] = ["install.sh", "check.sh", "rules.nft", "ravelin-check.service"];

/// A disk image and the initial file system that mounts it.
#[derive(Clone, Debug)]
pub struct Userland {
    /// The disk, an ext4 file system with the label `ravelin`. Machines must not write to it.
    pub disk: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
}

/// The release `suite` of Debian for `kernel`.
///
/// # Errors
/// A package is missing or cannot be had, or we have not the rights of root.
pub fn userland(suite: &str, kernel: &Kernel, install: bool) -> anyhow::Result<Userland> {
    packages::install(PACKAGES, install)?;
    let folder = guest_folder("userland")?;
    let out = folder.join(&kernel.release);
    let path = |ending: &str| folder.join(format!("{}.{ending}", kernel.release));
    let made = Userland { disk: path("img"), initrd: path("initrd") };
    let scripts = workspace().join("tests/userland");
    let mut recipe = format!("{suite} {INCLUDED}\n");
    for name in SOURCES {
        let file = scripts.join(name);
        recipe += &fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    }
    let stamp = path("made-of");
    let same = fs::read_to_string(&stamp).is_ok_and(|old| old == recipe);
    if same && made.disk.is_file() && made.initrd.is_file() {
        return Ok(made);
    }
    step(&format!("build a {suite} system for {}", kernel.release), || {
        let _ = fs::remove_file(&stamp);
        let hook = [
            quoted(&scripts.join("install.sh").display().to_string()),
            "\"$1\"".to_owned(),
            quoted(&kernel.root.display().to_string()),
            quoted(&kernel.release),
            quoted(&out.display().to_string()),
        ];
        let mut build = with_root("mmdebstrap")?;
        build
            .args(["--mode=root", "--variant=minbase", "--format=null", "--quiet"])
            .arg(format!("--include={INCLUDED}"))
            // A mirror that stands still is as good; Debian has signed its packages all the same.
            .arg("--aptopt=Acquire::Check-Valid-Until \"false\"")
            .arg(format!("--customize-hook={}", hook.join(" ")))
            .args([suite, "/dev/null"])
            .args(sources(suite)?);
        run(&mut build)?;
        // Last, so that what it speaks of is whole.
        fs::write(&stamp, recipe).with_context(|| format!("cannot write {}", stamp.display()))
    })?;
    Ok(made)
}

/// A word for the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_shell_takes_quoted_words_as_they_are() {
        for text in ["/a b/c", "it's $1", "`x`\"\\"] {
            let script = format!("printf %s {}", super::quoted(text));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
