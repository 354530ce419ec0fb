//! The images of tasks among the boot modules.

use super::{NO_POOL, Reason};
use crate::memory::physical::Physical;
use crate::memory::pool::Block;
use crate::memory::window::Windows;
use crate::task::memory::Here;
use crate::task::{self, MOST_TASKS, WARDEN};
use abi::policy::Policy;
use abi::task::image;
use addr::PAGE_SIZE;
use arrayvec::ArrayVec;
use boot_info::{BootInfo, Module, Role};

/// Copies of the images, each with the number of its task.
pub type Images = ArrayVec<(usize, &'static [u8]), MOST_TASKS>;

/// Copies the images into the pool, where nobody can change them any more.
pub fn copy(memory: Physical<'_>, info: &BootInfo) -> Result<Images, Reason> {
    let wardens = info.all(Role::Warden).map(|module| (WARDEN, module));
    let others = (WARDEN + 1..).zip(info.all(Role::Task));
    let mut images = Images::new();
    for (number, module) in wardens.chain(others) {
        let image = (number, copy_one(memory, module)?);
        images.try_push(image).map_err(|_| "there are too many tasks among the boot modules")?;
    }
    Ok(images)
}

fn copy_one(memory: Physical<'_>, module: Module) -> Result<&'static [u8], Reason> {
    if module.length > image::MOST_BYTES {
        return Err("a task's image is too large");
    }
    let bytes = Block::take(module.length.div_ceil(PAGE_SIZE).max(1)).ok_or(NO_POOL)?.leak();
    let bytes = bytes.get_mut(..addr::length(module.length)).ok_or(NO_POOL)?;
    memory.read(module.start, bytes)?;
    Ok(bytes)
}

/// Loads the tasks. They run when the guest does.
pub fn load(windows: &Windows, images: &Images, policy: &Policy) -> Result<(), Reason> {
    let here = Here { cpu: 0, windows };
    images.iter().try_for_each(|(number, bytes)| task::load::load(here, *number, bytes, policy))
}
