//! The vCPU: what all vendors' have in common, around the vendor's own part.
//!
//! A [`Vcpu`] belongs to one CPU for ever. The hypervisor is never interrupted; interrupts, the
//! APIC (but for checked writes) and all devices are the guest's.

mod registers;

use crate::cpu::{self, CpuShared};
use crate::memory::flush;
use crate::memory::physical::Physical;
use crate::memory::window::Windows;
use crate::task;
use crate::vendor::{Exception, Settings, Start, Vendor};
use crate::vm::{Vm, exits, pins, restore, shootdown, state};
use core::sync::atomic::Ordering;
use integrity::pins::Pins;
use integrity::state::View;
use x86_decode::{Operation, SimpleOp};

/// A vCPU and the CPU that runs it.
pub struct Vcpu<V: Vendor> {
    vendor: V,
    /// Index of the CPU, and of the vCPU in its VM.
    pub index: usize,
    /// The VM.
    pub vm: &'static Vm<V>,
    /// This CPU's windows.
    pub windows: Windows,
    /// The pins, once this vCPU is locked.
    pub pins: Option<Pins>,
    /// Its kernel has taken a descriptor table away to leave for another kernel.
    pub leaves: bool,
    /// The kernel that it runs, by [`Vm::incarnation`].
    incarnation: u64,
    view: View,
    flush: bool,
    nmi_waiting: bool,
    watches_address_space: bool,
    cpuid_at: [u64; 16],
    shared: &'static CpuShared,
    /// Where this CPU notes that it is in the guest, or in a task.
    pub place: flush::Place,
}

