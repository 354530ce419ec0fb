//! The warden: a task that hears of every event and answers for the policy where that leaves
//! something to decide. What it decides is in [`warden_policy`].

#![no_std]
#![no_main]
#![deny(unsafe_code)]

use abi::event::Verdict;
use abi::task::{Info, Message, Said};
use core::fmt::Arguments;
use task_rt::{Line, guest_read, log, send, wait};
use warden_policy::{Decision, Desk, Warden};

task_rt::main!(run);

/// The hypervisor, as the warden sees it.
struct Hypervisor;

impl Desk for Hypervisor {
    fn say(&mut self, line: Arguments<'_>) {
        Line::of(line).log();
    }

    fn look(&mut self, grant: u32, offset: u64, into: &mut [u8]) -> bool {
        guest_read(grant, offset, into).is_ok()
    }
}

fn run(info: &Info) -> u64 {
    let mut warden = match Warden::new(info) {
        Ok(warden) => warden,
        Err(error) => {
            log!("the policy cannot be read: {error:?}");
            return 1;
        }
    };
    warden.introduce(&mut Hypervisor);
    loop {
        match wait() {
            Ok(message) => take(&mut warden, &message),
            Err(error) => {
                log!("it cannot wait for messages: {error:?}");
                return 2;
            }
        }
    }
}

fn take(warden: &mut Warden, message: &Message) {
    let Some(decision) = warden.decide(message) else {
        return warden.note(message, &mut Hypervisor);
    };
    if decision.verdict == Verdict::Stop {
        warden.explain(message, decision, &mut Hypervisor);
        return answer(message, decision);
    }
    // A vCPU waits.
    answer(message, decision);
    warden.explain(message, decision, &mut Hypervisor);
}

fn answer(message: &Message, decision: Decision) {
    if let Err(error) = send(Said::Answer, message.token, decision.verdict as u64) {
        log!("its answer to message {} was refused: {error:?}", message.token);
    }
}
