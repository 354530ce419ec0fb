//! The one seam between Ravelin and a CPU vendor's virtualization extension.
//!
//! [`Vendor`] is everything that the hypervisor wants of an architecture; [`crate::svm`] and
//! [`crate::vmx`] supply it, and nothing above them asks which one it is. A third would have to
//! supply: a second-stage table format ([`SecondStage`]), permission maps, a vCPU that is entered
//! and tells why it left ([`Exit`]), access to the guest's registers, and four switches: which
//! second stage, what is intercepted after the lock, whether address-space switches are, and
//! whether an NMI can be delivered.

use crate::boot::Machine;
use crate::vm::Ram;
use addr::{Gpa, GuestPhysical, Gva, Hfn};
use integrity::Rights;
use mtrr::{MemoryType, MemoryTypes};
use paging::Format;
use spin::Once;
use x86_decode::{Mode, Registers, Table};

/// Why the guest stopped.
#[derive(Clone, Copy, Debug)]
pub enum Exit {
    /// The second stage did not allow an access.
    NestedFault(Access),
    /// CPUID.
    Cpuid,
    /// An NMI has arrived on this CPU and is not pending any more.
    Nmi,
    /// The guest can take an NMI again.
    NmiWindow,
    /// RDMSR or WRMSR of an intercepted register.
    Msr {
        /// It is WRMSR.
        write: bool,
    },
    /// A write of CR0, CR3 or CR4.
    ControlRegister,
    /// A load or store of GDTR, IDTR, LDTR or TR.
    DescriptorTable,
    /// A hidden port.
    Port {
        /// It is read, not written.
        input: bool,
        /// 1, 2 or 4.
        bytes: u8,
    },
    /// VMMCALL or VMCALL.
    Hypercall,
    /// The guest can take an interrupt.
    InterruptWindow,
    /// Another instruction of the virtualization extension, which the guest does not have.
    VirtualizationInstruction,
    /// XSETBV.
    Xsetbv,
    /// INVD.
    Invd,
    /// A switch to another task by hardware, which no 64-bit kernel makes.
    TaskSwitch,
    /// An INIT signal has arrived and was dropped.
    Init,
    /// A SIPI has arrived and was dropped.
    Startup,
    /// The guest has crashed so that only a reset helps.
    TripleFault,
    /// The CPU refused to run the guest, or left it for a reason that was not asked for.
    Failed {
        /// The vendor's number for it.
        reason: u64,
        /// What else the CPU says.
        detail: [u64; 2],
    },
}

/// What the CPU says of an access that the second stage did not allow.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// Where it went.
    pub gpa: Gpa,
    /// There is a translation, but not with the right that was needed.
    pub present: bool,
    /// It would have written, and may have read as well.
    pub write: bool,
    /// It was an instruction fetch.
    pub fetch: bool,
    /// It was made by the guest's own page walk, not by its instruction.
    pub table_walk: bool,
}

/// An exception for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// #UD.
    UndefinedOpcode,
    /// #GP(0).
    GeneralProtection,
}

/// Where a vCPU starts, in 64-bit mode with flat segments (the Linux boot protocol), and with
/// EFER.NXE: the other CPUs of newer kernels (6.12) go straight to tables that use NX.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub entry: Gpa,
    /// RSI.
    pub rsi: u64,
    /// Identity page tables, for CR3.
    pub tables: Gpa,
    /// A GDT with 64-bit code at 0x10 and data at 0x18.
    pub gdt: Gpa,
    /// RSP.
    pub stack: Gpa,
}

/// What a new vCPU is made from.
pub struct Settings<V: Vendor> {
    /// Index of the CPU.
    pub index: usize,
    /// The permission maps, shared by all vCPUs.
    pub maps: V::Maps,
    /// Root of the second stage.
    pub root: Hfn,
    /// CPUID is to exit.
    pub announce: bool,
    /// The table tells user and supervisor execution apart.
    pub split_execution: bool,
}

/// How an entry of one second-stage table can tell user from supervisor execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SplitExecution {
    /// Each is allowed or not, by whether the guest's own tables make it a user address (Intel's
    /// mode-based execute control).
    ByAddress,
    /// User code alone, both, or neither, by the CPL (AMD's guest mode execute trap). Supervisor
    /// code alone cannot be expressed, and user code may execute as well what supervisor code may:
    /// the second stage is there to keep supervisor code from what it must not execute.
    ByPrivilege,
}

/// A format of second-stage tables.
pub trait SecondStage: Format<Input = GuestPhysical> {
    /// Rights of a leaf on which the kernel may do `kernel` and user code `user`. Both can differ
    /// in execution, if `split` says how the CPU tells one from the other.
    fn rights(
        kernel: Rights,
        user: Rights,
        split: Option<SplitExecution>,
        memory_type: MemoryType,
    ) -> Self::Rights;
    /// What the kernel may do.
    fn allowed(rights: Self::Rights, split: Option<SplitExecution>) -> Rights;
}

