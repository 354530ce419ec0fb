//! Writes to pages that are locked, or from which a request withholds writing: performed by the
//! hypervisor if they are a legal step at a patch site of the manifest ([`integrity::patch`]),
//! refused otherwise.
//!
//! The VM's memory lock is held from the judgement to the write, and the guest cannot write the
//! page itself, so what was judged is what is there.

use super::KernelPlace;
use super::fault::{old_value, release, write_kind};
use super::guest;
use super::memory::Memory;
use super::promote;
use super::store::Store;
use super::violation::{Attempt, report};
use crate::vcpu::Vcpu;
use crate::vendor::{Exception, Vendor};
use abi::event::{Verdict, ViolationKind};
use abi::hypercall::Counter;
use addr::{Gpa, Gva};
use integrity::patch::probes::Probes;
use integrity::patch::{self, Refused};
use integrity::state::PageState;
use spin::mutex::SpinMutex;
use spin::mutex::SpinMutexGuard;
use x86_decode::Operation;

/// The kprobes in the guest's text; used with the VM's memory locked.
static PROBES: SpinMutex<Probes> = SpinMutex::new(Probes::new());

/// Another kernel follows, whose text is whole.
pub fn begin_anew() {
    *PROBES.lock() = Probes::new();
}

/// A write at `gpa`, in a page of this state that the guest must not write.
pub fn write<V: Vendor>(
    vcpu: &mut Vcpu<V>,
    mut memory: SpinMutexGuard<'_, Memory<V>>,
    gpa: Gpa,
    state: PageState,
) {
    let instruction = guest::fetch(vcpu);
    let store = instruction.and_then(|instruction| Store::of(vcpu, &instruction));
    // The instruction may not be the one that faulted: another CPU can have changed it. What it
    // would write must be in a page of the same state.
    let target = store.as_ref().and_then(|store| {
        let target = store.target(vcpu)?;
        let last = target.plus(store.bytes.len() as u64 - 1);
        let alike = |gpa: Gpa| memory.state(gpa.frame()) == Some(state);
        (alike(target) && alike(last)).then_some(target)
    });
    let kernel = vcpu.vm.kernel();
    if let (Some(store), Some(target), Some(kernel)) = (&store, target, kernel)
        && state == PageState::LockedCode
        && is_legal_patch(vcpu, &mut memory, kernel, target, store)
    {
        store.perform(vcpu, target);
        vcpu.shared().count(Counter::Patch);
        return;
    }
    let operation = instruction.map(|instruction| instruction.operation);
    let attempt = Attempt {
        gpa: Some(gpa),
        old: old_value(vcpu, gpa),
        ..describe(vcpu, gpa, state, store.as_ref(), operation)
    };
    drop(memory);
    match (report(vcpu, attempt), store, target) {
        // Performed here, the page stays locked and the next attempt is reported too.
        (Verdict::Log, Some(store), Some(target)) => store.perform(vcpu, target),
        (Verdict::Log, ..) => release(vcpu, &mut vcpu.vm.memory.lock(), gpa),
        _ => vcpu.inject(Exception::GeneralProtection),
    }
}

/// Whether it is; if so, the verdict may have made code of the page that a traced function calls.
fn is_legal_patch<V: Vendor>(
    vcpu: &mut Vcpu<V>,
    memory: &mut Memory<V>,
    kernel: KernelPlace,
    target: Gpa,
    store: &Store,
) -> bool {
    let vm = vcpu.vm;
    let text = vm.manifest().header().text;
    let Some(offset) = target.raw().checked_sub(kernel.gpa.raw()) else { return false };
    if !text.contains(offset) || !text.contains(offset + store.bytes.len() as u64 - 1) {
        return false;
    }
    let mut seen = Seen { vcpu, memory, kernel };
    let allowed = vm.policy.patching_in_force();
    match patch::judge(vm.manifest(), allowed, &mut seen, offset, &store.bytes) {
        Err(Refused::NoSite) => {
            PROBES.lock().judge(vm.manifest(), allowed, &seen, offset, &store.bytes).is_ok()
        }
        verdict => verdict.is_ok(),
    }
}

/// The guest's memory for the verdict on a patch.
struct Seen<'a, V: Vendor> {
    vcpu: &'a mut Vcpu<V>,
    memory: &'a mut Memory<V>,
    kernel: KernelPlace,
}

impl<V: Vendor> patch::Memory for Seen<'_, V> {
    fn text(&self, offset: u64, bytes: &mut [u8]) -> Option<()> {
        self.vcpu.physical().read(self.kernel.gpa.plus(offset).identity(), bytes).ok()
    }

    fn code(&mut self, distance: i64, bytes: &mut [u8]) -> Option<()> {
        let gva = Gva::new(self.kernel.gva.raw().wrapping_add_signed(distance));
        let gpa = promote::code_at(self.vcpu, self.memory, gva)?;
        let window = self.vcpu.windows.open(gpa.frame().identity())?;
        (window.read(gpa.offset(), bytes) == bytes.len()).then_some(())
    }
}

/// Kind, address, size and value of a refused write, as far as the instruction tells them.
fn describe(
    vcpu: &Vcpu<impl Vendor>,
    gpa: Gpa,
    state: PageState,
    store: Option<&Store>,
    operation: Option<Operation>,
) -> Attempt {
    let (gva, size, new) = match (store, operation) {
        (Some(store), _) => (Some(store.gva), store.bytes.len() as u64, store.value()),
        (None, Some(Operation::ReadModifyWrite { address, size })) => {
            (Some(Gva::new(address)), u64::from(size), 0)
        }
        (None, Some(Operation::StoreString { address, size, count, value, .. })) => {
            (Some(Gva::new(address)), count.saturating_mul(u64::from(size)), value)
        }
        _ => (None, 1, 0),
    };
    let offset = vcpu.vm.kernel().and_then(|kernel| gpa.raw().checked_sub(kernel.gpa.raw()));
    let at_site = offset.is_some_and(|offset| patch::covers(vcpu.vm.manifest(), offset, size));
    let kind = match state {
        PageState::LockedCode if at_site => ViolationKind::Patch,
        _ => write_kind(state),
    };
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    Attempt { gva, size, new, ..Attempt::new(kind) }
}
