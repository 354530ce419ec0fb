//! When tasks run, and for how long.
//!
//! A task with something to do runs on the CPU that notices, before that goes back to its guest,
//! as soon as the guest would accept an interrupt: so long the vCPU asks for an exit at that
//! moment. An interrupt ends the turn, is given to the guest, and the task goes on after it. Where
//! the guest waits for no interrupt of its timer, the timer is borrowed. A task that goes through
//! many turns without waiting is stopped.
//!
//! The warden can also be asked while a vCPU stands at an instruction ([`ask`]), where no interrupt
//! could be given to the guest. Then it is run instruction by instruction, and only so many.

use super::area::{Pace, Stopped};
use super::calls::{self, Next};
use super::inbox::{Inbox, Post};
use super::memory::Here;
use super::{Grant, MOST_TASKS, READY, SLOTS, Task, WARDEN, has_warden, make_ready};
use crate::cpu::apic::{self, BorrowedTimer};
use crate::cpu::{control, instructions::time_stamp, stack};
use crate::log;
use crate::memory::flush;
use crate::vcpu::Vcpu;
use crate::vendor::Vendor;
use abi::event::Verdict;
use addr::PAGE_BYTES;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use spin::mutex::{SpinMutex, SpinMutexGuard};
use x86_defs::vector;

/// A task is stopped if it has used more ticks than this and as many turns as [`MOST_TURNS`].
const MOST_TICKS: u64 = 2_000_000_000;
/// Turns ended by an interrupt since it last waited.
const MOST_TURNS: u32 = 64;
/// Most instructions of an answer.
const MOST_STEPS: u32 = 400_000;
/// Most ticks that an asking vCPU waits for the warden to be free.
const MOST_PATIENCE: u64 = 400_000_000;
/// How often the CPU looks again for tasks that became ready before it enters the guest.
const ROUNDS: u32 = 4;

/// What a task has used since it last waited.
#[derive(Default)]
pub struct Spent {
    turns: u32,
    ticks: u64,
}

impl Spent {
    /// Adds the ticks since `before`.
    fn charge(&mut self, before: u64) {
        self.ticks = self.ticks.saturating_add(time_stamp().wrapping_sub(before));
    }
}

/// How a turn ended.
enum End {
    /// The task waits for a message that is not there.
    Waits,
    /// An interrupt is for the guest.
    Interrupted,
    /// There is no such task any more.
    Gone,
}

/// Runs tasks that have something to do, or asks for an exit when they can run.
#[cold]
pub fn run_ready(vcpu: &mut Vcpu<impl Vendor>) {
    for _ in 0..ROUNDS {
        let ready = READY.load(Ordering::SeqCst);
        if ready == 0 {
            return;
        }
        if !apic::has_timer() {
            // Nothing would end the turn of a task that loops. The guest's write that gives the
            // timer its vector is an exit, after which we are here again.
            return;
        }
        if !vcpu.can_take_interrupt() {
            break;
        }
        let mut ran = false;
        for number in (0..MOST_TASKS).filter(|number| ready & 1 << number != 0) {
            let Some(slot) = SLOTS.get(number) else { continue };
            // A task that runs elsewhere is looked at again there.
            let Some(mut task) = slot.task.try_lock() else { continue };
            READY.fetch_and(!(1 << number), Ordering::SeqCst);
            ran = true;
            let end = turn(vcpu, &mut task, &slot.inbox);
            drop(task);
            if matches!(end, End::Interrupted) {
                make_ready(number);
                return vcpu.request_interrupt_window();
            }
            // Whoever made it ready meanwhile has seen it locked, or is seen now.
            fence(Ordering::SeqCst);
        }
        if !ran {
            return;
        }
    }
    vcpu.request_interrupt_window();
}

/// Lets a task run until it waits, ends, or is interrupted.
fn turn<V: Vendor>(
    vcpu: &mut Vcpu<V>,
    place: &mut SpinMutexGuard<'_, Option<Task>>,
    inbox: &SpinMutex<Inbox>,
) -> End {
    loop {
        let Some(task) = place.as_mut() else { return End::Gone };
        if task.waits.is_some() {
            let Some(post) = inbox.lock().take() else { return End::Waits };
            task.deliver(here(vcpu), post);
        }
        let timer = BorrowedTimer::start();
        let before = time_stamp();
        let stopped = enter(vcpu, task, Pace::Free);
        drop(timer);
        match stopped {
            Stopped::Interrupt(vector) => {
                vcpu.inject_interrupt(vector);
                task.spent.charge(before);
                task.spent.turns += 1;
                if task.spent.turns >= MOST_TURNS && task.spent.ticks >= MOST_TICKS {
                    let rip = task.area.rip;
                    stop(
                        vcpu,
                        place,
                        format_args!("ran too long without waiting, at RIP {rip:#x}"),
                    );
                }
                return End::Interrupted;
            }
            other => {
                after(vcpu, place, other);
                // What the hypervisor does for a task is the task's time too.
                if let Some(task) = place.as_mut() {
                    task.spent.charge(before);
                }
            }
        }
    }
}

