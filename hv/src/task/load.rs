//! From a task's image to a task that can run.

use super::area::Area;
use super::memory::{Here, Kept, Space, pages, user};
use super::{ALIVE, SLOTS, Task, make_ready, turn};
use crate::cpu::instructions::ticks_per_second;
use crate::log;
use crate::memory::pool;
use abi::policy::Policy;
use abi::task::image::{Image, ImageError, segment};
use abi::task::{CallError, INFO, Info, STACK_BYTES, STACK_TOP};
use addr::PAGE_SIZE;
use arrayvec::{ArrayString, ArrayVec};
use core::sync::atomic::Ordering;
use spin::mutex::SpinMutex;
use zerocopy::IntoBytes;

/// Frames that a task may map besides what it is loaded with: 4 MiB.
const QUOTA: u32 = 1024;

/// Loads a task; `number` is its place.
///
/// # Errors
/// A sentence that says what is wrong with the image, or what is missing.
pub fn load(
    here: Here<'_>,
    number: usize,
    bytes: &[u8],
    policy: &Policy,
) -> Result<(), &'static str> {
    const NO_MEMORY: &str = "the pool is too small for the tasks";
    let image = Image::parse(bytes).map_err(|error| match error {
        ImageError::NotAnImage => "a task is no task image: make it by `ravelin task`",
        ImageError::Version(_) => "a task's image is of another version: make it anew",
        ImageError::Damaged => "a task's image is damaged: its digest does not match",
        ImageError::Malformed(_) => "a task's image is malformed",
    })?;
    let id = u32::try_from(number).map_err(|_| "there are too many tasks")?;
    let slot = SLOTS.get(number).ok_or("there are too many tasks")?;
    let info = Info {
        version: Info::VERSION,
        task: id,
        name: image.name_field(),
        ticks_per_second: ticks_per_second(),
        quota: QUOTA,
        secret_quota: pool::SECRET_QUOTA,
        policy: policy.to_record(),
    };
    let space = build(here, id, &slot.kept, &image, &info).map_err(|_| NO_MEMORY)?;
    let name = image.name().and_then(|name| ArrayString::from(name).ok()).unwrap_or_default();
    let area = Area::new(space.root(), image.entry(), STACK_TOP, INFO);
    let task = Task {
        id,
        name,
        area,
        space,
        secrets: ArrayVec::new(),
        waits: None,
        grant: None,
        grants: 0,
        answer: None,
        spent: turn::Spent::default(),
    };
    log!("task {id} ({name}) is loaded");
    *slot.task.lock() = Some(task);
    ALIVE.fetch_or(1 << number, Ordering::SeqCst);
    make_ready(number);
    Ok(())
}

fn build(
    here: Here<'_>,
    id: u32,
    kept: &'static SpinMutex<Kept>,
    image: &Image<'_>,
    info: &Info,
) -> Result<Space, CallError> {
    let mut space = Space::new(id, u32::MAX, kept)?;
    let filled = fill(&mut space, here, image, info);
    match filled {
        Ok(()) => {
            space.set_quota(QUOTA);
            Ok(space)
        }
        Err(error) => {
            space.destroy(here);
            Err(error)
        }
    }
}

fn fill(
    space: &mut Space,
    here: Here<'_>,
    image: &Image<'_>,
    info: &Info,
) -> Result<(), CallError> {
    for part in image.segments() {
        let rights = user(part.rights == segment::READ_WRITE, part.rights == segment::READ_EXECUTE);
        space.map(here, pages(part.address, part.size / PAGE_SIZE)?, rights)?;
        space.fill(here, part.address, image.bytes_of(part))?;
    }
    let stack = pages(STACK_TOP - STACK_BYTES, STACK_BYTES / PAGE_SIZE)?;
    space.map(here, stack, user(true, false))?;
    space.map(here, pages(INFO, 1)?, user(false, false))?;
    space.fill(here, INFO, info.as_bytes())
}
