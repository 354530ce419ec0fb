//! What a task asks of the hypervisor ([`abi::task::Call`]), checked and done.

use super::memory::{Here, pages, user};
use super::{Grant, Task, secret};
use crate::log;
use crate::report;
use crate::vm::Ram;
use abi::event::ViolationKind;
use abi::task::{Call, CallError, MOST_BYTES, MOST_PAGES, Said, rights};
use addr::{Hva, PAGE_SIZE};
use core::str;

/// What a task does after a call.
pub enum Next {
    /// It goes on.
    Run,
    /// It waits for a message.
    Wait,
    /// It has ended, with this code.
    End(u64),
}

const RAX: usize = 0;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;
const R10: usize = 10;
/// Longest line of a task, in bytes.
const LINE: usize = 200;

/// Does what the task asks for, and stores the answer.
pub fn handle(task: &mut Task, here: Here<'_>, ram: &Ram) -> Next {
    let gpr = task.area.gpr;
    let answer = match Call::from_number(gpr[RAX]) {
        Some(Call::Wait) => {
            task.grant = None;
            task.waits = Some(Hva::new(gpr[RDI]));
            return Next::Wait;
        }
        Some(Call::Exit) => return Next::End(gpr[RDI]),
        Some(call) => perform(task, here, ram, call, [gpr[RDI], gpr[RSI], gpr[RDX], gpr[R10]]),
        None => Err(CallError::NoCall),
    };
    task.area.gpr[RAX] = answer.unwrap_or_else(CallError::raw);
    Next::Run
}

fn perform(
    task: &mut Task,
    here: Here<'_>,
    ram: &Ram,
    call: Call,
    [first, second, third, fourth]: [u64; 4],
) -> Result<u64, CallError> {
    match call {
        Call::Log => log_line(task, here, first, second).map(|()| 0),
        Call::Map => {
            if third & rights::EXECUTE != 0 {
                return Err(CallError::Denied);
            }
            if third & !rights::WRITE != 0 || second > MOST_PAGES {
                return Err(CallError::Invalid);
            }
            let rights = user(third & rights::WRITE != 0, false);
            task.space.map(here, pages(first, second)?, rights).map(|()| 0)
        }
        Call::Unmap if second > MOST_PAGES => Err(CallError::Invalid),
        Call::Unmap => task.space.unmap(pages(first, second)?).map(|()| 0),
        Call::Send => said(task, first, second, third).map(|()| 0),
        Call::SecretCreate => secret::create(task, here, first),
        Call::SecretMap => secret::map(task, first, second).map(|()| 0),
        Call::SecretUnmap => secret::unmap(task, first).map(|()| 0),
        Call::SecretDestroy => secret::destroy(task, here, first).map(|()| 0),
        Call::GuestRead => guest_read(task, here, ram, [first, second, third, fourth]),
        Call::Wait | Call::Exit => Err(CallError::Invalid),
    }
}

fn log_line(task: &Task, here: Here<'_>, address: u64, length: u64) -> Result<(), CallError> {
    if length > MOST_BYTES {
        return Err(CallError::Invalid);
    }
    let mut line = [0; LINE];
    let length = addr::length(length).min(LINE);
    let bytes = line.get_mut(..length).ok_or(CallError::Invalid)?;
    task.space.read(here, address, bytes)?;
    // A line that is cut inside a character ends before it.
    let text = match str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            str::from_utf8(valid).unwrap_or_default()
        }
        Err(_) => return Err(CallError::Invalid),
    };
    log!("task {} ({}): {text}", task.id, task.name);
    Ok(())
}

fn said(task: &mut Task, what: u64, token: u64, value: u64) -> Result<(), CallError> {
    let what = Said::from_number(what).ok_or(CallError::Invalid)?;
    if usize::try_from(task.id) != Ok(super::WARDEN) {
        return Err(CallError::Denied);
    }
    match what {
        Said::Answer => {
            if task.answer.is_none_or(|(answered, _)| answered != token) {
                task.answer = Some((token, value));
            }
            Ok(())
        }
        Said::Stop => {
            let kind = u8::try_from(value).ok().and_then(ViolationKind::from_number);
            let kind = kind.ok_or(CallError::Invalid)?;
            report::fatal(format_args!("stopped by the warden: {}", kind.name()))
        }
    }
}

fn guest_read(
    task: &Task,
    here: Here<'_>,
    ram: &Ram,
    [grant, offset, address, length]: [u64; 4],
) -> Result<u64, CallError> {
    let is_it = |given: &Grant| u64::from(given.number) == grant;
    let Grant { frame, .. } = task.grant.filter(is_it).ok_or(CallError::BadHandle)?;
    let end = offset.checked_add(length).filter(|end| *end <= PAGE_SIZE);
    if end.is_none() || !ram.iter().any(|range| range.contains(frame)) {
        return Err(CallError::Invalid);
    }
    let mut buffer = [0; 256];
    let mut done = 0;
    while done < length {
        let part = addr::length((length - done).min(buffer.len() as u64));
        let bytes = buffer.get_mut(..part).ok_or(CallError::Invalid)?;
        let window = here.windows.open(frame.identity()).ok_or(CallError::BadAddress)?;
        window.read(addr::length(offset + done), bytes);
        drop(window);
        task.space.write(here, address.wrapping_add(done), bytes)?;
        done += part as u64;
    }
    Ok(length)
}
