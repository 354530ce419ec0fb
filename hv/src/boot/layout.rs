//! Who gets which memory: the hypervisor's pool, and the memory map that the guest sees.

use super::{linux, smp};
use crate::memory::space;
use crate::publish;
use addr::{FRAMES_PER_2M, FrameRange, HostPhysical, Hpa, PAGE_SIZE};
use arrayvec::ArrayVec;
use boot_info::place::Memory;
use boot_info::{BootInfo, MOST_MODULES, Region, Role};
use core::ops::Range;

/// The guest's memory map.
pub type GuestMap = ArrayVec<Region, 96>;

const MIB: u64 = 1 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// Kind of a region that the guest must leave alone, and may look at.
const RESERVED: u32 = 2;
/// Kind of a region that it must not even look at: Linux does not show it in /dev/mem, as it does
/// not show what is reserved in one piece with memory below 1 MiB.
const UNUSABLE: u32 = 5;

/// Low memory that stays the guest's but reserved: edited ACPI tables, mailbox, first page tables.
pub const LOW_RESERVED: Range<u64> = 0x6_0000..0x6_8000;

/// What is written to in low memory, besides [`LOW_RESERVED`] only until the guest runs.
pub const LOW_PLACES: [Range<u64>; 3] = [smp::TRAMPOLINE_RANGE, linux::START_RANGE, LOW_RESERVED];

/// Whether the low memory that is needed is there.
///
/// # Errors
/// It is not, or the firmware keeps it.
pub fn check_low_memory(info: &BootInfo) -> Result<(), &'static str> {
    let memory = Memory { regions: &info.regions, taken: &[] };
    if LOW_PLACES.iter().all(|place| memory.is_ram(place)) {
        Ok(())
    } else {
        Err("the firmware keeps low memory that Ravelin needs: 0x8000-0x8fff, 0x10000-0x11fff \
             or 0x60000-0x67fff is not RAM in its memory map")
    }
}

/// Where the boot modules are; there is room for one more.
pub fn module_ranges(info: &BootInfo) -> ArrayVec<Range<u64>, { MOST_MODULES + 1 }> {
    info.modules.iter().map(boot_info::Module::range).collect()
}

/// Most memory that all tasks and their secrets may have together.
pub const TASK_BYTES: u64 = 16 * MIB;

/// Chooses the pool: as high below 4 GiB as the boot modules leave room, in whole 2 MiB blocks, so
/// that the guest's large leaves around it stay large.
///
/// It is large enough for everything that can be asked of it: two second-stage tables split down
/// to 4 KiB everywhere (8 KiB per 2 MiB of RAM), two bytes of state per frame and a little more for
/// counters of large leaves, 16 MiB for the manifest, the CPUs and the tables of device memory, and
/// [`TASK_BYTES`].
///
/// # Errors
/// There is no such place.
pub fn choose_pool(info: &BootInfo) -> Result<FrameRange<HostPhysical>, &'static str> {
    const TOO_SMALL: &str = "too little memory: Ravelin needs 32 MiB and 0.5 % of the machine's RAM in one piece below 4 GiB, clear of the boot modules";
    let ram: u64 = info.regions.iter().filter(|r| r.is_ram()).map(|r| r.length).sum();
    let named: u64 = info.all(Role::Kexec).map(|module| module.length + PAGE_SIZE).sum();
    let wanted = (16 * MIB + TASK_BYTES + named + ram / 2048 + ram / MIB + ram / 256)
        .next_multiple_of(2 * MIB);
    let mut taken = module_ranges(info);
    taken.push(bytes(space::image()));
    let memory = Memory { regions: &info.regions, taken: &taken };
    let start = memory.highest(FOUR_GIB, wanted, 2 * MIB).ok_or(TOO_SMALL)?;
    let pool = FrameRange::with_count(Hpa::new(start).frame(), wanted / PAGE_SIZE);
    debug_assert!(pool.start.is_aligned(FRAMES_PER_2M));
    Ok(pool)
}

fn bytes(frames: FrameRange<HostPhysical>) -> Range<u64> {
    frames.start.start().raw()..frames.end.start().raw()
}

/// The machine's memory map with the hypervisor's regions turned from RAM to unusable, and what the
/// guest may read or write of them to reserved.
///
/// # Errors
/// The map has too many entries.
pub fn guest_map(
    info: &BootInfo,
    pool: FrameRange<HostPhysical>,
) -> Result<GuestMap, &'static str> {
    let mut map: GuestMap = info.regions.iter().copied().collect();
    let own = [
        (LOW_RESERVED, RESERVED),
        (bytes(publish::frames()), RESERVED),
        (bytes(space::image()), UNUSABLE),
        (bytes(pool), UNUSABLE),
    ];
    for (own, kind) in own {
        let mut next = GuestMap::new();
        for region in map {
            carve(&mut next, region, &own, kind)
                .map_err(|_| "the memory map has too many entries")?;
        }
        map = next;
    }
    Ok(map)
}

/// Appends `region` with the part inside `own`, if it is RAM, turned to `kind`.
fn carve(
    map: &mut GuestMap,
    region: Region,
    own: &Range<u64>,
    kind: u32,
) -> Result<(), arrayvec::CapacityError<Region>> {
    let (start, end) = (region.start.max(own.start), region.end().min(own.end));
    if start >= end || !region.is_ram() {
        return map.try_push(region);
    }
    let pieces =
        [(region.start, start, region.kind), (start, end, kind), (end, region.end(), region.kind)];
    for (start, end, kind) in pieces {
        if start < end {
            map.try_push(Region { start, length: end - start, kind })?;
        }
    }
    Ok(())
}
