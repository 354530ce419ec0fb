//! Bochs for a machine: its configuration, and what its log tells.
//!
//! The configuration makes every run with one CPU the same, instruction by instruction: no clock,
//! no random numbers and no input of this host reach the guest. (How two CPUs take turns differs
//! from run to run in Bochs 3.0.) Bochs ends with exit code 1 whatever
//! happened, so how a run ended is read from its log.

use crate::grub;
use crate::machine::{Accel, Boot, Machine, Manifests, Protection};
use crate::notice::Notice;
use crate::scratch::Scratch;
use anyhow::{Context, bail, ensure};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Command;

/// The BIOS and the graphics adapter's, with the Debian packages that have them.
const ROMS: [(&str, &str); 2] = [
    ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
    ("/usr/share/vgabios/vgabios.bin", "vgabios"),
];

/// What is emulated unless told otherwise: a CPU with VMX, EPT and mode-based execute control.
const CPU: &str = "tigerlake";

/// Registers that Bochs does not have: address, type 0, and the halves of the value after a
/// reset, of the bits that must be zero and of the bits that cannot be changed.
///
/// The first is `IA32_MISC_ENABLE` with fast strings on. Without it Linux takes them for broken but
/// goes on using them for short copies, and hangs. The others count cycles (`IA32_MPERF` and
/// `IA32_APERF`).
const MSRS: &str = "\
0x1a0 0 00000000 00000001 00000000 00000000 00000000 00000000
0x0e7 0 00000000 00000000 00000000 00000000 00000000 00000000
0x0e8 0 00000000 00000000 00000000 00000000 00000000 00000000
";

/// Names in the folder of the run, which is Bochs' working directory.
const CONFIGURATION: &str = "bochsrc";
const MSR_FILE: &str = "msrs.def";
const DISC: &str = "boot.iso";

/// Whether Bochs can be run as `machine` wants it.
///
/// # Errors
/// It lacks something, or cannot do what is asked.
pub fn check(machine: &Machine) -> anyhow::Result<()> {
    ensure!(
        machine.accel == Accel::Tcg,
        "Bochs emulates every instruction: leave --accel kvm out, or use --emulator qemu"
    );
    for (file, package) in ROMS {
        ensure!(
            Path::new(file).is_file(),
            "there is no {file}, which Bochs needs; on Debian: apt-get install {package}"
        );
    }
    cpu(machine)?;
    match machine.boot {
        Boot::Direct => grub::check(),
        Boot::Iso(_) => Ok(()),
    }
}

/// The command that runs `machine`, and the files that it needs.
///
/// Its input, of all things, is where it writes what the guest sends to its serial port: a pipe
/// that needs no name. Its output is the event channel.
///
/// # Errors
/// A file cannot be written, or the boot disc not be made.
pub fn command(
    program: &Path,
    machine: &Machine,
    manifests: &Manifests,
    scratch: &Scratch,
) -> anyhow::Result<Command> {
    let disc = scratch.path(DISC);
    match (&machine.boot, &machine.protection) {
        (Boot::Iso(image), _) => drop(scratch.link(image, DISC)?),
        (Boot::Direct, Protection::Bare) => {
            grub::linux(&machine.kernel, &machine.initrd, &machine.append, &disc)?;
        }
        (Boot::Direct, Protection::Ravelin { hypervisor, .. }) => {
            let modules = machine.modules(manifests, scratch)?;
            grub::hypervisor(hypervisor, &modules, &machine.append, &disc)?;
        }
    }
    scratch.write(configuration(machine)?.as_bytes(), CONFIGURATION)?;
    scratch.write(MSRS.as_bytes(), MSR_FILE)?;
    let program = program.canonicalize().with_context(|| program.display().to_string())?;
    // Every second an alarm makes Bochs log its speed from inside the signal's handler, and if the
    // signal came while it was writing, it waits for ever for the stream's lock.
    let mut bochs = Command::new("env");
    bochs.arg("--block-signal=ALRM").arg(program);
    bochs.current_dir(scratch.path("")).args(["-q", "-f", CONFIGURATION]).args(&machine.extra);
    Ok(bochs)
}

