//! Building what the commands boot: the hypervisor, and for each kernel an initial file system
//! that holds the test program and the probe module.

use crate::packages::{Flavour, Kernel, prepare};
use crate::progress::step;
use crate::shell::{command, guest_folder, run, target};
use crate::{bochs, boot, guest_image};
use abi::policy::Policy;
use anyhow::Context;
use clap::ValueEnum;
use ravelin::machine::{Emulator, Machine, Protection, Tasks};
use std::fmt;
use std::path::PathBuf;

/// What the machines are emulated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum On {
    /// QEMU: an AMD CPU with SVM
    Qemu,
    /// Bochs: an Intel CPU with VMX; with one CPU every run is the same
    Bochs,
}

impl fmt::Display for On {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            On::Qemu => "qemu",
            On::Bochs => "bochs",
        })
    }
}

/// A kernel with its initial file system.
pub struct Guest {
    flavour: Flavour,
    /// The kernel.
    pub kernel: Kernel,
    /// The initial file system.
    pub initrd: PathBuf,
}

/// Everything that was built.
pub struct Built {
    hypervisor: PathBuf,
    /// Its test build in which a bug is planted.
    planted: PathBuf,
    warden: PathBuf,
    /// The test task.
    pub unruly: PathBuf,
    /// The `ravelin` command.
    pub ravelin: PathBuf,
    /// The test program.
    pub init: PathBuf,
    guests: Vec<Guest>,
    /// The Bochs program, if it was asked for.
    bochs: Option<PathBuf>,
}

impl Built {
    /// The guest of this flavour.
    ///
    /// # Errors
    /// It was not asked for.
    pub fn guest(&self, flavour: Flavour) -> anyhow::Result<&Guest> {
        let mut guests = self.guests.iter();
        guests.find(|guest| guest.flavour == flavour).context("this kernel was not built for")
    }

    /// A machine with one CPU and 1 GiB that boots the kernel of this flavour to do `job`.
    ///
    /// # Errors
    /// The kernel or the emulator was not asked for.
    pub fn machine(
        &self,
        on: On,
        flavour: Flavour,
        job: &str,
        protection: Protection,
    ) -> anyhow::Result<Machine> {
        let guest = self.guest(flavour)?;
        let emulator = self.emulator(on)?;
        Ok(boot::machine(emulator, &guest.kernel.image, &guest.initrd, job, protection))
    }

    /// The emulator's program.
    ///
    /// # Errors
    /// It was not asked for.
    pub fn emulator(&self, on: On) -> anyhow::Result<Emulator> {
        Ok(match on {
            On::Qemu => Emulator::Qemu,
            On::Bochs => {
                let program = self.bochs.clone().context("Bochs was not prepared")?;
                Emulator::Bochs { program }
            }
        })
    }

    /// Protection, of a sort, by the test build of the hypervisor in which a bug is planted.
    pub fn planted(&self, policy: Policy) -> Protection {
        let (hypervisor, tasks) = (self.planted.clone(), Tasks::default());
        Protection::Ravelin {
            hypervisor,
            policy,
            kexec: Vec::new(),
            manifest: None,
            tasks,
            restore: None,
        }
    }

    /// A build of the hypervisor with a task that churns memory.
    pub fn churn(&self, unmapped: Unmapped) -> Protection {
        let hypervisor = match unmapped {
            Unmapped::Kept => self.hypervisor.clone(),
            Unmapped::Handed => variant(HANDING),
            Unmapped::Unowned => variant(UNOWNED),
        };
        let churn = target().join("release/churn");
        let tasks = Tasks { warden: Some(self.warden.clone()), others: vec![churn] };
        Protection::Ravelin {
            hypervisor,
            policy: Policy::default(),
            kexec: Vec::new(),
            manifest: None,
            tasks,
            restore: None,
        }
    }

    /// Protection by the hypervisor under `policy`.
    pub fn ravelin(&self, policy: Policy) -> Protection {
        let tasks = Tasks { warden: Some(self.warden.clone()), others: Vec::new() };
        Protection::Ravelin {
            hypervisor: self.hypervisor.clone(),
            policy,
            kexec: Vec::new(),
            manifest: None,
            tasks,
            restore: None,
        }
    }
}

