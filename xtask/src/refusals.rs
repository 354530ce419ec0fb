//! End-to-end tests of bad input: there is a clear message, and nothing starts unprotected.

use crate::build::{Built, On};
use crate::e2e::{Case, Place, case, protected, quietly};
use crate::packages::Flavour::{self, Cloud, Generic};
use crate::shell::guest_folder;
use abi::policy::Policy;
use anyhow::{Context, bail, ensure};
use ravelin::machine::{Ended, Machine, Protection};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Every test of bad input.
pub fn cases() -> Vec<Case> {
    vec![
        case("refuse-no-virtualization", |name, place| {
            let (cpu, word) = match place.on {
                On::Qemu => ("EPYC-v3,-svm", "SVM"),
                On::Bochs => ("tigerlake,-vmx", "VMX"),
            };
            says(word, with_cpu(name, place, cpu)?)
        }),
        // Bochs has no CPU with VMX and without nested paging.
        Case {
            on: &[On::Qemu],
            ..case("refuse-no-nested-paging", |name, place| {
                says("nested paging", with_cpu(name, place, "EPYC-v3,+svm,-npt")?)
            })
        },
        case("refuse-little-memory", |name, place| {
            says(
                "memory",
                refused(name, place, |machine| {
                    machine.memory = 64 << 20;
                    Ok(())
                })?,
            )
        }),
        case("refuse-foreign-manifest", |name, place| {
            says("manifest", with_manifest(name, place, &manifest(place.built, Generic)?)?)
        }),
        case("refuse-truncated-manifest", |name, place| {
            let bytes = manifest(place.built, Cloud)?;
            let half = bytes.get(..bytes.len() / 2).unwrap_or_default();
            says("manifest", with_manifest(name, place, half)?)
        }),
        case("refuse-corrupt-manifest", |name, place| {
            let mut bytes = manifest(place.built, Cloud)?;
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
            }
            says("manifest", with_manifest(name, place, &bytes)?)
        }),
        Case { on: &[On::Qemu], ..case("refuse-usage", refuse_usage) },
        Case { on: &[On::Qemu], ..case("refuse-iso-usage", refuse_iso_usage) },
    ]
}

/// What is said about this CPU.
fn with_cpu(name: &str, place: &Place<'_>, cpu: &str) -> anyhow::Result<String> {
    refused(name, place, |machine| {
        machine.cpu = Some(cpu.to_owned());
        Ok(())
    })
}

fn says(word: &str, message: String) -> anyhow::Result<()> {
    let found = message.to_lowercase().contains(&word.to_lowercase());
    ensure!(found, "the message does not speak of {word}: {message}");
    Ok(())
}

/// What the command itself refuses, with exit code 2 and a message that names the trouble.
fn refuse_usage(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let built = place.built;
    let folder = guest_folder("logs")?;
    let file = |ending: &str, bytes: &[u8]| -> anyhow::Result<PathBuf> {
        let path = folder.join(format!("{name}.{ending}"));
        std::fs::write(&path, bytes)?;
        Ok(path)
    };
    let guest = built.guest(Cloud)?;
    let (kernel, initrd) = (guest.kernel.image.as_path(), guest.initrd.as_path());
    let no_kernel = file("txt", b"This is no kernel.")?;
    let packed = file("vmlinuz", &other_compression(&std::fs::read(kernel)?)?)?;
    let key = file("key.toml", b"\nsupervisor_exek = \"off\"\n")?;
    let value = file("value.toml", b"[reactions]\nmsr = \"panic\"\n")?;
    let nowhere = Path::new("/nowhere");
    let policy = |path: &Path| vec!["--policy".to_owned(), path.display().to_string()];
    let option = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    let bochs =
        |name: &str, value: &str| ["--emulator", "bochs", name, value].map(str::to_owned).to_vec();

    for (kernel, initrd, extra, words) in [
        (nowhere, initrd, None, "/nowhere"),
        (kernel, nowhere, None, "/nowhere"),
        (&no_kernel, initrd, None, "not a bzImage"),
        (&packed, initrd, None, "compress"),
        (kernel, initrd, Some(policy(&key)), "supervisor_exek"),
        (kernel, initrd, Some(policy(&value)), "line 2"),
        (kernel, initrd, Some(policy(nowhere)), "/nowhere"),
        (kernel, initrd, Some(option("--smp", "17")), "17"),
        (
            kernel,
            initrd,
            Some(option("--restore", &no_kernel.display().to_string())),
            "save it anew",
        ),
        (kernel, initrd, Some(option("--mem", "255M")), "256M"),
        (kernel, initrd, Some(option("--mem", "many")), "whole number"),
        (kernel, initrd, Some(option("--hypervisor", "/nowhere")), "/nowhere"),
        (kernel, initrd, Some(bochs("--bochs", "/nowhere")), "cargo xtask bochs"),
        (kernel, initrd, Some(bochs("--accel", "kvm")), "--accel kvm"),
        (kernel, initrd, Some(bochs("--cpu", "tigerlake,+svm")), "`tigerlake,-vmx`"),
    ] {
        let mut run = Command::new(&built.ravelin);
        run.args(["run", "--timeout", "30", "--kernel"]).arg(kernel).arg("--initrd").arg(initrd);
        refuses(run.args(extra.into_iter().flatten()), words)?;
    }
    let mut run = Command::new(&built.ravelin);
    run.args(["run", "--kernel"]).arg(kernel).arg("--initrd").arg(initrd).env("PATH", "/nowhere");
    refuses(&mut run, "qemu-system-x86")
}

