//! The VM: everything above the vendor. What a guest page is, what a fault means, what is refused.
//!
//! Reading order: [`exits`], [`memory`] (second stage and page states), [`learn`] (before the
//! lock), [`lock`] and [`survey`], [`fault`] (the verdict on an access), [`promote`], [`text`]
//! (patching), [`registers`], [`descriptor`] and [`pins`], [`violation`], [`heki`] (what the guest
//! itself asks for), [`kexec`] (another kernel), [`state`] (all of it as a record), [`restore`].

pub mod cpuid;
pub mod descriptor;
pub mod exits;
pub mod fault;
pub mod gate;
pub mod guest;
pub mod heki;
pub mod hypercall;
pub mod kexec;
pub mod learn;
pub mod lock;
pub mod memory;
pub mod pins;
pub mod promote;
pub mod registers;
pub mod restore;
pub mod separation;
pub mod shootdown;
pub mod state;
pub mod store;
pub mod survey;
pub mod text;
pub mod violation;
mod xcr0;

use crate::publish::REGION;
use crate::vendor::Vendor;
use abi::manifest::Manifest;
use abi::policy::Policy;
use addr::{FrameRange, Gfn, Gpa, GuestPhysical, Gva, Hfn};
use arrayvec::ArrayVec;
use boot_info::MOST_KEXEC;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use frames::FrameStates;
use integrity::Rights;
use integrity::state::{Page, PageState, View};
use memory::Memory;
use separation::Separation;
use spin::mutex::SpinMutex;

/// How far the lock has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The guest boots; nothing is enforced but its exclusion from the hypervisor's memory.
    Boot,
    /// Kernel text and registers are locked; the kernel has not yet made its data read-only.
    Text,
    /// Read-only data is locked as well.
    Full,
}

impl Stage {
    /// Whether enforcement has begun.
    pub fn is_armed(self) -> bool {
        self > Stage::Boot
    }
    /// Whether read-only data is still to be locked.
    pub fn waits_for_rodata(self) -> bool {
        self == Stage::Text
    }
}

/// Where the kernel image is.
#[derive(Clone, Copy, Debug)]
pub struct KernelPlace {
    /// Virtual address of `_text`.
    pub gva: Gva,
    /// Physical address of `_text`; the image is contiguous from there.
    pub gpa: Gpa,
}

/// The number of the VM that owns the devices.
pub const PRIMARY: u32 = 0;

/// Most ranges of RAM.
pub const MOST_RAM_RANGES: usize = 96;

/// Ranges of RAM.
pub type Ram = ArrayVec<FrameRange<GuestPhysical>, MOST_RAM_RANGES>;

/// A virtual machine.
pub struct Vm<V: Vendor> {
    /// What the administrator wants.
    pub policy: Policy,
    kernels: &'static Kernels,
    /// Which of `kernels` runs.
    running: AtomicUsize,
    /// Its RAM, without the hypervisor's parts.
    pub ram: Ram,
    /// Second stage and page states.
    pub memory: SpinMutex<Memory<V>>,
    /// What is in `memory` of each page, for those who do not hold it: it can change at any time.
    pub pages: FrameStates<'static, Page>,
    /// What the guest has asked to pin of CR0 and CR4.
    pub requested: pins::Requested,
    separation: Separation,
    roots: [Hfn; 2],
    stage: AtomicU32,
    kernel: SpinMutex<Option<KernelPlace>>,
    /// Counts changes of the second stage; see [`shootdown`].
    generation: AtomicU64,
    /// vCPUs stay out of the guest while this is set.
    hold: AtomicBool,
    /// vCPUs do nothing more for the kernel that runs while this is set.
    stop: AtomicBool,
    /// Counts the kernels that have followed one another.
    incarnation: AtomicU64,
}

/// What is known of the kernels.
pub struct Kernels {
    /// The one that the boot loader brought.
    pub first: Manifest<'static>,
    /// Those that may follow.
    pub named: ArrayVec<Manifest<'static>, MOST_KEXEC>,
}

impl<V: Vendor> Vm<V> {
    /// A VM that has not run yet.
    pub fn new(policy: Policy, kernels: &'static Kernels, ram: Ram, memory: Memory<V>) -> Self {
        let roots = [memory.root(View::Kernel), memory.root(View::User)];
        Self {
            policy,
            kernels,
            running: AtomicUsize::new(0),
            ram,
            requested: pins::Requested::default(),
            separation: memory.separation(),
            pages: memory.pages(),
            memory: SpinMutex::new(memory),
            roots,
            stage: AtomicU32::new(Stage::Boot as u32),
            kernel: SpinMutex::new(None),
            generation: AtomicU64::new(1),
            hold: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            incarnation: AtomicU64::new(0),
        }
    }

    /// How user and supervisor execution are told apart.
    pub fn separation(&self) -> Separation {
        self.separation
    }

    /// The view that a vCPU starts in.
    pub fn first_view(&self) -> View {
        if self.separation == Separation::Views { View::Kernel } else { View::Single }
    }

    /// Root of a view's second-stage table.
    pub fn root(&self, view: View) -> Hfn {
        match view {
            View::Kernel | View::Single => self.roots[0],
            View::User => self.roots[1],
        }
    }

    /// How far the lock has come.
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Boot,
            1 => Stage::Text,
            _ => Stage::Full,
        }
    }

    fn set_stage(&self, stage: Stage) {
        REGION.set_stage(stage as u64);
        self.stage.store(stage as u32, Ordering::Release);
    }

    /// Where the kernel image is, once known.
    pub fn kernel(&self) -> Option<KernelPlace> {
        *self.kernel.lock()
    }

    /// What is known of the kernel that runs.
    pub fn manifest(&self) -> &Manifest<'static> {
        let named = self.running.load(Ordering::Acquire).checked_sub(1);
        named.and_then(|index| self.kernels.named.get(index)).unwrap_or(&self.kernels.first)
    }

    /// Tells the vCPUs of one kernel from those of the next.
    pub fn incarnation(&self) -> u64 {
        self.incarnation.load(Ordering::SeqCst)
    }

    /// How many frames have a state: those below the end of RAM.
    pub fn frames(&self) -> u64 {
        self.pages.range().count()
    }

    /// Whether a frame is RAM of the guest.
    pub fn is_ram(&self, frame: Gfn) -> bool {
        self.ram.iter().any(|range| range.contains(frame))
    }

    /// Whether a frame is RAM that the guest may read: what the hypervisor reads on the guest's
    /// behalf must be.
    pub fn is_readable(&self, frame: Gfn) -> bool {
        self.is_ram(frame)
            && self.pages.get(frame).is_some_and(|page| !page.withholds(Rights::READ))
    }

    /// Whether a frame is RAM that the second stage maps, however little it allows there.
    pub fn is_mapped_ram(&self, frame: Gfn) -> bool {
        self.is_ram(frame) && self.pages.get(frame).is_some_and(|page| page.state != PageState::Own)
    }
}
