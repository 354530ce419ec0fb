//! The policy as the hypervisor receives it. People write TOML; the `ravelin` command turns it
//! into this record.

use crate::event::{Verdict, ViolationKind};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of the record.
pub const MAGIC: [u8; 8] = *b"RVPOLICY";
/// Version of this layout.
pub const VERSION: u32 = 6;

/// How user execution and supervisor execution are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SupervisorExec {
    /// Not at all: one nested table. Locked pages cannot be written; any page can be executed.
    Off = 0,
    /// Two nested tables, switched by the execute fault.
    Views = 1,
}

/// What may become code after the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Modules {
    /// Nothing.
    Deny = 0,
    /// A page that the guest maps read-only and executable in its module range, with no writable
    /// alias. Nobody vouched for its bytes.
    Unauthenticated = 1,
}

/// Which of its own ways of patching locked text the kernel may use. Each is a legal step at a
/// legal place or it is refused; what is not allowed here is refused at its first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patching {
    /// Static keys.
    pub jump_label: bool,
    /// Static calls.
    pub static_call: bool,
    /// The function tracer. It needs code outside the image: see [`Policy::patching_in_force`].
    pub ftrace: bool,
    /// kprobes away from the tracer's places. They need code outside the image too.
    pub kprobes: bool,
    /// Live patches, which use the function tracer.
    pub livepatch: bool,
}

impl Patching {
    /// Everything.
    pub const ALL: Self =
        Self { jump_label: true, static_call: true, ftrace: true, kprobes: true, livepatch: true };
}

/// Whether a guest's request for execution (Heki's hypercall 14) alone makes a page code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HekiExec {
    /// No: the page is judged when it is executed, like any other.
    Verify = 0,
    /// Yes.
    Trust = 1,
    /// No, and a request for execution of a page that is not code is refused.
    Deny = 2,
}

impl HekiExec {
    /// Every value, by number.
    pub const ALL: [Self; 3] = [Self::Verify, Self::Trust, Self::Deny];
}

/// Which machines the hypervisor starts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Platform {
    /// Any: on one whose host bridge is in no table what is architectural is guarded, and the boot
    /// log and `status` say so.
    Any = 0,
    /// Those whose chipset's registers are known.
    Known = 1,
}

impl Platform {
    /// Every value, by number.
    pub const ALL: [Self; 2] = [Self::Any, Self::Known];

    /// Name in the policy file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Known => "known",
        }
    }
}

/// How closely it is watched that addresses of the kernel lead to the frames that the lock saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tables {
    /// Not at all.
    Off = 0,
    /// Where it costs next to nothing: at exits that happen anyway.
    Watch = 1,
    /// At each switch of the address space as well, which then exits.
    Guard = 2,
}

impl Tables {
    /// Every value, by number.
    pub const ALL: [Self; 3] = [Self::Off, Self::Watch, Self::Guard];

    /// Name in the policy file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Watch => "watch",
            Self::Guard => "guard",
        }
    }
}

/// What happens when something is attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reaction {
    /// As [`Verdict::Log`].
    Log = 0,
    /// As [`Verdict::Deny`].
    Deny = 1,
    /// As [`Verdict::Stop`].
    Stop = 2,
    /// The warden is asked, and denies or stops as [`Warden`] says. Where there is none, or none
    /// that answers in time: [`Verdict::Deny`].
    Ask = 3,
}

impl Reaction {
    /// Every reaction, by number.
    pub const ALL: [Self; 4] = [Self::Log, Self::Deny, Self::Stop, Self::Ask];

    /// The reaction with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|reaction| *reaction as u8 == number)
    }

    /// What it comes to without a warden.
    pub const fn alone(self) -> Verdict {
        match self {
            Self::Log => Verdict::Log,
            Self::Deny | Self::Ask => Verdict::Deny,
            Self::Stop => Verdict::Stop,
        }
    }

    /// Name in the policy file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Deny => "deny",
            Self::Stop => "stop",
            Self::Ask => "ask",
        }
    }
}

/// What the warden decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Warden {
    /// The machine is stopped when the warden has been asked about more violations than this that
    /// are of one kind or come from one instruction, within [`Warden::within_seconds`]. 0: never.
    /// At most [`Warden::MOST`].
    pub stop_after: u32,
    /// How long a violation counts.
    pub within_seconds: u32,
    /// Whether a guest may pin bits of its control registers (Heki's hypercall 13).
    pub heki_configure: bool,
}

impl Warden {
    /// The highest `stop_after`.
    pub const MOST: u32 = 32;
    /// What is in force unless the policy says otherwise.
    pub const DEFAULT: Self = Self { stop_after: 10, within_seconds: 60, heki_configure: true };

    fn read(record: &WardenRecord) -> Result<Self, PolicyError> {
        if record.stop_after > Self::MOST || record.reserved != [0; 7] {
            return Err(PolicyError::Value);
        }
        Ok(Self {
            stop_after: record.stop_after,
            within_seconds: record.within_seconds,
            heki_configure: flag(record.heki_configure)?,
        })
    }

