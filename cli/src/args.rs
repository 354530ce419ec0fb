//! What can be typed after `ravelin`.

use clap::{Parser, Subcommand, ValueEnum};
use ravelin::{check, machine};
use std::path::{Path, PathBuf};

/// Run a Linux kernel under Ravelin, which enforces the kernel's integrity from outside it.
#[derive(Parser)]
#[command(version)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Boot a kernel under Ravelin in an emulated machine
    Run(Box<Run>),
    /// Write a disc image that boots a kernel under Ravelin on machines with BIOS or UEFI
    Iso(Iso),
    /// Write the manifest of a kernel, which tells the hypervisor what it must know about it
    Prepare(Prepare),
    /// Write the image of a task, for a boot loader of your own
    Task(Task),
    /// Print what a kernel holds, and what Ravelin can and cannot enforce on it
    Inspect(Inspect),
    /// Search a memory dump for what can be written and executed, through one mapping or two
    Audit(Audit),
    /// Inside a guest: say whether Ravelin protects it, how, and what that has cost so far
    #[command(
        after_help = "Exit codes: 0 the kernel is locked, 1 it is not or not yet, or the audit failed, 2 there is no Ravelin here"
    )]
    Status {
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
        /// Have every page table in the machine audited too
        #[arg(long)]
        audit: bool,
    },
    /// Work with the protection state of a machine: policy, pins, what every page may be used for
    #[command(subcommand)]
    State(StateCommand),
    /// Inside a guest: print the latest events, oldest first (as root)
    Events(Events),
    /// Inside a guest: print the counters in Prometheus' text format
    Metrics(Metrics),
    /// Work with policy files
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(clap::Args)]
pub struct Events {
    /// Go on, and print events as they happen, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    /// Print one JSON object per line, as `ravelin run --events` writes them
    #[arg(long)]
    json: bool,
    /// Print lines for the journal: with a priority such as <3> in front, and without the time
    #[arg(long, conflicts_with = "json")]
    journal: bool,
}

/// How events are printed.
#[derive(Clone, Copy)]
pub enum Form {
    /// For people.
    Lines,
    /// JSON objects.
    Json,
    /// For journald.
    Journal,
}

impl Events {
    /// How events are printed.
    pub const fn form(&self) -> Form {
        match (self.json, self.journal) {
            (true, _) => Form::Json,
            (false, true) => Form::Journal,
            (false, false) => Form::Lines,
        }
    }
}

const METRICS: &str = "\
Root gets everything; others get no violations by kind, and no policy.

For node_exporter's textfile collector write to another file first and rename it:
  ravelin metrics > /var/lib/node_exporter/ravelin.prom.new &&
      mv /var/lib/node_exporter/ravelin.prom.new /var/lib/node_exporter/ravelin.prom";

#[derive(clap::Args)]
#[command(after_help = METRICS)]
pub struct Metrics {
    /// Serve them over HTTP at /metrics, as on 127.0.0.1:9700, until Ctrl-C
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<std::net::SocketAddr>,
}

#[derive(Subcommand)]
pub enum StateCommand {
    /// Inside a guest: have its state written to the host (see `ravelin run --state`)
    Save,
    /// Print a state
    Show {
        /// A file that `ravelin run --state` wrote
        file: PathBuf,
        /// Print everything, page ranges too, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say whether a state allows anything that another does not
    #[command(after_help = "Exit codes: 0 nothing is weaker, 1 something is, 2 bad input")]
    Compare {
        /// The state in question
        file: PathBuf,
        /// The state that it must not be weaker than
        with: PathBuf,
    },
}

#[derive(Subcommand)]
pub enum PolicyCommand {
    /// Check a policy file and print what it amounts to
    Check {
        /// The policy file
        file: PathBuf,
    },
}

const EXIT_CODES: &str = "\
The guest's serial console is standard input and output; events are shown on standard error.

Exit codes:
  0    the guest switched the machine off
  1    the machine could not start or go on
  2    wrong usage or bad input; nothing was started
  3    the guest reset the machine (with --no-reboot)
  4    Ravelin stopped the machine, as the policy says
  124  the time given by --timeout is over
  130  Ctrl-C";

#[derive(clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Run {
    /// Kernel: a bzImage, such as /boot/vmlinuz-...
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial file system
    #[arg(long, value_name = "FILE")]
    pub initrd: PathBuf,
    /// Kernel command line; console=ttyS0 is added unless a console is named
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Number of CPUs
    #[arg(long, value_name = "N", default_value = "1", value_parser = check::cpus)]
    pub smp: usize,
    /// Memory, as in 512M or 6G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = check::memory)]
    pub mem: u64,
    /// Policy file; without it every violation is denied
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    pub policy: Option<PathBuf>,
    /// Write every event to this file, one JSON object per line
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    pub events: Option<PathBuf>,
    /// Write the machine's protection state to this file whenever `ravelin state save` is run in it
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    pub state: Option<PathBuf>,
    /// Restore the protection state in this file, which must be of the same kernel at the same place
    /// (start it with nokaslr) and nowhere weaker than the policy and the lock
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    pub restore: Option<PathBuf>,
    /// Manifest to use instead of the one made from the kernel
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    pub manifest: Option<PathBuf>,
    /// Hypervisor image [default: $RAVELIN_HYPERVISOR, or ravelin-hv beside this program]
    #[arg(long, value_name = "FILE", conflicts_with = "bare")]
    pub hypervisor: Option<PathBuf>,
    #[command(flatten)]
    pub tasks: Tasks,
    /// What emulates the machine
    #[arg(long, value_enum, default_value = "qemu")]
    pub emulator: Emulator,
    /// Bochs program, 3.0 or later [default: $RAVELIN_BOCHS, or what `cargo xtask bochs` built]
    #[arg(long, value_name = "FILE")]
    pub bochs: Option<PathBuf>,
    /// How instructions are executed
    #[arg(long, value_enum, default_value = "tcg")]
    pub accel: Accel,
    /// CPU model, in the emulator's words
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// End when the guest reboots
    #[arg(long)]
    pub no_reboot: bool,
    /// End after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Boot the kernel without Ravelin, to compare
    #[arg(long)]
    pub bare: bool,
    /// Further arguments for the emulator, such as `-- -drive file=disk.img,format=raw` for QEMU
    #[arg(last = true)]
    pub extra: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Emulator {
    /// An AMD CPU with SVM
    Qemu,
    /// An Intel CPU with VMX; with one CPU every run is the same; the console takes no input
    Bochs,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Accel {
    /// Emulation; needs nothing
    Tcg,
    /// Nested virtualization; needs an AMD CPU and kvm_amd nested=1
    Kvm,
}

impl From<Accel> for machine::Accel {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Tcg => Self::Tcg,
            Accel::Kvm => Self::Kvm,
        }
    }
}

