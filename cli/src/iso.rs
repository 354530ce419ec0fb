//! `ravelin iso`: a disc image that starts a kernel under Ravelin on machines with BIOS or UEFI.
//!
//! Everything that can be wrong is found before the image is made, and it is either whole or not
//! there.

use crate::args::Iso;
use anyhow::{Context, ensure};
use boot_info::Role;
use linux_image::Summary;
use ravelin::{cache, check, grub, machine, policy, state};
use std::process::ExitCode;
use zerocopy::IntoBytes;

/// Writes the image.
///
/// # Errors
/// Bad input, or something is not installed; nothing was written.
pub fn iso(args: &Iso) -> anyhow::Result<ExitCode> {
    grub::check()?;
    grub::check_uefi()?;
    let kernel = check::read("kernel", &args.kernel)?;
    check::bzimage(&args.kernel, &kernel)?;
    check::read("initrd", &args.initrd)?;
    let file = policy::load_if_given(args.policy.as_deref())?;
    let named = machine::named_manifests(&file.policy, &file.kernels)?;
    let hypervisor = check::hypervisor(args.hypervisor.as_deref())?;
    let tasks = args.tasks.find(&hypervisor)?;
    let restore = args.restore.as_deref().map(state::check).transpose()?;
    let manifest = machine::manifest(&args.kernel, &kernel, args.manifest.as_deref())?;

    let work = tempfile::Builder::new().prefix("ravelin-iso-").tempdir()?;
    let write = |name: &str, bytes: &[u8]| {
        let path = work.path().join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        anyhow::Ok(path)
    };
    let mut modules = vec![
        (Role::Kernel, args.kernel.clone()),
        (Role::Initrd, args.initrd.clone()),
        (Role::Manifest, write("manifest", &resident(&kernel, &manifest)?)?),
        (Role::Policy, write("policy", file.policy.to_record().as_bytes())?),
    ];
    for (number, (role, image)) in tasks.load()?.into_iter().enumerate() {
        modules.push((role, write(&format!("task-{number}"), &image)?));
    }
    for (number, manifest) in named.iter().enumerate() {
        let manifest = linux_image::without_symbols(manifest)?;
        modules.push((Role::Kexec, write(&format!("kexec-{number}"), &manifest)?));
    }
    modules.extend(restore.map(|path| (Role::State, path)));
    let disc = work.path().join("disc.iso");
    grub::hypervisor(&hypervisor, &modules, &machine::with_console(&args.append), &disc)?;
    cache::write_atomically(&args.output, &std::fs::read(&disc)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The manifest as it goes onto the disc: without symbols, which the hypervisor has no use for.
///
/// # Errors
/// It is no manifest, or not this kernel's.
fn resident(kernel: &[u8], manifest: &[u8]) -> anyhow::Result<Vec<u8>> {
    const ANEW: &str = "make one with `ravelin prepare`, or leave out --manifest";
    let summary = Summary::from_manifest(manifest)
        .with_context(|| format!("the manifest cannot be used; {ANEW}"))?;
    let own = (kernel.len() as u64, abi::digest(kernel));
    ensure!(
        (summary.kernel_length, summary.kernel_digest) == own,
        "the manifest does not belong to this kernel; {ANEW}"
    );
    Ok(linux_image::without_symbols(manifest)?)
}
