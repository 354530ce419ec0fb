//! Writing the VM's protection state ([`protection`]) to the event channel, in parts.
//!
//! Anybody in the guest may ask for it: it goes to the host, not to the guest, and only if
//! something has changed since it was last written. [`super::restore`] takes one back.

use super::{PRIMARY, Vm};
use crate::report;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::MAX_CPUS;
use abi::event::{MAX_PAYLOAD, StatePart};
use abi::hypercall::errno::{E2BIG, EALREADY, ENODEV};
use arrayvec::ArrayVec;
use core::sync::atomic::Ordering;
use integrity::pins::{ControlPin, Pins};
use integrity::state::{Page, PageState};
use protection::record::save;
use protection::{Kernel, Settings};
use spin::mutex::SpinMutex;
use zerocopy::IntoBytes;

/// Each vCPU's pins, which otherwise only its CPU knows.
static PINS: [SpinMutex<Option<Pins>>; MAX_CPUS] = [const { SpinMutex::new(None) }; MAX_CPUS];
/// What was written last.
static WRITTEN: SpinMutex<Option<Mark>> = SpinMutex::new(None);

/// Tells states apart: the second stage's changes are counted, and pins only grow while the same
/// kernel runs.
#[derive(Clone, Copy, PartialEq)]
struct Mark {
    generation: u64,
    requested: [ControlPin; 2],
    locked: usize,
}

/// vCPU `index` has been locked with these pins.
pub fn locked(index: usize, pins: Pins) {
    if let Some(slot) = PINS.get(index) {
        *slot.lock() = Some(pins);
    }
}

/// Another kernel follows, on vCPUs that are not locked.
pub fn begin_anew() {
    for slot in &PINS {
        *slot.lock() = None;
    }
}

/// Writes the state; 0, or a negative error: see [`abi::hypercall::SAVE_STATE`].
pub fn write(vcpu: &Vcpu<impl Vendor>) -> u64 {
    let vm = vcpu.vm;
    let refused = |errno: u64| errno.wrapping_neg();
    if !report::has_channel() {
        return refused(ENODEV);
    }
    let mut written = WRITTEN.lock();
    // Held until all is written, so that it is of one moment.
    let memory = vm.memory.lock();
    let settings = settings(vm, vm.frames());
    let mark = Mark {
        generation: vm.generation.load(Ordering::SeqCst),
        requested: settings.requested,
        locked: settings.vcpus.iter().flatten().count(),
    };
    if *written == Some(mark) {
        return refused(EALREADY);
    }
    let mut parts = Parts::default();
    let page = |frame| memory.page(frame).unwrap_or(Page::new(PageState::Data));
    if save(&settings, page, |piece| parts.push(piece)).is_err() {
        return refused(E2BIG);
    }
    parts.send(true);
    *written = Some(mark);
    0
}

/// All that is in force but the pages, of which `frames` have a state.
pub fn settings<V: Vendor>(vm: &Vm<V>, frames: u64) -> Settings {
    let mut vcpus = [None; MAX_CPUS];
    for (slot, pins) in vcpus.iter_mut().zip(&PINS) {
        *slot = *pins.lock();
    }
    let kernel = vm.kernel().map(|place| Kernel { gva: place.gva.raw(), gpa: place.gpa.raw() });
    Settings {
        policy: vm.policy,
        stage: vm.stage() as u8,
        separation: vm.separation().mode(),
        execute_only: V::executes_unread(),
        frames,
        kernel_digest: vm.manifest().header().kernel_digest,
        kernel,
        requested: [0, 4].map(|register| vm.requested.pin(register)),
        vcpus,
    }
}

/// Bytes that wait until a part is full.
#[derive(Default)]
struct Parts {
    offset: u32,
    bytes: ArrayVec<u8, { MAX_PAYLOAD - size_of::<StatePart>() }>,
}

impl Parts {
    fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if self.bytes.is_full() {
                self.send(false);
            }
            let (now, later) = piece.split_at(piece.len().min(self.bytes.remaining_capacity()));
            // There is room for just so many.
            let _ = self.bytes.try_extend_from_slice(now);
            piece = later;
        }
    }

    fn send(&mut self, last: bool) {
        let header = StatePart { vm: PRIMARY, offset: self.offset, last: last.into() };
        report::state_part(header.as_bytes(), &self.bytes);
        self.offset += u32::try_from(self.bytes.len()).unwrap_or(0);
        self.bytes.clear();
    }
}