fn configuration(machine: &Machine) -> anyhow::Result<String> {
    let [(bios, _), (vga_bios, _)] = ROMS;
    let megabytes = machine.memory >> 20;
    // Bochs holds no more than this at once; the rest goes to a file.
    let host_megabytes = megabytes.min(2048);
    let cpu = cpu(machine)?;
    let cpus = machine.cpus;
    // A bare guest has no event channel to write to.
    let events = u8::from(matches!(machine.protection, Protection::Ravelin { .. }));
    Ok(format!(
        "\
display_library: nogui
config_interface: textconfig
romimage: file={bios}
vgaromimage: file={vga_bios}
memory: guest={megabytes}, host={host_megabytes}
cpu: {cpu}, msrs={MSR_FILE}, count={cpus}, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
clock: sync=none, time0=1700000000
vga: extension=vbe, update_freq=1, realtime=0
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={DISC}, status=inserted
boot: cdrom
pci: enabled=1, chipset=i440fx
com1: enabled=1, mode=file, dev=/dev/stdin
port_e9_hack: enabled={events}
log: /dev/stderr
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
"
    ))
}

/// The model and the features that it must not have. Random numbers are among them, since they
/// would make every run another.
fn cpu(machine: &Machine) -> anyhow::Result<String> {
    let mut words = machine.cpu.as_deref().unwrap_or(CPU).split(',');
    let model = words.next().unwrap_or_default();
    let mut excluded = vec!["rdrand", "rdseed"];
    for word in words {
        let Some(feature) = word.strip_prefix('-') else {
            bail!("Bochs can only take features away from a CPU model, as in `{model},-vmx`");
        };
        excluded.push(feature);
    }
    for word in excluded.iter().chain([&model]) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        ensure!(!word.is_empty() && word.chars().all(plain), "`{word}` is no name of Bochs'");
    }
    Ok(format!("model={model}, exclude_features=\"{}\"", excluded.join(",")))
}

/// What a line of the log means: `TICKS LEVEL [DEVICE] TEXT`, as in
/// `00000000000i[SYS   ] bx_pc_system_c::Reset(HARDWARE) called`.
pub fn notice(line: &str, no_reboot: bool) -> Option<Notice> {
    let (stamp, rest) = line.split_once('[')?;
    let (device, text) = rest.split_once("] ")?;
    let ticks = stamp.trim_end_matches(|c: char| c.is_ascii_lowercase());
    match stamp.strip_prefix(ticks)? {
        "p" => {
            let text = text.trim_start_matches(">>PANIC<< ");
            Some(match text {
                "ACPI control: soft power off" | "Shutdown port: shutdown requested" => {
                    Notice::PowerOff
                }
                _ if text.starts_with("exception(): 3rd ") => {
                    Notice::Failed("triple fault: the CPU cannot go on".into())
                }
                _ => Notice::Failed(format!("Bochs stopped: {}: {text}", device.trim())),
            })
        }
        "e" => Some(Notice::Complaint(format!("{}: {text}", device.trim()))),
        // The first one, at tick 0, is the start of the machine.
        "i" if text.starts_with("bx_pc_system_c::Reset(") => {
            let again = ticks.parse().is_ok_and(|ticks: u64| ticks > 0);
            again.then_some(Notice::Reset { stopped: no_reboot })
        }
        _ => None,
    }
}

/// The output of Bochs without what it prints before the machine starts.
pub struct AfterBanner<R> {
    stream: BufReader<R>,
    passed: bool,
}

impl<R: Read> AfterBanner<R> {
    pub fn of(stream: R) -> Self {
        Self { stream: BufReader::new(stream), passed: false }
    }