impl<V: Vendor> Vcpu<V> {
    /// Takes the calling CPU and prepares a vCPU that does not run yet.
    ///
    /// # Errors
    /// A sentence that says what the CPU refused.
    pub fn new(
        index: usize,
        vm: &'static Vm<V>,
        maps: V::Maps,
        windows: Windows,
    ) -> Result<Self, &'static str> {
        let view = vm.first_view();
        let settings = Settings {
            index,
            maps,
            root: vm.root(view),
            announce: vm.policy.announce,
            split_execution: vm.separation().split().is_some(),
        };
        Ok(Self {
            vendor: V::new(&settings)?,
            index,
            vm,
            windows,
            pins: None,
            leaves: false,
            incarnation: 0,
            view,
            flush: true,
            nmi_waiting: false,
            watches_address_space: false,
            cpuid_at: [u64::MAX; 16],
            shared: cpu::shared(index),
            place: flush::Place::of(index).ok_or("there are more CPUs than Ravelin runs")?,
        })
    }

    /// Puts the vCPU where a CPU of the guest starts, for a kernel that nothing binds yet: the one
    /// of this [`Vm::incarnation`].
    pub fn reset_to(&mut self, start: Start, incarnation: u64) {
        self.vendor.reset_to(start);
        self.vendor.watch_address_space(false);
        self.watches_address_space = false;
        self.incarnation = incarnation;
        self.pins = None;
        self.leaves = false;
        self.nmi_waiting = false;
        self.cpuid_at = [u64::MAX; 16];
        self.set_view(self.vm.first_view());
    }

    /// Runs the guest until another kernel has followed, on another CPU.
    pub fn run(&mut self) {
        loop {
            if task::is_any_ready() {
                self.shared.parked.store(true, Ordering::SeqCst);
                task::turn::run_ready(self);
                self.shared.parked.store(false, Ordering::SeqCst);
            }
            if shootdown::enter_guest(self.vm, self.index) {
                self.flush = true;
                if self.incarnation != self.vm.incarnation() {
                    self.shared.in_guest.store(false, Ordering::SeqCst);
                    return;
                }
                self.adopt_lock();
            }
            if self.nmi_waiting {
                self.nmi_waiting = !self.vendor.inject_nmi();
            }
            let served = self.place.leave();
            let exit = self.vendor.enter(core::mem::take(&mut self.flush));
            self.place.come_back(served);
            self.shared.in_guest.store(false, Ordering::SeqCst);
            exits::handle(self, exit);
        }
    }

    /// Takes over what the lock decided since the last entry.
    fn adopt_lock(&mut self) {
        let stage = self.vm.stage();
        if stage.is_armed() && self.pins.is_none() {
            let pins = pins::capture(&self.vendor);
            self.pins = Some(pins);
            state::locked(self.index, pins);
            restore::vcpu_locked(self, &pins);
            self.vendor.lock();
        }
        // While read-only data waits, each address-space switch is an occasion to look again.
        if self.watches_address_space != stage.waits_for_rodata() {
            self.watches_address_space = stage.waits_for_rodata();
            self.vendor.watch_address_space(self.watches_address_space);
        }
    }

    /// An NMI has arrived: a shootdown's is done with, any other is the guest's.
    pub fn take_nmi(&mut self) {
        if !self.shared.kicked.swap(false, Ordering::SeqCst) {
            self.nmi_waiting = true;
        }
    }

    /// Whether the guest could take an interrupt now.
    pub fn can_take_interrupt(&self) -> bool {
        !self.nmi_waiting && self.vendor.can_take_interrupt()
    }

    /// Gives the guest, which can take it, an interrupt that this CPU has accepted.
    pub fn inject_interrupt(&mut self, vector: u8) {
        self.vendor.inject_interrupt(vector);
    }

    /// Leaves the guest again when it can take an interrupt.
    pub fn request_interrupt_window(&mut self) {
        self.vendor.request_interrupt_window();
    }

    /// Lets interrupts reach this CPU, for a task, or holds them off.
    pub fn accept_interrupts(&mut self, accept: bool) {
        self.vendor.accept_interrupts(accept);
    }

    /// Lets the guest take an exception instead of going on.
    pub fn inject(&mut self, exception: Exception) {
        self.vendor.inject(exception);
    }

    /// Steps over the instruction at RIP if it is `expected`. If it is not (another CPU has just
    /// changed it), nothing happens and the guest meets the new one.
    pub fn advance_over(&mut self, expected: SimpleOp) -> bool {
        if let Some(length) = self.vendor.instruction_length() {
            self.vendor.advance(length);
            return true;
        }
        let instruction = crate::vm::guest::fetch(self);
        match instruction.filter(|found| found.operation == Operation::Simple(expected)) {
            Some(instruction) => {
                self.vendor.advance(instruction.length);
                true
            }
            None => false,
        }
    }

    /// [`Vcpu::advance_over`] for CPUID, the one instruction that may exit often.
    ///
    /// Where the CPU does not tell its length, that must be read from guest memory; a place seen
    /// before is not read again. A guest that changes it there misleads itself only.
    pub fn advance_over_cpuid(&mut self) -> bool {
        if let Some(length) = self.vendor.instruction_length() {
            self.vendor.advance(length);
            return true;
        }
        let rip = self.rip().raw();
        let slot = (rip >> 1) as usize % self.cpuid_at.len();
        if self.cpuid_at.get(slot) == Some(&rip) {
            self.vendor.advance(2);
            return true;
        }
        let done = self.advance_over(SimpleOp::Cpuid);
        if done
            && self.rip().raw().wrapping_sub(rip) == 2
            && let Some(slot) = self.cpuid_at.get_mut(slot)
        {
            *slot = rip;
        }
        done
    }

    /// The view in force.
    pub fn view(&self) -> View {
        self.view
    }

    /// Switches the view.
    pub fn set_view(&mut self, view: View) {
        self.view = view;
        self.vendor.set_root(self.vm.root(view));
        self.flush = true;
    }

    /// Forgets all translations before the next entry.
    pub fn request_flush(&mut self) {
        self.flush = true;
    }

    /// What other CPUs see.
    pub fn shared(&self) -> &'static CpuShared {
        self.shared
    }

    /// Physical memory through this CPU's windows.
    pub fn physical(&self) -> Physical<'_> {
        Physical::new(&self.windows)
    }
}
