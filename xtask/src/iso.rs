//! End-to-end tests of `ravelin iso`: the same image boots on a machine with BIOS and on one with
//! UEFI.

use crate::build::On;
use crate::e2e::{Case, Place, SUPPORTED, boots_well, case, protected};
use crate::packages::Flavour::Cloud;
use crate::shell::{guest_folder, run};
use abi::policy::Policy;
use anyhow::{Context, ensure};
use ravelin::machine::{Boot, Machine};
use std::process::Command;

/// What starts the machine.
#[derive(Clone, Copy, Debug)]
enum Firmware {
    /// The emulator's BIOS.
    Bios,
    /// QEMU's UEFI.
    Ovmf,
}
use Firmware::{Bios, Ovmf};

/// Every test of boot discs.
pub fn cases() -> Vec<Case> {
    let both = [Bios, Ovmf].into_iter().flat_map(|firmware| [(firmware, 1), (firmware, 2)]);
    let of = |(firmware, cpus)| {
        let name = format!("iso-{firmware:?}-{cpus}-cpu").to_lowercase();
        let on = match firmware {
            Bios => SUPPORTED,
            Ovmf => &[On::Qemu],
        };
        Case { on, ..case(name, move |name, place| boots_disc(name, place, firmware, cpus)) }
    };
    both.map(of).collect()
}

fn boots_disc(
    name: &str,
    place: &Place<'_>,
    firmware: Firmware,
    cpus: usize,
) -> anyhow::Result<()> {
    let folder = guest_folder("logs")?;
    let disc = folder.join(format!("{name}.iso"));
    let mut machine = Machine { cpus, ..protected(place, Cloud, "poweroff", Policy::default())? };
    // Everything that GRUB's script language or its command line treats in a special way.
    machine.append += r#" test.words="a b" test.rest=$x,'y',\x41,\\,{z},#,;,&,é"#;
    let mut iso = Command::new(&place.built.ravelin);
    iso.arg("iso").arg("--kernel").arg(&machine.kernel).arg("--initrd").arg(&machine.initrd);
    run(iso.args(["--append", &machine.append, "--output"]).arg(&disc))?;
    machine.boot = Boot::Iso(disc.clone());
    if let Ovmf = firmware {
        let drive =
            |options: &str| ["-drive".to_owned(), format!("if=pflash,format=raw,{options}")];
        let variables = folder.join(format!("{name}.vars"));
        std::fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables)
            .context("cannot copy OVMF's variables")?;
        machine.extra.extend(drive("unit=0,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"));
        machine.extra.extend(drive(&format!("unit=1,file={}", variables.display())));
    }
    let report = boots_well(name, &machine)?;
    let console = std::fs::read_to_string(&report.log)?;
    // What the policy has the hypervisor put in front of it, too.
    let told: String = Policy::default().kernel_arguments().collect();
    let line = format!("Command line: {told}{}", machine.append);
    ensure!(console.contains(&line), "the kernel has another command line; see {name}.log");
    std::fs::remove_file(&disc)?;
    Ok(())
}
