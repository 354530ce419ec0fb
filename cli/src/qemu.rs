//! The command line of QEMU for a machine.
//!
//! QEMU cuts a module's file name at the first space and splits the list at commas, so the files
//! are linked into a folder of our own under plain names, and the last word of a module's string
//! is its role.

use crate::machine::{Accel, Boot, Machine, Protection};
use anyhow::{Context, ensure};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use zerocopy::IntoBytes;

/// The folder that holds one run's sockets and boot modules; gone when this is dropped.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("ravelin-").tempdir()?;
        let name = folder.path().to_string_lossy();
        ensure!(
            name.len() < 80 && !name.contains([' ', ',']),
            "cannot work in {name}: set TMPDIR to a short path without spaces and commas"
        );
        Ok(Self(folder))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn link(&self, target: &Path, name: &str) -> anyhow::Result<String> {
        let target = target.canonicalize().with_context(|| target.display().to_string())?;
        symlink(target, self.path(name))?;
        Ok(self.module(name))
    }

    fn write(&self, bytes: &[u8], name: &str) -> anyhow::Result<String> {
        std::fs::write(self.path(name), bytes)?;
        Ok(self.module(name))
    }

    fn module(&self, name: &str) -> String {
        format!("{} {name}", self.path(name).display())
    }
}

/// What QEMU emulates unless told otherwise: a CPU with SVM and nested paging.
const TCG_CPU: &str = "EPYC-v3,+svm,+npt,+umip";

pub fn command(
    program: &Path,
    machine: &Machine,
    manifest: &[u8],
    scratch: &Scratch,
) -> anyhow::Result<Command> {
    let (accel, cpu) = match machine.accel {
        Accel::Tcg => ("tcg", TCG_CPU),
        Accel::Kvm => ("kvm", "host"),
    };
    let mut qemu = Command::new(program);
    qemu.args(["-machine", "q35", "-accel", accel])
        .args(["-cpu", machine.cpu.as_deref().unwrap_or(cpu)])
        .args(["-smp", &machine.cpus.to_string()])
        .args(["-m", &format!("{}k", machine.memory >> 10)])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
        .args(["-action", "shutdown=pause"])
        // It waits for us before the first instruction and before it goes.
        .arg("-S")
        .args(["-qmp", &format!("unix:{}", scratch.path("qmp").display())]);
    if machine.no_reboot {
        qemu.arg("-no-reboot");
    }
    if machine.icount {
        qemu.args(["-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01,clock=vm"])
            .args(["-seed", "1"]);
    }
    if let Protection::Ravelin { .. } = machine.protection {
        let events = scratch.path("events");
        qemu.args(["-chardev", &format!("socket,id=events,path={}", events.display())])
            .args(["-device", "isa-debugcon,iobase=0xe9,chardev=events"]);
    }
    match (&machine.boot, &machine.protection) {
        (Boot::Iso(image), _) => {
            qemu.arg("-cdrom").arg(image);
        }
        (Boot::Direct, Protection::Bare) => {
            qemu.arg("-kernel").arg(&machine.kernel).arg("-initrd").arg(&machine.initrd);
            qemu.args(["-append", &machine.append]);
        }
        (Boot::Direct, Protection::Ravelin { hypervisor, policy, .. }) => {
            // The hypervisor has no use for symbols, and loading them takes time. A file that is no
            // manifest goes as it is: refusing it is the hypervisor's part.
            let resident = linux_image::without_symbols(manifest);
            let manifest = resident.as_deref().unwrap_or(manifest);
            let modules = [
                scratch.link(&machine.kernel, "kernel")?,
                scratch.link(&machine.initrd, "initrd")?,
                scratch.write(manifest, "manifest")?,
                scratch.write(policy.to_record().as_bytes(), "policy")?,
            ];
            qemu.arg("-kernel").arg(hypervisor).args(["-initrd", &modules.join(",")]);
            qemu.args(["-append", &format!("-- {}", machine.append)]);
        }
    }
    qemu.args(&machine.extra);
    Ok(qemu)
}