/// What `ravelin iso` refuses; no image is left behind.
fn refuse_iso_usage(name: &str, place: &Place<'_>) -> anyhow::Result<()> {
    let built = place.built;
    let logs = guest_folder("logs")?;
    let (text, foreign) = (logs.join(format!("{name}.txt")), logs.join(format!("{name}.manifest")));
    std::fs::write(&text, b"This is no kernel, manifest or policy.")?;
    std::fs::write(&foreign, manifest(built, Generic)?)?;
    let guest = built.guest(Cloud)?;
    let (kernel, initrd) = (guest.kernel.image.as_path(), guest.initrd.as_path());
    let nowhere = Path::new("/nowhere");
    let disc = logs.join(format!("{name}.iso"));
    let long = "x".repeat(2048);
    let long = Path::new(&long);
    for (kernel, initrd, option, value, words) in [
        (nowhere, initrd, "--append", text.as_path(), "/nowhere"),
        (kernel, nowhere, "--append", &text, "/nowhere"),
        (&text, initrd, "--append", &text, "not a bzImage"),
        (kernel, initrd, "--append", long, "2047"),
        (kernel, initrd, "--policy", &text, "policy"),
        (kernel, initrd, "--manifest", &text, "manifest"),
        (kernel, initrd, "--manifest", &foreign, "does not belong"),
        (kernel, initrd, "--hypervisor", nowhere, "/nowhere"),
        (kernel, initrd, "--output", nowhere.join("disc").as_path(), "/nowhere/disc"),
    ] {
        let mut iso = Command::new(&built.ravelin);
        iso.arg("iso").arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
        if option != "--output" {
            iso.arg("--output").arg(&disc);
        }
        refuses(iso.arg(option).arg(value), words)?;
        ensure!(!disc.exists(), "{} was written", disc.display());
    }
    let mut iso = Command::new(&built.ravelin);
    iso.arg("iso").arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    refuses(iso.arg("--output").arg(&disc).env("PATH", "/nowhere"), "grub-common")
}

fn refuses(command: &mut Command, words: &str) -> anyhow::Result<()> {
    let output = command.output()?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && output.stdout.is_empty() && message.contains(words),
        "{command:?} should be refused with a message about {words}, but: {}, {message}",
        output.status
    );
    Ok(())
}

/// The kernel with a payload that no known program has packed.
fn other_compression(kernel: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut kernel = kernel.to_vec();
    let sectors = kernel.get(0x1f1).copied().context("no setup header")?;
    let offset = kernel.get(0x248..0x24c).and_then(|bytes| bytes.try_into().ok());
    let offset = u32::from_le_bytes(offset.context("no payload offset")?);
    let start = (usize::from(sectors) + 1) * 512 + usize::try_from(offset)?;
    kernel.get_mut(start..start + 6).context("no payload")?.copy_from_slice(b"PACKED");
    Ok(kernel)
}

/// A machine that must not start the kernel.
fn refused(
    name: &str,
    place: &Place<'_>,
    change: impl FnOnce(&mut Machine) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut machine = protected(place, Cloud, "poweroff", Policy::default())?;
    machine.timeout = Some(Duration::from_secs(60));
    change(&mut machine)?;
    let report = quietly(name, &machine)?;
    let console = std::fs::read_to_string(&report.log)?;
    ensure!(
        report.words.is_empty() && !console.contains("Linux version"),
        "the kernel was started, see {}",
        report.log.display()
    );
    match report.outcome.ended {
        Ended::Failed(reason) => Ok(reason),
        ended => bail!("it ended with {ended:?} instead of a message"),
    }
}

/// The manifest of the kernel of this flavour.
fn manifest(built: &Built, flavour: Flavour) -> anyhow::Result<Vec<u8>> {
    ravelin::cache::manifest(&std::fs::read(&built.guest(flavour)?.kernel.image)?)
}

/// Boots with these bytes for a manifest.
fn with_manifest(name: &str, place: &Place<'_>, bytes: &[u8]) -> anyhow::Result<String> {
    let path = guest_folder("logs")?.join(format!("{name}.manifest"));
    std::fs::write(&path, bytes)?;
    refused(name, place, |machine| {
        if let Protection::Ravelin { manifest, .. } = &mut machine.protection {
            *manifest = Some(path);
        }
        Ok(())
    })
}