    fn to_record(self) -> WardenRecord {
        WardenRecord {
            stop_after: self.stop_after,
            within_seconds: self.within_seconds,
            heki_configure: u8::from(self.heki_configure),
            reserved: [0; 7],
        }
    }
}

/// [`Warden`] as a part of the policy record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct WardenRecord {
    /// Violations.
    pub stop_after: u32,
    /// Seconds.
    pub within_seconds: u32,
    /// 1: allowed.
    pub heki_configure: u8,
    /// Always 0.
    pub reserved: [u8; 7],
}

/// The policy record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Record {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// A [`SupervisorExec`].
    pub supervisor_exec: u8,
    /// A [`Modules`].
    pub modules: u8,
    /// 1: show Ravelin's CPUID leaves and take Heki's hypercalls, at the price of an exit per CPUID
    /// instruction.
    pub announce: u8,
    /// 1: static keys may be patched.
    pub jump_label: u8,
    /// 1: static calls may be patched.
    pub static_call: u8,
    /// 1: the function tracer may patch.
    pub ftrace: u8,
    /// A [`HekiExec`].
    pub heki_exec: u8,
    /// 1: kprobes may be put.
    pub kprobes: u8,
    /// 1: live patches may be applied.
    pub livepatch: u8,
    /// 1: BPF's compiler may make code.
    pub jit: u8,
    /// Kernels that may be started by kexec, at most [`Policy::MOST_KERNELS`].
    pub kexec: u8,
    /// A [`Platform`].
    pub platform: u8,
    /// A [`Tables`].
    pub tables: u8,
    /// Always 0.
    pub reserved: [u8; 7],
    /// A [`Reaction`] per [`ViolationKind`].
    pub reactions: [u8; 16],
    /// For the warden.
    pub warden: WardenRecord,
    /// [`crate::digest`] of everything before this field.
    pub digest: u64,
}

/// A policy whose every field was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// See [`SupervisorExec`].
    pub supervisor_exec: SupervisorExec,
    /// See [`Modules`].
    pub modules: Modules,
    /// Whether CPUID tells the guest about Ravelin, and the guest can make Heki's hypercalls.
    pub announce: bool,
    /// See [`Patching`].
    pub patching: Patching,
    /// See [`HekiExec`].
    pub heki_exec: HekiExec,
    /// Whether what the kernel's BPF compiler makes may become code. It needs modules: see
    /// [`Policy::jit_in_force`].
    pub jit: bool,
    /// How many kernels are named that may be started by kexec. Their manifests come with the
    /// policy, just so many. See [`Policy::kexec_in_force`].
    pub kexec: u8,
    /// See [`Platform`].
    pub platform: Platform,
    /// See [`Tables`].
    pub tables: Tables,
    /// The reaction to each kind of violation, by its number.
    pub reactions: [Reaction; ViolationKind::COUNT],
    /// What the warden decides by.
    pub warden: Warden,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            supervisor_exec: SupervisorExec::Views,
            modules: Modules::Unauthenticated,
            announce: false,
            patching: Patching::ALL,
            heki_exec: HekiExec::Verify,
            jit: true,
            kexec: 0,
            platform: Platform::Any,
            tables: Tables::Watch,
            reactions: [Reaction::Deny; ViolationKind::COUNT],
            warden: Warden::DEFAULT,
        }
    }
}

/// Why a record is no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyError {
    /// Shorter or longer than a record, or without its magic number.
    NotAPolicy,
    /// Another version of the layout.
    Version(u32),
    /// The digest does not match: the record is damaged.
    Damaged,
    /// A field has a value that stands for nothing.
    Value,
}

impl Policy {
    /// Most kernels that can be named for kexec.
    pub const MOST_KERNELS: u8 = 4;

    /// The reaction to `kind`.
    pub fn reaction(&self, kind: ViolationKind) -> Reaction {
        self.reactions.get(kind as usize).copied().unwrap_or(Reaction::Deny)
    }

    /// What the kernel may really patch. Its function tracer calls from its sites a copy of its
    /// code in a page of the module range, and a kprobe executes the instruction that it displaces
    /// in such a page. So they cannot work where nothing may become code, and must be refused before
    /// their first step is made. A live patch is a use of the tracer, and its functions are a module.
    pub fn patching_in_force(&self) -> Patching {
        let modules = self.modules != Modules::Deny;
        let ftrace = self.patching.ftrace && modules;
        Patching {
            ftrace,
            kprobes: self.patching.kprobes && modules,
            livepatch: self.patching.livepatch && ftrace,
            ..self.patching
        }
    }

    /// Whether BPF's compiler may really make code: where nothing may become code it cannot.
    pub fn jit_in_force(&self) -> bool {
        self.jit && self.modules != Modules::Deny
    }

