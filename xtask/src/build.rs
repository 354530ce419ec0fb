//! Building what the commands boot: the hypervisor, and for each kernel an initial file system
//! that holds the test program and the probe module.

use crate::guest_image;
use crate::packages::{Flavour, Kernel, prepare};
use crate::progress::step;
use crate::shell::{command, guest_folder, run, target};
use abi::policy::Policy;
use anyhow::Context;
use ravelin::machine::Protection;
use std::path::PathBuf;

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
    /// The `ravelin` command.
    pub ravelin: PathBuf,
    /// The test program.
    pub init: PathBuf,
    guests: Vec<Guest>,
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

    /// Protection by the hypervisor under `policy`.
    pub fn ravelin(&self, policy: Policy) -> Protection {
        Protection::Ravelin { hypervisor: self.hypervisor.clone(), policy, manifest: None }
    }
}

/// Installs what is missing and builds everything for kernels of these flavours.
///
/// # Errors
/// A package is missing, or something does not build.
pub fn build(flavours: &[Flavour], install: bool) -> anyhow::Result<Built> {
    let kernels = prepare(flavours, install)?;
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
    let hypervisor = release.join("ravelin-hv");
    Ok(Built { hypervisor, ravelin: release.join("ravelin"), init, guests })
}

/// Builds the hypervisor and the command.
///
/// Each in a build of its own: cargo gives the crates that both use the features that either
/// wants, and the hypervisor must have none that need an operating system.
///
/// # Errors
/// They do not build.
pub fn build_hypervisor() -> anyhow::Result<()> {
    for package in ["hv", "ravelin"] {
        run(&mut command("cargo", &["build", "--quiet", "--release", "--package", package]))?;
    }
    Ok(())
}
