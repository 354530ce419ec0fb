//! Frames of a guest that the guest has made secret: no window opens on them, so that neither the
//! hypervisor nor a task can read or write them. One bit per frame.

use super::pool::Block;
use crate::log;
use addr::{FrameRange, Gfn, GuestPhysical, Hfn, HostPhysical, PAGE_BYTES};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use spin::Once;

/// Refusals that are told one by one; a guest can provoke any number.
const MOST_TOLD: u32 = 16;

static SECRET: Once<&'static [AtomicU8]> = Once::new();
/// A frame was secret once.
static EVER: AtomicBool = AtomicBool::new(false);
static REFUSED: AtomicU32 = AtomicU32::new(0);

/// Takes the bits for frames below `end`. Without it nothing can be secret.
pub fn initialise(end: Gfn) -> Option<()> {
    let bytes = end.raw().div_ceil(8);
    let block = Block::take(bytes.div_ceil(PAGE_BYTES as u64).max(1))?;
    let bytes: &'static [u8] = block.leak();
    // SAFETY: the bytes were leaked to nobody else, and an atomic byte has the layout of a byte.
    let bits = unsafe { &*(core::ptr::from_ref(bytes) as *const [AtomicU8]) };
    SECRET.call_once(|| bits);
    Some(())
}

fn byte(frame: Gfn) -> Option<&'static AtomicU8> {
    SECRET.get()?.get(addr::length(frame.raw() / 8))
}

/// Whether a window is refused on this frame, which is one of a guest's; if so, it is logged.
pub fn is_refused(frame: Hfn) -> bool {
    // The primary VM's frames have the numbers that the machine gives them.
    let frame = Gfn::new(frame.raw());
    let is_secret = is_secret(frame);
    if is_secret && REFUSED.fetch_add(1, Ordering::Relaxed) < MOST_TOLD {
        log!("no window opens on guest frame {:#x}: the guest has made it secret", frame.raw());
    }
    is_secret
}

fn is_secret(frame: Gfn) -> bool {
    byte(frame).is_some_and(|byte| byte.load(Ordering::Acquire) >> (frame.raw() % 8) & 1 != 0)
}

/// Whether the first of some frames of a guest's is secret, and how many from it on are alike.
pub fn run(frames: FrameRange<HostPhysical>) -> (bool, u64) {
    if !EVER.load(Ordering::Acquire) {
        return (false, frames.count());
    }
    let mut rest = frames.iter().map(|frame| is_secret(Gfn::new(frame.raw())));
    let first = rest.next().unwrap_or(false);
    (first, 1 + rest.take_while(|secret| *secret == first).count() as u64)
}

/// Makes all frames ordinary again.
pub fn forget() {
    for byte in SECRET.get().into_iter().copied().flatten() {
        byte.store(0, Ordering::Release);
    }
}

/// Makes frames secret, or ordinary again. Frames beyond the end of RAM are left out.
pub fn set(frames: FrameRange<GuestPhysical>, secret: bool) {
    EVER.fetch_or(secret, Ordering::Release);
    for frame in frames.iter() {
        let bit = 1 << (frame.raw() % 8);
        let Some(byte) = byte(frame) else { continue };
        if secret {
            byte.fetch_or(bit, Ordering::Release);
        } else {
            byte.fetch_and(!bit, Ordering::Release);
        }
    }
}
