//! The command line of QEMU for a machine.
//!
//! QEMU cuts a module's file name at the first space and splits the list at commas, so the files
//! are linked into a folder of our own under plain names, and the last word of a module's string
//! is its role.

use crate::machine::{Accel, Boot, Machine, Manifests, Protection};
use crate::notice::Notice;
use crate::scratch::Scratch;
use boot_info::Role;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What QEMU emulates unless told otherwise: a CPU with SVM and nested paging.
const TCG_CPU: &str = "EPYC-v3,+svm,+npt,+umip";

/// With a thread for each CPU, QEMU loses the first CPU's world switches: whenever any CPU loads
/// the x87 status word, `cpu_clear_ignne` reads, changes and writes the word of the first CPU that
/// also says whether it is in a guest and under nested paging, while that CPU changes it itself
/// (seen in 7.2; the code is the same in 10). All CPUs in one thread take turns and cannot race.
const TCG_WITH_SVM: &str = "tcg,thread=single";

pub fn command(
    program: &Path,
    machine: &Machine,
    manifests: &Manifests,
    scratch: &Scratch,
) -> anyhow::Result<Command> {
    let (accel, cpu) = match (machine.accel, &machine.protection) {
        (Accel::Tcg, Protection::Ravelin { .. }) => (TCG_WITH_SVM, TCG_CPU),
        (Accel::Tcg, Protection::Bare) => ("tcg", TCG_CPU),
        (Accel::Kvm, _) => ("kvm", "host"),
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
    if let Some(shift) = machine.icount {
        let icount = format!("shift={shift},sleep=off");
        qemu.args(["-icount", &icount, "-rtc", "base=2026-01-01,clock=vm"]).args(["-seed", "1"]);
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
        (Boot::Direct, Protection::Ravelin { hypervisor, .. }) => {
            let modules = machine.modules(manifests, scratch)?;
            let module =
                |(role, path): &(Role, PathBuf)| format!("{} {}", path.display(), role.word());
            let modules: Vec<String> = modules.iter().map(module).collect();
            qemu.arg("-kernel").arg(hypervisor).args(["-initrd", &modules.join(",")]);
            qemu.args(["-append", &format!("-- {}", machine.append)]);
        }
    }
    qemu.args(&machine.extra);
    Ok(qemu)
}

/// What a line of QEMU's error output means.
pub fn complaint(line: &str) -> Option<Notice> {
    // About features of the CPU model that no guest of ours needs.
    let harmless = line.contains("TCG doesn't support requested feature");
    (!harmless).then(|| Notice::Complaint(line.to_owned()))
}
