//! What the warden decides, and what it says about it. The task of that name fetches messages,
//! passes them on to here, and sends the answers.
//!
//! *Decisions*: a violation whose reaction is `ask` is denied, and the machine is stopped instead
//! when more than [`policy::Warden::stop_after`] of its kind, or from its instruction, came in so
//! many seconds. A guest's request to pin bits of its control registers is allowed or not, as the
//! policy says. What cannot be read is denied.
//!
//! *Lines* are few whatever the guest does; what was left out is counted.

#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod ledger;
mod pace;
#[cfg(test)]
mod tests;

use abi::event::{NO_ADDRESS, RecordKind, Verdict, Violation, ViolationKind};
use abi::policy::{self, Policy, PolicyError, Reaction};
use abi::task::{HekiExit, Info, Message, MessageKind};
use core::fmt;
use ledger::{Counts, Entry, Ledger};
use pace::Pace;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the warden needs of its surroundings.
pub trait Desk {
    /// Writes a line to the event channel.
    fn say(&mut self, line: fmt::Arguments<'_>);
    /// Copies from `offset` of a page that a message granted; whether that worked.
    fn look(&mut self, grant: u32, offset: u64, into: &mut [u8]) -> bool;
}

/// The warden.
pub struct Warden {
    policy: policy::Warden,
    asked: usize,
    ledger: Ledger,
    pace: Pace,
    /// Violations by kind.
    seen: [u64; ViolationKind::COUNT],
    total: u64,
}

/// An answer, and what it rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Counted(Entry, Counts),
    Asked(HekiExit),
    Unreadable,
}

impl Warden {
    /// A warden under the policy that a task's facts hold.
    ///
    /// # Errors
    /// It is none.
    pub fn new(info: &Info) -> Result<Self, PolicyError> {
        let policy = Policy::parse(info.policy.as_bytes())?;
        let seconds = u64::from(policy.warden.within_seconds);
        let window = seconds.saturating_mul(info.ticks_per_second);
        Ok(Self {
            policy: policy.warden,
            asked: policy.reactions.iter().filter(|it| **it == Reaction::Ask).count(),
            ledger: Ledger::new((window > 0).then_some(window)),
            pace: Pace::new(info.ticks_per_second),
            seen: [0; ViolationKind::COUNT],
            total: 0,
        })
    }

    /// Says what it will do.
    pub fn introduce(&self, desk: &mut impl Desk) {
        let Self { asked, policy: policy::Warden { stop_after, within_seconds, .. }, .. } = self;
        if *asked == 0 {
            desk.say(format_args!("ready; the policy asks for nothing"));
        } else if *stop_after == 0 {
            desk.say(format_args!("ready; asked about {asked} kinds, all are denied"));
        } else {
            desk.say(format_args!(
                "ready; asked about {asked} kinds, stops the machine after {stop_after} in \
                 {within_seconds} s"
            ));
        }
    }

    /// The answer to a message that wants one. A vCPU waits for it, so this is quick.
    pub fn decide(&mut self, message: &Message) -> Option<Decision> {
        match MessageKind::from_number(message.kind)? {
            MessageKind::Question => Some(self.judge(message)),
            MessageKind::Heki if message.detail == 1 => {
                let request = payload(message);
                let allowed = request.is_some() && self.policy.heki_configure;
                let verdict = if allowed { Verdict::Log } else { Verdict::Deny };
                Some(Decision { verdict, why: request.map_or(Why::Unreadable, Why::Asked) })
            }
            _ => None,
        }
    }

    fn judge(&mut self, message: &Message) -> Decision {
        let violation = payload(message)
            .and_then(|it: Violation| ViolationKind::from_number(it.kind).map(|kind| (it, kind)));
        let Some((violation, kind)) = violation else {
            return Decision { verdict: Verdict::Deny, why: Why::Unreadable };
        };
        let entry = Entry { time: message.time, rip: violation.rip, kind };
        let counts = self.ledger.enter(entry);
        let limit = self.policy.stop_after;
        let stops = limit > 0 && (counts.of_kind > limit || counts.from_rip > limit);
        let verdict = if stops { Verdict::Stop } else { Verdict::Deny };
        Decision { verdict, why: Why::Counted(entry, counts) }
    }

