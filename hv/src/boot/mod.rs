//! From the boot loader to the guest's first instruction.
//!
//! The first CPU checks the machine, takes memory, builds the hypervisor's page table, starts the
//! other CPUs, loads the kernel and makes the VM. Anything that is not as it must be ends in a
//! sentence on the event channel and a machine that powers off: nothing is started unprotected.

mod acpi;
mod layout;
pub mod linux;
mod multiboot;
mod smp;
mod state;
mod tasks;

use crate::cpu::{self, apic, control, instructions, tables};
use crate::log;
use crate::memory::physical::Physical;
use crate::memory::pool::{self, Block};
use crate::memory::space::{self, CpuSpace};
use crate::memory::window::Windows;
use crate::memory::{audit, flush, secret};
use crate::publish;
use crate::report;
use crate::svm::Svm;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use crate::vm::{Kernels, Ram, Vm, memory::Memory, restore, separation::Separation, violation};
use crate::vmx::Vmx;
use abi::Digest;
use abi::event::ViolationKind;
use abi::manifest::{Manifest, ManifestError};
use abi::policy::Policy;
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, HostPhysical, PAGE_SIZE};
use arrayvec::ArrayVec;
use boot_info::{BootInfo, Module, Role};
use core::arch::global_asm;
use core::sync::atomic::Ordering;
use linux::{Start, first_state};
use mtrr::MemoryTypes;
use spin::Once;

global_asm!(include_str!("entry.s"), options(raw));

/// What a CPU needs to become a vCPU; made once.
pub struct Machine<V: Vendor> {
    maps: V::Maps,
    vm: Vm<V>,
}

/// The first CPU arrives here from `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn boot_cpu_main(magic: u32, information: u64) -> ! {
    report::initialise();
    let Err(reason) = match Extension::of_this_cpu() {
        Some(Extension::Svm) => boot::<Svm>(magic, information),
        Some(Extension::Vmx) => boot::<Vmx>(magic, information),
        None => Err("this CPU has neither SVM (AMD-V) nor VMX (Intel VT-x): nothing was started"),
    };
    report::fatal(format_args!("{reason}"))
}

type Reason = &'static str;

/// The virtualization extensions.
enum Extension {
    Svm,
    Vmx,
}

impl Extension {
    fn of_this_cpu() -> Option<Self> {
        if instructions::cpuid(0x8000_0001, 0).ecx & 1 << 2 != 0 {
            Some(Self::Svm)
        } else if instructions::cpuid(1, 0).ecx & 1 << 5 != 0 {
            Some(Self::Vmx)
        } else {
            None
        }
    }
}

fn boot<V: Vendor>(magic: u32, information: u64) -> Result<core::convert::Infallible, Reason> {
    // Before anything that takes much of the stack, so that an overflow is told.
    tables::fill_idt(V::nmi_handler());
    tables::load(0);
    let (windows, start) = prepare::<V>(magic, information)?;
    let machine = V::machine().get().ok_or("there is no machine")?;
    let mut vcpu = Vcpu::new(0, &machine.vm, machine.maps, windows)?;
    enter_kernel(&mut vcpu, start)
}

