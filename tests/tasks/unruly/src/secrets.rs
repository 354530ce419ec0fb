//! Secret memory: what it must do, and every way to ask for it wrongly.

use crate::check;
use abi::task::{Call, CallError, END, Info, START, answer};
use core::hint::black_box;
use task_rt::{Secret, log, log_line, raw, wait};

const BLOCK: u64 = 2 << 20;
/// Where nothing of the task's is.
const FREE: u64 = 16 << 30;

/// A call that is refused.
fn refused(call: Call, arguments: [u64; 4]) -> Result<u64, CallError> {
    // SAFETY: no caller here names memory that is in use.
    answer(unsafe { raw(call as u64, arguments) })
}

/// All checks.
pub fn all(info: &Info) {
    check("a secret of nothing", Secret::new(0).map(drop), Err(CallError::Invalid));
    for bytes in [u64::MAX, 1 << 62, (u64::from(info.secret_quota) + 1) * BLOCK] {
        check("a secret beyond the quota", Secret::new(bytes).map(drop), Err(CallError::NoMemory));
    }
    contents();
    handles();
    let quota = u64::from(info.secret_quota);
    for round in ["take all", "take all again"] {
        check(round, taken(), quota);
    }
}

fn contents() {
    let mut secret = match Secret::new(BLOCK + 1) {
        Ok(secret) => secret,
        Err(error) => return check("a secret", Err(error), Ok(())),
    };
    for (what, address) in [
        ("map between blocks", FREE + 4096),
        ("map too low", START - BLOCK),
        ("map past the end", END - BLOCK),
    ] {
        check(what, secret.map(address).map(drop), Err(CallError::Invalid));
    }
    check("map where code is", secret.map(START).map(drop), Err(CallError::Exists));
    let handle = secret.handle();
    match secret.map(FREE) {
        Ok(mut memory) => {
            check("a secret is zero at first", memory.iter().all(|byte| *byte == 0), true);
            memory.fill(b's');
            let twice = refused(Call::SecretMap, [handle, FREE + 4 * BLOCK, 0, 0]);
            check("map it twice", twice, Err(CallError::Exists));
            let line = memory.get(..8).and_then(|bytes| core::str::from_utf8(bytes).ok());
            let logged = log_line(line.unwrap_or_default());
            check("the hypervisor cannot read it", logged, Err(CallError::BadAddress));
            let message = refused(Call::GuestRead, [0, 0, FREE, 8]);
            check("no guest memory into it", message, Err(CallError::BadHandle));
            check(
                "unmap it as if it were none",
                refused(Call::Unmap, [FREE, 1, 0, 0]),
                Err(CallError::BadAddress),
            );
            check("map into it", refused(Call::Map, [FREE, 1, 1, 0]), Err(CallError::Exists));
        }
        Err(error) => return check("map a secret", Err(error), Ok(())),
    }
    check(
        "unmap it twice",
        refused(Call::SecretUnmap, [handle, 0, 0, 0]),
        Err(CallError::BadAddress),
    );
    match secret.map(FREE + 8 * BLOCK) {
        Ok(memory) => {
            let kept = black_box(&*memory).iter().all(|byte| *byte == b's');
            check("it keeps its contents", kept, true);
        }
        Err(error) => check("map a secret again", Err(error), Ok(())),
    }
    drop(secret);
    check(
        "destroy it twice",
        refused(Call::SecretDestroy, [handle, 0, 0, 0]),
        Err(CallError::BadHandle),
    );
    check(
        "map it after its end",
        refused(Call::SecretMap, [handle, FREE, 0, 0]),
        Err(CallError::BadHandle),
    );
}

fn handles() {
    for handle in [u64::MAX, 1 << 32, 0xffff_ffff, 12345] {
        for call in [Call::SecretMap, Call::SecretUnmap, Call::SecretDestroy] {
            let answer = refused(call, [handle, FREE, 0, 0]);
            check("a made-up handle", answer, Err(CallError::BadHandle));
        }
    }
}

/// How many blocks can be had at once, each a secret of its own, all zero.
fn taken() -> u64 {
    let Ok(mut secret) = Secret::new(BLOCK) else { return 0 };
    match secret.map(FREE) {
        Ok(mut memory) => {
            let zero = memory.iter().all(|byte| *byte == 0);
            memory.fill(0xff);
            if !zero {
                check("a new secret is zero", zero, true);
            }
        }
        Err(error) => check("map one of many", Err(error), Ok(())),
    }
    1 + taken()
}

/// Fills a secret with words that stand nowhere else, ends it if `end`, and waits for ever.
/// `xtask/src/tasks.rs` looks for these words in a dump of all memory.
pub fn hold(end: bool) -> ! {
    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut secret = Secret::new(BLOCK);
    if let Ok(secret) = &mut secret
        && let Ok(mut memory) = secret.map(FREE)
    {
        for (number, word) in (1_u64..).zip(memory.chunks_exact_mut(8)) {
            word.copy_from_slice(&black_box(number).wrapping_mul(SEED).to_le_bytes());
        }
    }
    check("a secret to hold", secret.is_ok(), true);
    if end {
        drop(secret);
        log!("ended");
    } else {
        core::mem::forget(secret);
        log!("held");
    }
    loop {
        let _ = wait();
    }
}