    /// Whether a kernel may really be started by kexec: where any page can be executed, nobody would
    /// see which one it is.
    pub fn kexec_in_force(&self) -> bool {
        self.kexec > 0 && self.supervisor_exec != SupervisorExec::Off
    }

    /// Words for the kernel's command line, each with a space behind it, by which the kernel is told
    /// what it will be refused, so that it does not try. Linux sets these from its command line, by
    /// its first process and before any program (`do_sysctl_args`, fs/proc/proc_sysctl.c). Whoever
    /// undoes them meets the refusal.
    pub fn kernel_arguments(&self) -> impl Iterator<Item = &'static str> {
        // kexec_load and kexec_file_load fail with EPERM, and nobody can switch them on again.
        let kexec = (self.reaction(ViolationKind::Kexec) != Reaction::Log
            && !self.kexec_in_force())
        .then_some("sysctl.kernel.kexec_load_disabled=1 ");
        // The interpreter, which Debian's kernels have, runs BPF programs.
        let jit = (!self.jit_in_force()).then_some("sysctl.net.core.bpf_jit_enable=0 ");
        // An optimised kprobe is a jump over several instructions, which is no legal step.
        let kprobes =
            self.patching_in_force().kprobes.then_some("sysctl.debug.kprobes-optimization=0 ");
        [kexec, jit, kprobes].into_iter().flatten()
    }

    /// Reads and checks a record.
    ///
    /// # Errors
    /// See [`PolicyError`]; no field of a bad record is used.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let record = Record::read_from_bytes(bytes).map_err(|_| PolicyError::NotAPolicy)?;
        if record.magic != MAGIC {
            return Err(PolicyError::NotAPolicy);
        }
        if record.version != VERSION {
            return Err(PolicyError::Version(record.version));
        }
        if record.digest != record.expected_digest() {
            return Err(PolicyError::Damaged);
        }
        let mut policy = Self {
            supervisor_exec: match record.supervisor_exec {
                0 => SupervisorExec::Off,
                1 => SupervisorExec::Views,
                _ => return Err(PolicyError::Value),
            },
            modules: match record.modules {
                0 => Modules::Deny,
                1 => Modules::Unauthenticated,
                _ => return Err(PolicyError::Value),
            },
            announce: flag(record.announce)?,
            patching: Patching {
                jump_label: flag(record.jump_label)?,
                static_call: flag(record.static_call)?,
                ftrace: flag(record.ftrace)?,
                kprobes: flag(record.kprobes)?,
                livepatch: flag(record.livepatch)?,
            },
            jit: flag(record.jit)?,
            heki_exec: named(&HekiExec::ALL, |value| value as u8, record.heki_exec)?,
            kexec: record.kexec,
            platform: named(&Platform::ALL, |value| value as u8, record.platform)?,
            tables: named(&Tables::ALL, |value| value as u8, record.tables)?,
            reactions: [Reaction::Deny; ViolationKind::COUNT],
            warden: Warden::read(&record.warden)?,
        };
        if policy.kexec > Self::MOST_KERNELS || record.reserved != [0; 7] {
            return Err(PolicyError::Value);
        }
        for (reaction, number) in policy.reactions.iter_mut().zip(record.reactions) {
            *reaction = Reaction::from_number(number).ok_or(PolicyError::Value)?;
        }
        Ok(policy)
    }

    /// The record that [`Policy::parse`] reads back as `self`.
    pub fn to_record(&self) -> Record {
        let mut record = Record {
            magic: MAGIC,
            version: VERSION,
            supervisor_exec: self.supervisor_exec as u8,
            modules: self.modules as u8,
            announce: u8::from(self.announce),
            jump_label: u8::from(self.patching.jump_label),
            static_call: u8::from(self.patching.static_call),
            ftrace: u8::from(self.patching.ftrace),
            heki_exec: self.heki_exec as u8,
            kprobes: u8::from(self.patching.kprobes),
            livepatch: u8::from(self.patching.livepatch),
            jit: u8::from(self.jit),
            kexec: self.kexec,
            platform: self.platform as u8,
            tables: self.tables as u8,
            reserved: [0; 7],
            reactions: [0; 16],
            warden: self.warden.to_record(),
            digest: 0,
        };
        for (number, reaction) in record.reactions.iter_mut().zip(self.reactions) {
            *number = reaction as u8;
        }
        record.digest = record.expected_digest();
        record
    }
}

/// The one of `all` that has this number.
fn named<T: Copy>(all: &[T], number_of: fn(T) -> u8, number: u8) -> Result<T, PolicyError> {
    all.iter().copied().find(|value| number_of(*value) == number).ok_or(PolicyError::Value)
}

const fn flag(number: u8) -> Result<bool, PolicyError> {
    match number {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(PolicyError::Value),
    }
}

impl Record {
    fn expected_digest(&self) -> u64 {
        let bytes = self.as_bytes();
        crate::digest(bytes.get(..bytes.len() - size_of::<u64>()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
