//! Boot discs: ISO 9660 images with GRUB on them, for BIOS and, if that part of GRUB is installed,
//! for UEFI.

use crate::check;
use anyhow::{Context, ensure};
use boot_info::{MAX_COMMAND_LINE, Role, SEPARATOR};
use std::borrow::Cow;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "grub-mkrescue";

/// Whether discs can be made here.
///
/// # Errors
/// A program or a part of GRUB is missing.
pub fn check() -> anyhow::Result<()> {
    for (program, package) in
        [(PROGRAM, "grub-common"), ("xorriso", "xorriso"), ("mformat", "mtools")]
    {
        check::program(program, package)?;
    }
    part("i386-pc", "grub-pc-bin")
}

/// Whether discs that are made here boot on UEFI machines, too.
///
/// # Errors
/// That part of GRUB is missing.
pub fn check_uefi() -> anyhow::Result<()> {
    part("x86_64-efi", "grub-efi-amd64-bin")
}

fn part(name: &str, package: &str) -> anyhow::Result<()> {
    let folder = Path::new("/usr/lib/grub").join(name);
    ensure!(
        folder.is_dir(),
        "there is no {}, a part of GRUB; on Debian: apt-get install {package}",
        folder.display()
    );
    Ok(())
}

/// Makes a disc that boots `kernel` alone.
///
/// # Errors
/// A file cannot be read, the command line not be passed on, or the disc not be written.
pub fn linux(kernel: &Path, initrd: &Path, append: &str, disc: &Path) -> anyhow::Result<()> {
    let commands = format!("linux /boot/kernel {}\ninitrd /boot/initrd\n", quoted(append)?);
    make("Linux", &commands, &[("kernel", kernel), ("initrd", initrd)], disc)
}

/// Makes a disc that boots `hypervisor` with its modules, each named by its role.
///
/// # Errors
/// A file cannot be read, the command line not be passed on, or the disc not be written.
pub fn hypervisor(
    hypervisor: &Path,
    modules: &[(Role, PathBuf)],
    append: &str,
    disc: &Path,
) -> anyhow::Result<()> {
    const HYPERVISOR: &str = "ravelin-hv";
    let mut commands = format!("multiboot2 /boot/{HYPERVISOR} {SEPARATOR} {}\n", quoted(append)?);
    let names: Vec<String> = (1..=modules.len()).map(|number| format!("module-{number}")).collect();
    let mut files = vec![(HYPERVISOR, hypervisor)];
    for ((role, path), name) in modules.iter().zip(&names) {
        // The hypervisor learns a module's role from the last word of its string.
        writeln!(commands, "module2 /boot/{name} {}", role.word())?;
        files.push((name, path));
    }
    make("Linux under Ravelin", &commands, &files, disc)
}

/// The words of a command line, each in GRUB's script language so that it stands for itself:
/// inside single quotes nothing is special but the quote. The backslashes that GRUB then puts
/// before quotes are taken away by the hypervisor.
///
/// # Errors
/// The command line is too long, or holds what GRUB cannot pass on.
fn quoted(append: &str) -> anyhow::Result<String> {
    ensure!(
        append.len() <= MAX_COMMAND_LINE,
        "the kernel's command line has {} bytes; it can have {MAX_COMMAND_LINE}",
        append.len()
    );
    let control = append.chars().find(|c| c.is_control() && !c.is_ascii_whitespace());
    ensure!(control.is_none(), "the kernel's command line holds a control character");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/+@%".contains(c);
    let words = append.split_ascii_whitespace().map(|word| {
        if word.chars().all(plain) {
            Cow::Borrowed(word)
        } else {
            Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
        }
    });
    Ok(words.collect::<Vec<_>>().join(" "))
}

/// GRUB's screen is also on the first serial port, if there is one. No graphics mode is set for
/// the kernel: nothing tells it of one.
fn configuration(title: &str, commands: &str) -> String {
    format!(
        "\
set timeout=0
set gfxpayload=text
if serial --unit=0 --speed=115200; then
terminal_input console serial
terminal_output console serial
fi
menuentry '{title}' {{
{commands}}}
"
    )
}

fn make(title: &str, commands: &str, files: &[(&str, &Path)], disc: &Path) -> anyhow::Result<()> {
    let tree = tempfile::Builder::new().prefix("ravelin-disc-").tempdir()?;
    let boot = tree.path().join("boot");
    std::fs::create_dir_all(boot.join("grub"))?;
    std::fs::write(boot.join("grub/grub.cfg"), configuration(title, commands))?;
    for (name, file) in files {
        std::fs::copy(file, boot.join(name)).with_context(|| {
            format!("cannot copy {} to {}", file.display(), tree.path().display())
        })?;
    }
    let output = Command::new(PROGRAM)
        .args(["--fonts=", "--locales=", "--themes=", "--output"])
        .arg(disc)
        .arg(tree.path())
        .output()
        .with_context(|| format!("cannot run {PROGRAM}"))?;
    ensure!(
        output.status.success() && disc.is_file(),
        "{PROGRAM} made no boot disc: {}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_grub_would_read_more_into_them() {
        for (append, line) in [
            ("console=ttyS0 root=UUID=1-2", "console=ttyS0 root=UUID=1-2"),
            ("a=$b  {c} #d", "'a=$b' '{c}' '#d'"),
            (r#"dyndbg="file x.c +p""#, r#"'dyndbg="file' x.c '+p"'"#),
            (r"it's \x41;", r"'it'\''s' '\x41;'"),
            ("\tone\ntwo ", "one two"),
            ("", ""),
        ] {
            assert_eq!(quoted(append).unwrap(), line);
        }
    }

    #[test]
    fn what_cannot_be_passed_on_is_refused() {
        assert!(quoted(&"x".repeat(MAX_COMMAND_LINE)).is_ok());
        assert!(quoted(&"x".repeat(MAX_COMMAND_LINE + 1)).is_err());
        assert!(quoted("a\u{7}b").is_err());
    }
}
