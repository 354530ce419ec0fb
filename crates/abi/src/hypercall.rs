//! Ravelin's own hypercalls: `VMMCALL` (AMD) or `VMCALL` (Intel) with the number in RAX, the
//! arguments in RBX and RCX, the answer in RAX. Every privilege level may read counters, ask for an
//! audit, and have the state saved; the others are for CPL 0.

/// Number in RAX that asks for a counter; RBX names it (see [`Counter`]).
pub const READ_COUNTER: u64 = 0x5256_4c4e_0000_0000;

/// Number in RAX that makes pages secret: RCX pages from guest-physical frame RBX on, all of them
/// RAM, at most [`MOST_SECRET_PAGES`]. When it is answered, no window of the hypervisor's is open on
/// them, and none opens until [`MAKE_ORDINARY`]: no task and no other VM can reach them. The answer
/// is 0 or a negative errno value: EPERM (CPL is not 0, or a page is code or locked), EINVAL, EFAULT (not RAM). A guest that makes
/// its page tables or code secret has accesses refused that the hypervisor would have to look at.
pub const MAKE_SECRET: u64 = 0x5256_4c4e_0000_0001;
/// Number in RAX that undoes [`MAKE_SECRET`]. The guest is to clear the pages first.
pub const MAKE_ORDINARY: u64 = 0x5256_4c4e_0000_0002;
/// Most pages of one call.
pub const MOST_SECRET_PAGES: u64 = 512;
/// Number in RAX that has the VM's protection state written to the event channel, for the host. The
/// answer is 0 or a negative errno value: EALREADY (nothing has changed since it was last written),
/// E2BIG (its pages make too many runs), ENODEV (the channel takes text alone). Every privilege
/// level may ask.
pub const SAVE_STATE: u64 = 0x5256_4c4e_0000_0004;
/// Number in RAX by which the guest's kernel says that its memory is what it was when the protection
/// state was saved that came with the machine: then every page is again what it was there, with what
/// was withheld of it. (Those that are locked became so at the lock.) The answer is 0 or a negative
/// errno value, and then nothing has changed: EPERM (CPL is not 0, or the state is
/// weaker than what is in force; the event channel says where), ENOENT (no state came with the
/// machine), EAGAIN (the kernel is not locked whole yet), EOPNOTSUPP (the CPU cannot withhold it).
pub const RESTORE_STATE: u64 = 0x5256_4c4e_0000_0005;
/// CPUID leaf whose EAX names what Ravelin offers, if it is announced; see [`feature`].
pub const FEATURE_LEAF: u32 = 0x4000_0002;
/// Bits of EAX in [`FEATURE_LEAF`].
pub mod feature {
    /// [`super::MAKE_SECRET`] and [`super::MAKE_ORDINARY`].
    pub const SECRET_PAGES: u32 = 1 << 0;
}
/// Errors of the calls but [`READ_COUNTER`], as Linux numbers them.
pub mod errno {
    /// The caller is not at CPL 0, or a page is code or locked.
    pub const EPERM: u64 = 1;
    /// There is nothing of that kind.
    pub const ENOENT: u64 = 2;
    /// More than is written at once.
    pub const E2BIG: u64 = 7;
    /// Not yet.
    pub const EAGAIN: u64 = 11;
    /// Something that is not RAM.
    pub const EFAULT: u64 = 14;
    /// Too many pages, or none.
    pub const EINVAL: u64 = 22;
    /// There is no such channel.
    pub const ENODEV: u64 = 19;
    /// The CPU cannot.
    pub const EOPNOTSUPP: u64 = 95;
    /// It is done already.
    pub const EALREADY: u64 = 114;
}

/// Answer to a counter that does not exist.
pub const UNKNOWN: u64 = u64::MAX;

/// Number in RAX that has every page table in the machine judged by the five rules of memory: those
/// of the hypervisor on every CPU, of tasks, of the second stage. It changes nothing and shows
/// nothing, so every privilege level may ask. The answer is the number of runs of leaves that were
/// judged, all of them as they must be, or one of the two below.
pub const AUDIT: u64 = 0x5256_4c4e_0000_0003;
/// Answer to [`AUDIT`]: a leaf breaks a rule; which one, the event channel says.
pub const AUDIT_FAILED: u64 = u64::MAX - 1;
/// Answer to [`AUDIT`]: not yet. Audits take at most 1 % of the time of the machine.
pub const AUDIT_LATER: u64 = u64::MAX - 2;