fn here<V: Vendor>(vcpu: &Vcpu<V>) -> Here<'_> {
    Here { cpu: vcpu.index, windows: &vcpu.windows }
}

fn stop<V: Vendor>(vcpu: &Vcpu<V>, place: &mut Option<Task>, why: core::fmt::Arguments<'_>) {
    if let Some(task) = place.take() {
        task.end(here(vcpu), why);
    }
}

/// Does what a task stopped for, unless that was an interrupt.
fn after<V: Vendor>(vcpu: &Vcpu<V>, place: &mut Option<Task>, stopped: Stopped) {
    let Some(task) = place.as_mut() else { return };
    match stopped {
        Stopped::Call => match calls::handle(task, here(vcpu), &vcpu.vm.ram) {
            Next::Run => {}
            Next::Wait => task.spent = Spent::default(),
            Next::End(code) => stop(vcpu, place, format_args!("exited with code {code}")),
        },
        Stopped::Fault { vector, error, address } => {
            let rip = task.area.rip;
            // CR2 says something of page faults only.
            let is_page_fault = vector == u64::from(vector::PF);
            let address = if is_page_fault { address.raw() } else { 0 };
            let why = format_args!(
                "fault {vector} at RIP {rip:#x}, address {address:#x}, error code {error:#x}"
            );
            stop(vcpu, place, why);
        }
        Stopped::Stepped | Stopped::Interrupt(_) => {}
    }
}

/// The switch to a task and back.
fn enter<V: Vendor>(vcpu: &mut Vcpu<V>, task: &mut Task, pace: Pace) -> Stopped {
    let cpu = vcpu.index;
    stack::set_task(cpu, (&raw const task.area).addr() as u64);
    // Loads of CR3 on both ways: no translation of the hypervisor's is used meanwhile, or kept.
    let away = vcpu.place.leave();
    let extended = control::hide_extended_state();
    vcpu.accept_interrupts(true);
    let stopped = task.area.enter(pace);
    vcpu.accept_interrupts(false);
    control::show_extended_state(extended);
    vcpu.place.come_back(away);
    if stack::nmi_was_seen(cpu) {
        vcpu.take_nmi();
    }
    stopped
}

impl Task {
    /// Gives the task the message that it waits for.
    fn deliver(&mut self, here: Here<'_>, post: Post) {
        let Some(at) = self.waits.take() else { return };
        let mut message = post.message;
        if let Some(frame) = post.about {
            self.grants = self.grants.wrapping_add(1).max(1);
            self.grant = Some(Grant { number: self.grants, frame });
            message.grant = self.grants;
            message.grant_length = u32::try_from(PAGE_BYTES).unwrap_or(0);
        }
        let stored = self.space.write(here, at.raw(), zerocopy::IntoBytes::as_bytes(&message));
        // The message of a task that names a bad place for it is gone.
        self.area.gpr[0] = match stored {
            Ok(()) => u64::from(message.kind),
            Err(error) => error.raw(),
        };
    }
}

/// A number that no other question has.
pub fn new_token() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

/// Asks the warden and waits for its answer. `None` if there is no warden, or none that answers in
/// time. The caller holds no lock.
pub fn ask(vcpu: &mut Vcpu<impl Vendor>, post: Post) -> Option<Verdict> {
    let slot = SLOTS.get(WARDEN).filter(|_| has_warden())?;
    let token = post.message.token;
    let started = time_stamp();
    let mut place = loop {
        match slot.task.try_lock() {
            Some(place) => break place,
            None if time_stamp().wrapping_sub(started) > MOST_PATIENCE => return late(token),
            None => flush::serve(vcpu.index),
        }
    };
    slot.inbox.lock().push_first(post);
    for _ in 0..MOST_STEPS {
        let task = place.as_mut()?;
        if let Some((_, value)) = task.answer.take_if(|(answered, _)| *answered == token) {
            drop(place);
            // It is to finish what it was doing.
            make_ready(WARDEN);
            return u8::try_from(value).ok().and_then(Verdict::from_number);
        }
        if task.waits.is_some() {
            let Some(post) = slot.inbox.lock().take() else { break };
            task.deliver(here(vcpu), post);
        }
        if ends_stepping(task, here(vcpu)) {
            stop(vcpu, &mut place, format_args!("it uses POPF or IRET"));
            break;
        }
        let stopped = enter(vcpu, task, Pace::OneStep);
        after(vcpu, &mut place, stopped);
    }
    drop(place);
    make_ready(WARDEN);
    late(token)
}

fn late(token: u64) -> Option<Verdict> {
    log!("the warden did not answer message {token} in time");
    None
}

/// Whether the next instruction could switch single steps off: POPF or IRET.
fn ends_stepping(task: &Task, here: Here<'_>) -> bool {
    const POPF: u8 = 0x9d;
    const IRET: u8 = 0xcf;
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    for offset in 0..15 {
        let mut byte = [0; 1];
        if task.space.read(here, task.area.rip.wrapping_add(offset), &mut byte).is_err() {
            return false;
        }
        match byte.first() {
            Some(byte) if is_prefix(byte) => {}
            Some(byte) => return matches!(*byte, POPF | IRET),
            None => return false,
        }
    }
    false
}