/// Everything that the first CPU does before it becomes a vCPU. Never inlined: what it keeps on the
/// stack must be gone when the guest runs.
#[inline(never)]
fn prepare<V: Vendor>(magic: u32, information: u64) -> Result<(Windows, Start), Reason> {
    control::protect_own_level();
    V::check_support()?;
    if !apic::is_usable() {
        return Err("the local APIC is off, moved or in x2APIC mode; xAPIC mode is needed");
    }
    let mut info = multiboot::read(magic, information)?;
    layout::check_low_memory(&info)?;
    let pool = layout::choose_pool(&info)?;
    pool::start(pool).map_err(|_| NO_POOL)?;
    space::build().map_err(|_| NO_POOL)?;
    let own = CpuSpace::new(0).map_err(|_| NO_POOL)?;
    own.activate();
    // From here on guest RAM is reached through windows only.
    let windows = Windows::new(&own);
    let memory = Physical::new(&windows);
    let map = layout::guest_map(&info, pool)?;
    linux::clear_low_places(memory, &mut info, &map)?;
    let kernel = info.module(Role::Kernel).ok_or("there is no kernel among the boot modules")?;
    let policy = read_policy(memory, &info)?;
    let policy = state::read(memory, &mut info, policy)?;
    let kernels = read_manifests(memory, &info, kernel, &policy)?;
    let machine = acpi::read_and_edit(memory, info.rsdp)?;
    let ram = guest_ram(&map)?;
    let types = memory_types::<V>(&ram)?;
    let images = tasks::copy(memory, &info)?;
    secret::initialise(end_of(&ram)).ok_or(NO_POOL)?;
    let vm = make_vm::<V>(policy, kernels, ram, types, pool)?;
    restore::judge_machine(&vm);
    let maps = V::maps().ok_or(NO_POOL)?;
    pool::begin_ownership(layout::TASK_BYTES / PAGE_SIZE).ok_or(NO_POOL)?;
    tasks::load(&windows, &images, &vm.policy)?;
    audit(&vm)?;
    let vm = &V::machine().call_once(|| Machine { maps, vm }).vm;
    cpu::shared(0).apic_id.store(apic::id(), core::sync::atomic::Ordering::Relaxed);
    cpu::note_online();
    smp::start_others(memory, &machine.apic_ids)?;
    space::forget_boot_tables();
    let start = linux::load(memory, &info, kernel, &map, &machine, &vm.policy)?;
    log!(
        "Ravelin {} runs {} CPU(s); supervisor_exec = {}; pool of {} MiB at {:#x}, {} MiB free",
        env!("CARGO_PKG_VERSION"),
        cpu::online(),
        vm.separation().mode().name(),
        pool.count() >> 8,
        pool.start.start().raw(),
        pool::free_frames() >> 8,
    );
    Ok((windows, start))
}

/// Judges every page table there is before the guest starts. Its list stays off the stack that the
/// rest of the boot runs on.
#[inline(never)]
fn audit(vm: &Vm<impl Vendor>) -> Result<(), Reason> {
    let report = audit::all(vm, 0).map_err(|finding| {
        log!("audit: {finding}");
        "the audit found a page table that breaks a rule: nothing was started"
    })?;
    let [small, large, huge] = report.second_stage;
    log!(
        "audit: {} runs of leaves, all as they must be; second stage: {huge} of 1 GiB, \
         {large} of 2 MiB, {small} of 4 KiB",
        report.runs
    );
    let leaves = pool::leaves();
    log!("direct map: {} leaves of 2 MiB, {} of 4 KiB", leaves.large, leaves.small);
    Ok(())
}

const NO_POOL: Reason = "the pool is too small";

fn enter_kernel(vcpu: &mut Vcpu<impl Vendor>, start: Start) -> ! {
    vcpu.reset_to(start.state(), vcpu.vm.incarnation());
    vcpu.run();
    serve_successors(vcpu)
}

/// Waits until the kernel that runs starts this CPU, runs it, and begins anew when another kernel
/// has followed.
fn serve_successors(vcpu: &mut Vcpu<impl Vendor>) -> ! {
    loop {
        let (entry, incarnation) = wait_at_mailbox(vcpu);
        vcpu.reset_to(first_state(entry, 0), incarnation);
        vcpu.run();
    }
}

fn read_policy(memory: Physical<'_>, info: &BootInfo) -> Result<Policy, Reason> {
    let Some(module) = info.module(Role::Policy) else { return Ok(Policy::default()) };
    let mut bytes = [0; size_of::<abi::policy::Record>()];
    if module.length != bytes.len() as u64 {
        return Err("the policy is not a policy record: its length is wrong");
    }
    memory.read(module.start, &mut bytes)?;
    Policy::parse(&bytes).map_err(|error| match error {
        abi::policy::PolicyError::NotAPolicy => "the policy is not a policy record",
        abi::policy::PolicyError::Version(_) => "the policy record is of another version",
        abi::policy::PolicyError::Damaged => "the policy record is damaged",
        abi::policy::PolicyError::Value => "the policy record has an unknown value",
    })
}

