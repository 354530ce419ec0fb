//! Calls with bad arguments, and memory up to the quota.

use crate::check;
use abi::task::{Call, CallError, END, Info, MOST_PAGES, START, answer, rights};
use core::hint::black_box;
use task_rt::{Mapping, raw};

/// Where nothing of the task's is.
const FREE: u64 = 16 << 30;
const PAGE: u64 = 4096;
/// Where something of the hypervisor's is.
const IMAGE: u64 = 0x10_0000;

/// A call that is refused, or maps what nobody uses.
fn call(call: Call, arguments: [u64; 4]) -> Result<u64, CallError> {
    // SAFETY: no caller here names memory that is in use.
    answer(unsafe { raw(call as u64, arguments) })
}

/// Every way to get a call's arguments wrong that has a name.
pub fn calls() {
    mapping();
    lines();
    let map = |address, pages, rights| call(Call::Map, [address, pages, rights, 0]);
    let bad = Err(CallError::Invalid);
    for (what, got, expected) in [
        ("map code", map(FREE, 1, rights::EXECUTE), Err(CallError::Denied)),
        ("map with unknown rights", map(FREE, 1, 1 << 63), bad),
        ("map between pages", map(FREE + 8, 1, rights::WRITE), bad),
        ("map no page", map(FREE, 0, rights::WRITE), bad),
        ("map too many pages", map(FREE, MOST_PAGES + 1, rights::WRITE), bad),
        ("map below the start", map(START - PAGE, 2, rights::WRITE), bad),
        ("map past the end", map(END - PAGE, 2, rights::WRITE), bad),
        ("map round the end", map(!(PAGE - 1), 2, rights::WRITE), bad),
        ("map where code is", map(START, 1, rights::WRITE), Err(CallError::Exists)),
        ("unmap what is not there", call(Call::Unmap, [FREE, 1, 0, 0]), Err(CallError::BadAddress)),
        ("unmap the hypervisor", call(Call::Unmap, [IMAGE, 1, 0, 0]), bad),
        ("answer for the warden", call(Call::Send, [0, 1, 0, 0]), Err(CallError::Denied)),
        ("stop the machine", call(Call::Send, [1, 0, 0, 0]), Err(CallError::Denied)),
        ("say what is not known", call(Call::Send, [2, 0, 0, 0]), bad),
        ("read without a grant", guest_read(0), Err(CallError::BadHandle)),
        ("read with a made-up grant", guest_read(1), Err(CallError::BadHandle)),
    ] {
        check(what, got, expected);
    }
    for number in [Call::COUNT as u64, 1 << 32, u64::MAX] {
        // SAFETY: there is no such call.
        let got = answer(unsafe { raw(number, [0; 4]) });
        check("a call that is none", got, Err(CallError::NoCall));
    }
}

fn guest_read(grant: u64) -> Result<u64, CallError> {
    let mut place = [0_u8; 16];
    call(Call::GuestRead, [grant, 0, place.as_mut_ptr().addr() as u64, 16])
}

fn mapping() {
    for round in ["map", "map again"] {
        match Mapping::new(FREE, 2) {
            Ok(mut memory) => {
                check(round, memory.iter().all(|byte| *byte == 0), true);
                memory.fill(0x5a);
                check(
                    "memory keeps its bytes",
                    black_box(&*memory).iter().all(|b| *b == 0x5a),
                    true,
                );
                let twice = Mapping::new(FREE + PAGE, 1).map(drop);
                check("map what is mapped", twice, Err(CallError::Exists));
            }
            Err(error) => check(round, Err(error), Ok(())),
        }
    }
}

fn lines() {
    let log = |address, length| call(Call::Log, [address, length, 0, 0]);
    let bytes = [0xff_u8; 8];
    for (what, got, expected) in [
        ("log nothing from nowhere", log(0, 8), CallError::BadAddress),
        ("log the hypervisor", log(IMAGE, 8), CallError::BadAddress),
        ("log from a bad address", log(1 << 63, 8), CallError::BadAddress),
        ("log round the end", log(u64::MAX, 8), CallError::BadAddress),
        ("log too much", log(START, u64::MAX), CallError::Invalid),
        ("log what is no text", log(bytes.as_ptr().addr() as u64, 8), CallError::Invalid),
    ] {
        check(what, got, Err(expected));
    }
}

/// Takes all that it may have, gives it back, and takes it again.
pub fn quota(info: &Info) {
    let quota = u64::from(info.quota);
    for round in ["take all", "take all again"] {
        check(round, taken(FREE, 0), quota);
    }
}

/// How many pages more can be mapped than `so_far`, in ever smaller pieces; then gives them back.
fn taken(address: u64, so_far: u64) -> u64 {
    let mut pieces = (0..=MOST_PAGES.ilog2()).rev().map(|power| 1_u64 << power);
    let found = pieces.find_map(|pages| Some((Mapping::new(address, pages).ok()?, pages)));
    match found {
        Some((_memory, pages)) => taken(address + pages * PAGE, so_far + pages),
        None => so_far,
    }
}