#[derive(clap::Args)]
pub struct Prepare {
    /// Kernel: a bzImage, such as /boot/vmlinuz-...
    pub kernel: PathBuf,
    /// Where to write the manifest
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Write just what the hypervisor loads, for a boot loader of your own: without symbols and
    /// not packed
    #[arg(long)]
    pub resident: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Inspect {
    /// Kernel: a bzImage, such as /boot/vmlinuz-...
    pub kernel: PathBuf,
    /// List every single patch site too
    #[arg(long)]
    pub sites: bool,
    /// Print the same as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(clap::Args)]
pub struct Iso {
    /// Kernel: a bzImage, such as /boot/vmlinuz-...
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial file system
    #[arg(long, value_name = "FILE")]
    pub initrd: PathBuf,
    /// Kernel command line; console=ttyS0 is added unless a console is named
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// Policy file; without it every violation is denied
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Protection state to restore, as for `ravelin run`
    #[arg(long, value_name = "FILE")]
    pub restore: Option<PathBuf>,
    /// Manifest to use instead of the one made from the kernel
    #[arg(long, value_name = "FILE")]
    pub manifest: Option<PathBuf>,
    /// Hypervisor image [default: $RAVELIN_HYPERVISOR, or ravelin-hv beside this program]
    #[arg(long, value_name = "FILE")]
    pub hypervisor: Option<PathBuf>,
    #[command(flatten)]
    pub tasks: Tasks,
    /// Where to write the image
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// What runs beside the guest, in ring 3 of the hypervisor.
#[derive(clap::Args)]
pub struct Tasks {
    /// Task that decides what the policy leaves to thought [default: ravelin-warden beside the
    /// hypervisor image]
    #[arg(long, value_name = "FILE", conflicts_with = "no_warden")]
    pub warden: Option<PathBuf>,
    /// Leave it out: the hypervisor decides alone
    #[arg(long)]
    pub no_warden: bool,
    /// Another task; can be given seven times
    #[arg(long, value_name = "FILE")]
    pub task: Vec<PathBuf>,
}

impl Tasks {
    /// The tasks for the hypervisor at this path.
    ///
    /// # Errors
    /// There is no warden, and it was not to be left out.
    pub fn find(&self, hypervisor: &Path) -> anyhow::Result<machine::Tasks> {
        let warden = if self.no_warden {
            None
        } else {
            Some(check::warden(self.warden.as_deref(), hypervisor)?)
        };
        Ok(machine::Tasks { warden, others: self.task.clone() })
    }
}

#[derive(clap::Args)]
pub struct Task {
    /// Program: a static ELF file
    pub program: PathBuf,
    /// Name in reports [default: the name of the file]
    #[arg(long)]
    pub name: Option<String>,
    /// Where to write the image
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

const AUDIT: &str = "\
DUMP is an ELF file: QEMU's `dump-guest-memory FILE`, `virsh dump --memory-only`, or a kdump that
`makedumpfile -E` or no makedumpfile wrote.

Exit codes:
  0  nothing was found that should not be
  1  something was found
  2  wrong usage or bad input";

#[derive(clap::Args)]
#[command(after_help = AUDIT)]
pub struct Audit {
    /// The memory dump
    pub dump: PathBuf,
    /// System.map or vmlinux of the dump's kernel [default: the symbols that the kernel carries]
    #[arg(long, value_name = "FILE")]
    pub symbols: Option<PathBuf>,
    /// Value of CR3 in the dumped machine [default: what the notes in the dump say]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub cr3: Option<u64>,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the result as a web page, with a map of memory
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// A hexadecimal number, with or without 0x before it.
fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|error| format!("an address is hexadecimal: {error}"))
}