/// The counters, in the order of their numbers in RBX. All are sums over the VM's vCPUs since
/// power-on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Counter {
    /// Exits of every kind.
    Exits = 0,
    /// Switches from one view to the other by an execute fault.
    ViewSwitch = 1,
    /// Other second-stage faults.
    NestedFault = 2,
    /// CPUID instructions.
    Cpuid = 3,
    /// MSR accesses.
    Msr = 4,
    /// Control-register writes.
    ControlRegister = 5,
    /// Loads of GDTR, IDTR, LDTR and TR.
    DescriptorTable = 6,
    /// Non-maskable interrupts, shootdowns among them.
    Nmi = 7,
    /// Port accesses.
    Port = 8,
    /// Hypercalls.
    Hypercall = 9,
    /// Anything else.
    Other = 10,
    /// Writes to the local APIC's page that were checked and passed on; part of `NestedFault`.
    ApicWrite = 11,
    /// Text patches performed for the guest; part of `NestedFault`.
    Patch = 12,
    /// Exits at which a task could run.
    Task = 13,
    /// Sequence number of the latest record on the event channel.
    LastEvent = 14,
    /// Violations seen.
    Violations = 15,
    /// 1 once the kernel is locked, 2 once its read-only data is too.
    Locked = 16,
    /// First physical address of the hypervisor's own memory (the guest's memory map shows it as
    /// unusable, so this is no secret).
    OwnMemory = 17,
    /// How user and supervisor execution are told apart: the number of a [`SupervisorMode`].
    SupervisorMode = 18,
    /// First physical address of the published region (crate `published`), which the guest can read
    /// and nobody but its root may: it holds addresses of the kernel, and this answer none.
    Published = 19,
    /// Bytes of the published region.
    PublishedBytes = 20,
}

/// How user and supervisor execution are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum SupervisorMode {
    /// Not at all, as the policy says.
    Off = 0,
    /// By two tables of the second stage.
    Views = 1,
    /// By mode-based execute control (Intel).
    Mbec = 2,
    /// By the guest-mode execute trap (AMD).
    Gmet = 3,
}

impl SupervisorMode {
    /// The mode with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Off, Self::Views, Self::Mbec, Self::Gmet]
            .into_iter()
            .find(|mode| *mode as u64 == number)
    }

    /// Name in tables, JSON and the boot log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Views => "views",
            Self::Mbec => "mbec",
            Self::Gmet => "gmet",
        }
    }
}

impl Counter {
    /// Every counter, in the order of its number.
    pub const ALL: [Counter; 21] = [
        Counter::Exits,
        Counter::ViewSwitch,
        Counter::NestedFault,
        Counter::Cpuid,
        Counter::Msr,
        Counter::ControlRegister,
        Counter::DescriptorTable,
        Counter::Nmi,
        Counter::Port,
        Counter::Hypercall,
        Counter::Other,
        Counter::ApicWrite,
        Counter::Patch,
        Counter::Task,
        Counter::LastEvent,
        Counter::Violations,
        Counter::Locked,
        Counter::OwnMemory,
        Counter::SupervisorMode,
        Counter::Published,
        Counter::PublishedBytes,
    ];
    /// The counter with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|counter| *counter as u64 == number)
    }
    /// Name in tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Counter::Exits => "exits",
            Counter::ViewSwitch => "view-switch",
            Counter::NestedFault => "nested-fault",
            Counter::Cpuid => "cpuid",
            Counter::Msr => "msr",
            Counter::ControlRegister => "control-register",
            Counter::DescriptorTable => "descriptor-table",
            Counter::Nmi => "nmi",
            Counter::Port => "port",
            Counter::Hypercall => "hypercall",
            Counter::Other => "other",
            Counter::ApicWrite => "apic-write",
            Counter::Patch => "patch",
            Counter::LastEvent => "last-event",
            Counter::Violations => "violations",
            Counter::Locked => "locked",
            Counter::OwnMemory => "own-memory",
            Counter::SupervisorMode => "supervisor-mode",
            Counter::Task => "task",
            Counter::Published => "published",
            Counter::PublishedBytes => "published-bytes",
        }
    }
}