/// Reads the manifests of the kernel and of those that may follow it. Kept here, they stay off the
/// stack.
#[inline(never)]
fn read_manifests(
    memory: Physical<'_>,
    info: &BootInfo,
    kernel: Module,
    policy: &Policy,
) -> Result<&'static Kernels, Reason> {
    static KERNELS: Once<Kernels> = Once::new();
    let module = info
        .module(Role::Manifest)
        .ok_or("there is no manifest among the boot modules: make one with `ravelin prepare`")?;
    let first = read_manifest(memory, module)?;
    let mut digest = Digest::default();
    memory.scan(kernel.start, kernel.length, |piece| digest.update(piece))?;
    if !first.belongs_to(kernel.length, digest.finish()) {
        return Err("the manifest does not belong to this kernel: prepare it anew");
    }
    let mut named = ArrayVec::new();
    for module in info.all(Role::Kexec) {
        let manifest = read_manifest(memory, module)?;
        linux::check(&manifest.header().load)?;
        named.try_push(manifest).map_err(|_| NOT_THE_NAMED)?;
    }
    if named.len() != usize::from(policy.kexec) {
        return Err(NOT_THE_NAMED);
    }
    Ok(KERNELS.call_once(|| Kernels { first, named }))
}

const NOT_THE_NAMED: &str =
    "the manifests for kexec among the boot modules are not as many as the policy says";

/// Copies a manifest into the pool, then judges the copy.
fn read_manifest(memory: Physical<'_>, module: Module) -> Result<Manifest<'static>, Reason> {
    let most = u64::from(abi::manifest::MAX_LENGTH);
    let bytes = copy_module(memory, module, most, "the manifest is too large")?;
    Manifest::parse(bytes).map_err(|error| match error {
        ManifestError::NotAManifest => "the manifest is not a manifest",
        ManifestError::Truncated => "the manifest is truncated",
        ManifestError::Version(_) => "the manifest is of another version: prepare it anew",
        ManifestError::Damaged => "the manifest is damaged: its digest does not match",
        ManifestError::Malformed => "the manifest is malformed",
    })
}

/// Copies a boot module of at most `most` bytes into the pool, where nobody can change it any more.
fn copy_module(
    memory: Physical<'_>,
    module: Module,
    most: u64,
    too_long: Reason,
) -> Result<&'static mut [u8], Reason> {
    if module.length > most {
        return Err(too_long);
    }
    let bytes = Block::take(module.length.div_ceil(PAGE_SIZE).max(1)).ok_or(NO_POOL)?.leak();
    let bytes = bytes.get_mut(..addr::length(module.length)).ok_or(NO_POOL)?;
    memory.read(module.start, bytes)?;
    Ok(bytes)
}

/// What the guest's memory map calls RAM, and the low memory that it must leave alone.
fn guest_ram(map: &layout::GuestMap) -> Result<Ram, Reason> {
    let mut ram = Ram::new();
    let low = layout::LOW_RESERVED;
    let reserved = FrameRange::new(Gpa::new(low.start).frame(), Gpa::new(low.end).frame());
    let usable = map.iter().filter(|region| region.is_ram()).map(|region| {
        let start = Gpa::new(region.start.next_multiple_of(PAGE_SIZE)).frame();
        FrameRange::<GuestPhysical>::new(start, Gpa::new(region.end()).frame())
    });
    for range in usable.chain([reserved]).filter(|range| !range.is_empty()) {
        ram.try_push(range).map_err(|_| "the memory map has too many entries")?;
    }
    Ok(ram)
}

/// The end of the last range of RAM.
fn end_of(ram: &Ram) -> Gfn {
    ram.iter().map(|range| range.end).max().unwrap_or(Gfn::new(0))
}

