//! Ravelin's own hypercall: `VMMCALL` (AMD) or `VMCALL` (Intel) with the number in RAX, the
//! argument in RBX, the answer in RAX. It only reads counters, so every privilege level may call.

/// Number in RAX that asks for a counter; RBX names it (see [`Counter`]).
pub const READ_COUNTER: u64 = 0x5256_4c4e_0000_0000;

/// Answer to a counter that does not exist.
pub const UNKNOWN: u64 = u64::MAX;

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
    /// Sequence number of the latest record on the event channel.
    LastEvent = 13,
    /// Violations seen.
    Violations = 14,
    /// 1 once the kernel is locked, 2 once its read-only data is too.
    Locked = 15,
    /// First physical address of the hypervisor's own memory (the guest's memory map shows it as
    /// reserved, so this is no secret).
    OwnMemory = 16,
    /// How user and supervisor execution are told apart: the number of a [`SupervisorMode`].
    SupervisorMode = 17,
    /// First physical address of the published region (crate `published`), which the guest can read
    /// and nobody but its root may: it holds addresses of the kernel, and this answer none.
    Published = 18,
    /// Bytes of the published region.
    PublishedBytes = 19,
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
    pub const ALL: [Counter; 20] = [
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
            Counter::Published => "published",
            Counter::PublishedBytes => "published-bytes",
        }
    }
}