    /// Reads up to the second line of `=`.
    fn pass(&mut self) -> std::io::Result<()> {
        const MOST_LINES: usize = 10;
        let mut dividers = 0;
        for _ in 0..MOST_LINES {
            let mut line = Vec::new();
            self.stream.read_until(b'\n', &mut line)?;
            dividers += usize::from(line.starts_with(b"======"));
            if dividers == 2 {
                break;
            }
        }
        self.passed = true;
        Ok(())
    }
}

impl<R: Read> Read for AfterBanner<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if !self.passed {
            self.pass()?;
        }
        self.stream.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Emulator;

    fn machine(cpu: Option<&str>) -> Machine {
        Machine {
            kernel: "vmlinuz".into(),
            initrd: "initrd".into(),
            append: String::new(),
            boot: Boot::Direct,
            cpus: 2,
            memory: 512 << 20,
            protection: Protection::Bare,
            emulator: Emulator::Bochs { program: "bochs".into() },
            accel: Accel::Tcg,
            cpu: cpu.map(str::to_owned),
            icount: None,
            no_reboot: false,
            timeout: None,
            extra: Vec::new(),
        }
    }

    #[test]
    fn the_machine_is_in_the_configuration() {
        let text = configuration(&machine(None)).unwrap();
        for line in [
            "memory: guest=512, host=512",
            "cpu: model=tigerlake, exclude_features=\"rdrand,rdseed\", msrs=msrs.def, count=2, \
             ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1",
            "port_e9_hack: enabled=0",
            "clock: sync=none, time0=1700000000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn features_can_only_be_taken_away() {
        let of = |text| cpu(&machine(Some(text)));
        assert_eq!(
            of("corei7_skylake_x,-vmx").unwrap(),
            "model=corei7_skylake_x, exclude_features=\"rdrand,rdseed,vmx\""
        );
        for bad in ["", "tigerlake,+svm", "tigerlake,-", "tiger lake", "a\nlog: /x", "a,-\""] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kvm_is_refused() {
        let kvm = Machine { accel: Accel::Kvm, ..machine(None) };
        assert!(check(&kvm).unwrap_err().to_string().contains("--accel"));
    }

    #[test]
    fn the_log_says_how_it_ended() {
        let of = |line: &str| notice(line, true);
        let panic = |text| of(&format!("03466659680p[CPU0  ] >>PANIC<< {text}"));
        assert_eq!(panic("ACPI control: soft power off"), Some(Notice::PowerOff));
        assert_eq!(panic("Shutdown port: shutdown requested"), Some(Notice::PowerOff));
        assert!(matches!(
            panic("exception(): 3rd (13) exception with no resolution"),
            Some(Notice::Failed(reason)) if reason.contains("triple fault")
        ));
        assert!(matches!(
            panic("SMM restore: CR4 consistency check failed"),
            Some(Notice::Failed(reason)) if reason.contains("CPU0: SMM restore")
        ));
        assert_eq!(
            of("00000000007e[CPU0  ] VMENTER FAIL: RFLAGS[1] cleared"),
            Some(Notice::Complaint("CPU0: VMENTER FAIL: RFLAGS[1] cleared".into()))
        );
        let reset = "i[SYS   ] bx_pc_system_c::Reset(SOFTWARE) called";
        assert_eq!(of(&format!("00000000000{reset}")), None);
        assert_eq!(of(&format!("00000000009{reset}")), Some(Notice::Reset { stopped: true }));
        for line in ["", "=====", "00000000000i[      ] Bochs x86 Emulator 3.0", "p[", "[ACPI  ] x"]
        {
            assert_eq!(of(line), None, "{line}");
        }
    }

    #[test]
    fn the_banner_is_no_event() {
        let after = |output: &[u8]| {
            let mut bytes = Vec::new();
            AfterBanner::of(output).read_to_end(&mut bytes).unwrap();
            bytes
        };
        let banner = b"=========\n   Bochs x86 Emulator 3.0\n\n=========\n".as_slice();
        assert_eq!(after(&[banner, b"RVEV\n=======\nx"].concat()), b"RVEV\n=======\nx");
        assert_eq!(after(banner), b"");
        assert_eq!(after(b""), b"");
    }
}