fn make_vm<V: Vendor>(
    policy: Policy,
    kernels: &'static Kernels,
    ram: Ram,
    types: &'static MemoryTypes,
    pool: FrameRange<HostPhysical>,
) -> Result<Vm<V>, Reason> {
    let ram_end = Gfn::new(end_of(&ram).raw().max(pool.end.raw()));
    // 1 TiB holds every address of machines with 40 address bits, 64-bit PCI windows included.
    let limit = Gfn::new((1_u64 << instructions::physical_address_bits().min(40)) / PAGE_SIZE);
    let image = space::image();
    let own = [image, pool]
        .map(|range| FrameRange::new(Gfn::new(range.start.raw()), Gfn::new(range.end.raw())));
    let separation = Separation::choose::<V>(policy.supervisor_exec);
    publish::REGION.open(separation.mode(), &policy.to_record(), env!("CARGO_PKG_VERSION"));
    let memory = Memory::new(limit, ram_end, ram.clone(), types, &own, separation)?;
    Ok(Vm::new(policy, kernels, ram, memory))
}

/// The memory types of the machine. They are large: kept here, they stay off the stack.
#[inline(never)]
fn memory_types<V: Vendor>(ram: &Ram) -> Result<&'static MemoryTypes, Reason> {
    static TYPES: Once<MemoryTypes> = Once::new();
    TYPES.try_call_once(|| V::memory_types(ram))
}

/// The other CPUs arrive here from `entry.s`: each becomes a vCPU that waits at the mailbox.
#[unsafe(no_mangle)]
extern "C" fn application_cpu_main() -> ! {
    let index = smp::own_index();
    tables::load(index);
    control::protect_own_level();
    let Err(reason) = match (Svm::machine().get(), Vmx::machine().get()) {
        (Some(machine), _) => join(index, machine),
        (_, Some(machine)) => join(index, machine),
        (None, None) => Err("it started too early"),
    };
    report::fatal(format_args!("CPU {index} cannot run a guest: {reason}"))
}

/// Becomes a vCPU and waits until the guest starts it.
fn join<V: Vendor>(
    index: usize,
    machine: &'static Machine<V>,
) -> Result<core::convert::Infallible, Reason> {
    V::check_support()?;
    let space = CpuSpace::new(index).map_err(|_| NO_POOL)?;
    space.activate();
    let windows = Windows::new(&space);
    let mut vcpu = Vcpu::new(index, &machine.vm, machine.maps, windows)?;
    cpu::note_online();
    serve_successors(&mut vcpu)
}

/// Waits until the guest names this CPU in the wake-up mailbox (ACPI 6.5, table 5.44); answers where
/// it is to start, and for which of the kernels that follow one another.
fn wait_at_mailbox(vcpu: &Vcpu<impl Vendor>) -> (Gpa, u64) {
    const COMMAND_WAKE_UP: u16 = 1;
    let mailbox = acpi::MAILBOX.identity();
    let own = apic::id();
    let parked = &vcpu.shared().parked;
    parked.store(true, Ordering::SeqCst);
    loop {
        // If another kernel has followed since, what is read may be its predecessor's.
        let incarnation = vcpu.vm.incarnation();
        let mut bytes = [0; 16];
        // The mailbox is RAM that is not the hypervisor's.
        let _ = vcpu.physical().read(mailbox, &mut bytes);
        let [c0, c1, _, _, i0, i1, i2, i3, vector @ ..] = bytes;
        let command = u16::from_le_bytes([c0, c1]);
        if command == COMMAND_WAKE_UP && u32::from_le_bytes([i0, i1, i2, i3]) == own {
            let _ = vcpu.physical().write(mailbox, &[0, 0]);
            if !vcpu.vm.stage().is_armed() {
                parked.store(false, Ordering::SeqCst);
                return (Gpa::new(u64::from_le_bytes(vector)), incarnation);
            }
            // After the lock nobody starts a CPU at an address of his choice.
            violation::report_without_address(vcpu, ViolationKind::CpuEscape);
        }
        flush::serve(vcpu.index);
        for _ in 0..1000 {
            core::hint::spin_loop();
        }
    }
}