/// Installs what is missing and builds everything for kernels of these flavours on these
/// emulators.
///
/// # Errors
/// A package is missing, or something does not build.
pub fn build(flavours: &[Flavour], emulators: &[On], install: bool) -> anyhow::Result<Built> {
    let kernels = prepare(flavours, install)?;
    let wanted = emulators.contains(&On::Bochs);
    let bochs = wanted.then(|| bochs::prepare(install)).transpose()?;
    step("build the hypervisor", build_hypervisor)?;
    let init = step("build the test program", guest_image::build_init)?;
    let mut guests = Vec::new();
    for (flavour, kernel) in flavours.iter().zip(kernels) {
        let initrd = step(&format!("build the guest for {}", kernel.release), || {
            let probes = guest_image::build_probes(&kernel.release)?;
            let path = guest_folder("initramfs")?.join(format!("{}.cpio", kernel.release));
            ravelin::cache::write_atomically(
                &path,
                &guest_image::initramfs(&init, Some(&probes))?,
            )?;
            Ok(path)
        })?;
        guests.push(Guest { flavour: *flavour, kernel, initrd });
    }
    let release = target().join("release");
    Ok(Built {
        hypervisor: release.join("ravelin-hv"),
        planted: variant(PLANTED),
        warden: release.join("ravelin-warden"),
        unruly: release.join("unruly"),
        ravelin: release.join("ravelin"),
        init,
        guests,
        bochs,
    })
}

/// What runs without an operating system.
pub const FREESTANDING: [&str; 6] = ["freestanding", "hv", "task-rt", "warden", "unruly", "churn"];

/// The hypervisor's test build in which a bug is planted, by the name of its feature.
const PLANTED: &str = "planted";
/// The one in which all that a task unmaps changes hands.
const HANDING: &str = "handing";
/// The one that keeps frames of tasks out of quarantine.
const UNOWNED: &str = "unowned";

/// What becomes of frames that a task unmaps, in builds of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// The task keeps them, up to 2 MiB: the normal build.
    Kept,
    /// They change hands.
    Handed,
    /// They go to the next use without quarantine.
    Unowned,
}

/// Builds the hypervisor with its tasks, and the command.
///
/// The command is linked statically, so that it runs in test guests too. Each in a build of its
/// own: cargo gives the crates that both use the features that either wants, and the hypervisor must have none that need an operating system.
///
/// The test build of the hypervisor comes first, and is moved out of the way of the normal one.
///
/// # Errors
/// They do not build.
pub fn build_hypervisor() -> anyhow::Result<()> {
    build_variant(PLANTED)?;
    let mut cargo = command("cargo", &["build", "--quiet", "--release"]);
    run(cargo.args(FREESTANDING.iter().flat_map(|name| ["--package", name])))?;
    let build = ["rustc", "--quiet", "--release", "--package", "ravelin", "--bin", "ravelin", "--"];
    run(command("cargo", &build).args(["-C", "target-feature=+crt-static"])).map(drop)
}

/// Builds the hypervisor with a feature of its test builds, and moves it out of the way of the
/// normal one.
fn build_variant(feature: &str) -> anyhow::Result<()> {
    let build = ["build", "--quiet", "--release", "--package", "hv", "--features", feature];
    run(&mut command("cargo", &build))?;
    let built = target().join("release/ravelin-hv");
    std::fs::rename(built, variant(feature))
        .with_context(|| format!("the {feature} build of the hypervisor is not where it was built"))
}

/// Where a test build of the hypervisor is.
fn variant(feature: &str) -> PathBuf {
    target().join("release").join(format!("ravelin-hv-{feature}"))
}

/// Builds what `cargo xtask bench` compares the hypervisor's memory manager with.
///
/// # Errors
/// It does not build.
pub fn build_for_memory() -> anyhow::Result<()> {
    build_variant(HANDING)?;
    build_variant(UNOWNED)?;
    // The normal one goes back to its place.
    let build = ["build", "--quiet", "--release", "--package", "hv"];
    run(&mut command("cargo", &build)).map(drop)
}
