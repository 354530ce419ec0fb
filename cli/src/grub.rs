//! Boot discs: an ISO 9660 image with GRUB, for emulators that load no kernel themselves.

use crate::check;
use anyhow::{Context, ensure};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "grub-mkrescue";
/// Everything it takes, `grub-mkrescue` included.
const PACKAGES: &str = "grub-common grub-pc-bin xorriso mtools";

/// Whether discs can be made here.
///
/// # Errors
/// A program is missing.
pub fn check() -> anyhow::Result<()> {
    for program in [PROGRAM, "xorriso", "mformat"] {
        check::program(program, PACKAGES)?;
    }
    Ok(())
}

/// Makes a disc that boots `kernel` alone.
///
/// # Errors
/// A file cannot be read, or the disc not be written.
pub fn linux(kernel: &Path, initrd: &Path, append: &str, disc: &Path) -> anyhow::Result<()> {
    let commands = format!("linux /boot/kernel {}\ninitrd /boot/initrd\n", quoted(append));
    make(&commands, &[("kernel", kernel), ("initrd", initrd)], disc)
}

/// Makes a disc that boots `hypervisor` with its modules, each named by its role.
///
/// # Errors
/// A file cannot be read, or the disc not be written.
pub fn hypervisor(
    hypervisor: &Path,
    modules: &[(&str, PathBuf)],
    append: &str,
    disc: &Path,
) -> anyhow::Result<()> {
    const HYPERVISOR: &str = "ravelin-hv";
    let mut commands = format!("multiboot /boot/{HYPERVISOR} -- {}\n", quoted(append));
    let mut files = vec![(HYPERVISOR, hypervisor)];
    for (role, path) in modules {
        writeln!(commands, "module /boot/{role} {role}")?;
        files.push((role, path));
    }
    make(&commands, &files, disc)
}

/// The words of a command line, safe from GRUB's own reading of them.
fn quoted(append: &str) -> String {
    let words = append.split_whitespace();
    let quoted = words.map(|word| format!("'{}'", word.replace('\'', r"'\''")));
    quoted.collect::<Vec<_>>().join(" ")
}

/// Commands without a menu: GRUB shows nothing unless one of them fails.
fn make(commands: &str, files: &[(&str, &Path)], disc: &Path) -> anyhow::Result<()> {
    let tree = tempfile::tempdir()?;
    let boot = tree.path().join("boot");
    std::fs::create_dir_all(boot.join("grub"))?;
    let configuration = format!(
        "serial --unit=0 --speed=115200\nterminal_input serial\nterminal_output serial\n\
         {commands}boot\n"
    );
    std::fs::write(boot.join("grub/grub.cfg"), configuration)?;
    for (name, file) in files {
        std::fs::copy(file, boot.join(name))
            .with_context(|| format!("cannot read {}", file.display()))?;
    }
    let mut make = Command::new(PROGRAM);
    let output = make.arg("-o").arg(disc).arg(tree.path()).output();
    let output = output.with_context(|| format!("cannot run {PROGRAM}"))?;
    ensure!(
        output.status.success(),
        "{PROGRAM} made no boot disc: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted() {
        assert_eq!(quoted("console=ttyS0  a='b' $x"), r"'console=ttyS0' 'a='\''b'\''' '$x'");
        assert_eq!(quoted(""), "");
    }
}