    /// Says what was decided. If that ends the machine, it must be said before it is answered.
    pub fn explain(&mut self, message: &Message, decision: Decision, desk: &mut impl Desk) {
        self.go_on(message, desk);
        let Decision { verdict, why } = decision;
        if verdict != Verdict::Stop && !self.pace.allows() {
            return;
        }
        let says = if verdict == Verdict::Log { "allows" } else { "denies" };
        match why {
            Why::Counted(Entry { kind, rip, .. }, Counts { of_kind, from_rip }) => {
                let says = if verdict == Verdict::Stop { "stops the machine" } else { says };
                let name = kind.name();
                desk.say(format_args!(
                    "{says}: {name} at RIP {rip:#x}, {of_kind} of this kind, {from_rip} from there"
                ));
            }
            Why::Asked(HekiExit { reason, value }) => {
                let register = register(reason);
                desk.say(format_args!("{says} the guest's request to pin {register} {value:#x}"));
            }
            Why::Unreadable => desk.say(format_args!("{says} what it cannot read")),
        }
    }

    /// Takes note of a message that wants no answer.
    pub fn note(&mut self, message: &Message, desk: &mut impl Desk) {
        self.go_on(message, desk);
        match MessageKind::from_number(message.kind) {
            Some(MessageKind::Event) if message.detail == RecordKind::Violation as u32 => {
                if let Some(violation) = payload(message) {
                    self.count(message, &violation, desk);
                }
            }
            Some(MessageKind::Heki) if self.pace.allows() => {
                if let Some(HekiExit { reason, value }) = payload(message) {
                    let register = register(reason);
                    desk.say(format_args!("{register} {value:#x} was denied: bits are pinned"));
                }
            }
            Some(MessageKind::Lost) if self.pace.allows() => {
                desk.say(format_args!("{} messages were lost", message.detail));
            }
            _ => {}
        }
    }

    /// Counts a violation that was dealt with.
    fn count(&mut self, message: &Message, violation: &Violation, desk: &mut impl Desk) {
        const EXECUTE: u8 = ViolationKind::Execute as u8;
        if let Some(seen) = self.seen.get_mut(usize::from(violation.kind)) {
            *seen += 1;
            self.total += 1;
        }
        let mut code = [0; 16];
        let offset = violation.gpa % u64::from(message.grant_length).max(1);
        let fits = offset + code.len() as u64 <= u64::from(message.grant_length);
        if violation.kind == EXECUTE && violation.gpa != NO_ADDRESS && message.grant != 0 && fits {
            let looked = desk.look(message.grant, offset, &mut code);
            if looked && self.pace.allows() {
                let address = violation.gpa;
                desk.say(format_args!("code at GPA {address:#x}: {}", Hex(&code)));
            }
        }
        // At the 16th, the 32nd, the 64th, ...: so few that no limit is needed.
        if self.total >= 16 && self.total.is_power_of_two() {
            desk.say(format_args!("{} violations so far: {}", self.total, Seen(&self.seen)));
        }
    }

    /// Says what was left out in the period that is over.
    fn go_on(&mut self, message: &Message, desk: &mut impl Desk) {
        if let Some(lines) = self.pace.turn(message.time) {
            desk.say(format_args!("{lines} lines left out; violations: {}", Seen(&self.seen)));
        }
    }
}

fn payload<T: FromBytes + KnownLayout + Immutable>(message: &Message) -> Option<T> {
    let length = usize::try_from(message.length).ok()?;
    T::read_from_bytes(message.payload.get(..length)?).ok()
}

/// The register of a [`HekiExit`].
const fn register(reason: u64) -> &'static str {
    match reason {
        1 => "CR0",
        2 => "CR4",
        _ => "an unknown register",
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Counts by kind, those that are 0 left out.
struct Seen<'a>(&'a [u64; ViolationKind::COUNT]);

impl fmt::Display for Seen<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = ViolationKind::ALL.iter().zip(self.0).filter(|(_, count)| **count > 0);
        for (number, (kind, count)) in kinds.enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            write!(formatter, "{separator}{} {count}", kind.name())?;
        }
        Ok(())
    }
}