/// A vendor's vCPU. All methods but [`Vendor::new`] and the static ones are called on the CPU that
/// made it, while its guest does not run.
pub trait Vendor: Sized + 'static {
    /// The format of its second stage.
    type Table: SecondStage;
    /// Permission maps for MSRs and ports: filled once, then shared by all vCPUs.
    type Maps: Copy + Send + Sync;

    /// Whether this CPU can run a guest. Enables nothing.
    ///
    /// # Errors
    /// A sentence that says what is missing and what to do.
    fn check_support() -> Result<(), &'static str>;
    /// How a table entry can allow execution to user and to supervisor code separately, if it can.
    fn splits_execution() -> Option<SplitExecution>;
    /// Whether a table entry can allow execution and not reading.
    fn executes_unread() -> bool;
    /// What leaves say of caching, read on the first CPU.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the firmware.
    fn memory_types(ram: &Ram) -> Result<MemoryTypes, &'static str>;
    /// Whether an INIT or SIPI that the guest sends can do no more than make the target exit, so
    /// that the guest may write to its local APICs.
    fn holds_against_init() -> bool;
    /// Where everything that CPUs share is kept.
    fn machine() -> &'static Once<Machine<Self>>;
    /// Address of the code that takes an NMI which hits the hypervisor.
    fn nmi_handler() -> u64;
    /// Allocates and fills the maps.
    fn maps() -> Option<Self::Maps>;

    /// Takes the calling CPU, whose interrupts are off: enables the extension on it and prepares a
    /// vCPU.
    ///
    /// # Errors
    /// A sentence that says what the CPU refused.
    fn new(settings: &Settings<Self>) -> Result<Self, &'static str>;
    /// Puts the vCPU where a CPU of the guest starts. What [`Vendor::lock`] did is undone, and
    /// nothing waits to be delivered.
    fn reset_to(&mut self, start: Start);
    /// Runs the guest until it stops. `flush`: forget all translations first.
    fn enter(&mut self, flush: bool) -> Exit;
    /// Uses another second-stage table. The caller asks for a flush.
    fn set_root(&mut self, root: Hfn);

    /// Delivers an exception at the next entry, instead of anything else that waits.
    fn inject(&mut self, exception: Exception);
    /// Delivers an NMI at the next entry, if the guest can take one. If it cannot,
    /// [`Exit::NmiWindow`] follows as soon as it can.
    fn inject_nmi(&mut self) -> bool;
    /// Whether an interrupt could be delivered at the next entry.
    fn can_take_interrupt(&self) -> bool;
    /// Delivers an interrupt that the CPU has accepted, at the next entry; the guest can take one.
    fn inject_interrupt(&mut self, vector: u8);
    /// Has [`Exit::InterruptWindow`] follow as soon as the guest can take an interrupt.
    fn request_interrupt_window(&mut self);
    /// Whether interrupts, where RFLAGS.IF allows them, and NMIs reach this CPU now, for a task.
    fn accept_interrupts(&mut self, accept: bool);

    /// Length of the instruction that exited, in bytes, where the CPU tells.
    fn instruction_length(&self) -> Option<u8>;
    /// Steps over an instruction of `length` bytes.
    fn advance(&mut self, length: u8);

    /// General register by its encoding, 0 to 15; 0 for others.
    fn gpr(&self, number: usize) -> u64;
    /// Sets a general register.
    fn set_gpr(&mut self, number: usize, value: u64);
    /// Linear address of the instruction that exited.
    fn rip(&self) -> Gva;
    /// Privilege level.
    fn cpl(&self) -> u8;
    /// Code size.
    fn mode(&self) -> Mode;
    /// All that the decoder wants to know.
    fn registers(&self) -> Registers;
    /// CR0, CR3, CR4 by number, as the guest sees them; 0 for others.
    fn control_register(&self, number: u8) -> u64;
    /// Loads CR0, CR3 or CR4 with a value that the guest may have. The caller asks for a flush.
    fn set_control_register(&mut self, number: u8, value: u64);
    /// EFER as the guest sees it.
    fn efer(&self) -> u64;
    /// Loads EFER with the value that the guest wants to see. The caller asks for a flush.
    fn set_efer(&mut self, value: u64);
    /// One of the pinned MSRs ([`integrity::pins::PINNED_MSRS`]).
    fn msr(&self, number: u32) -> u64;
    /// Loads one of the pinned MSRs but APIC_BASE; says whether it took the value.
    fn set_msr(&mut self, number: u32, value: u64) -> bool;
    /// What an MSR of the extension shows to a guest that does not have it; `None` for others.
    fn hidden_msr(number: u32) -> Option<HiddenMsr>;
    /// Base and limit of GDTR or IDTR.
    fn table(&self, table: Table) -> (u64, u32);
    /// Loads GDTR or IDTR.
    fn set_table(&mut self, table: Table, base: u64, limit: u32);
    /// Selector of LDTR or TR.
    fn selector(&self, table: Table) -> u16;

    /// From now on writes of everything pinned exit: bits of CR0 and CR4, MSRs, descriptor tables.
    fn lock(&mut self);
    /// Whether writes of CR3 exit.
    fn watch_address_space(&mut self, watch: bool);
}

/// How an MSR of the virtualization extension behaves for the guest.
#[derive(Clone, Copy, Debug)]
pub struct HiddenMsr {
    /// The value read; `None`: reading is #GP.
    pub value: Option<u64>,
    /// A write is ignored; otherwise it is #GP.
    pub ignores_writes: bool,
}
