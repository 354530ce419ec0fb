//! ACPI, as far as the hypervisor needs it: which CPUs there are, and a copy of the tables that
//! tells the guest to start them through a mailbox, not by INIT and SIPI (ACPI 6.5, 5.2.12.19).
//!
//! The firmware's tables stay as they are; the guest is pointed to edited copies of RSDP, RSDT and
//! MADT in memory that its map shows as reserved. All of it is read through windows.

use super::layout::LOW_RESERVED;
use crate::memory::physical::{Physical, Unreachable};
use abi::MAX_CPUS;
use addr::{Gpa, Hpa};
use arrayvec::ArrayVec;

const RSDP: Hpa = Hpa::new(LOW_RESERVED.start);
const RSDT: Hpa = Hpa::new(LOW_RESERVED.start + 0x100);
const MADT: Hpa = Hpa::new(LOW_RESERVED.start + 0x1000);
/// The mailbox page.
pub const MAILBOX: Gpa = Gpa::new(LOW_RESERVED.start + 0x3000);

const HEADER_BYTES: usize = 36;
const RSDT_LIMIT: usize = 0xf00;
const MADT_LIMIT: usize = 0x1ff0;
/// Where the MADT's entries begin.
const MADT_ENTRIES: usize = 44;
const LOCAL_APIC: u8 = 0;
const WAKEUP: [u8; 8] = [0x10, 0x10, 0, 0, 0, 0, 0, 0];

/// What the tables said.
pub struct Machine {
    /// Local APIC ids of the enabled CPUs.
    pub apic_ids: ArrayVec<u32, MAX_CPUS>,
    /// Where the guest finds its root pointer.
    pub guest_rsdp: Gpa,
}

const NO_RSDP: &str =
    "no ACPI root pointer between 0xe0000 and 0xfffff; UEFI boot is not supported yet";
const NO_MADT: &str = "no ACPI table lists the CPUs (MADT)";
const BROKEN: &str = "an ACPI table is damaged or unreasonably long";

impl From<Unreachable> for &'static str {
    fn from(_: Unreachable) -> Self {
        "an ACPI table lies in the hypervisor's memory"
    }
}

/// Reads the tables and writes the guest's copies.
///
/// # Errors
/// A sentence for the person who started the machine.
pub fn read_and_edit(memory: Physical<'_>) -> Result<Machine, &'static str> {
    let (mut root, old_rsdt) = find_rsdp(memory)?;
    let mut buffer = [0; RSDT_LIMIT];
    let rsdt = read_table(memory, old_rsdt, &mut buffer)?;
    let (position, madt_address) = find_madt(memory, rsdt)?;
    let mut madt_buffer = [0; MADT_LIMIT + WAKEUP.len() * 2];
    let length = read_table(memory, madt_address, &mut madt_buffer)?.len();
    let apic_ids = cpus(madt_buffer.get(..length).ok_or(BROKEN)?)?;

    // The MADT with one more entry: the wake-up mailbox.
    let longer = length + 16;
    madt_buffer.get_mut(length..length + 8).ok_or(BROKEN)?.copy_from_slice(&WAKEUP);
    let mailbox = MAILBOX.raw().to_le_bytes();
    madt_buffer.get_mut(length + 8..longer).ok_or(BROKEN)?.copy_from_slice(&mailbox);
    let madt = madt_buffer.get_mut(..longer).ok_or(BROKEN)?;
    seal(madt)?;
    memory.write(MADT, madt)?;

    // The RSDT that points to it.
    let address = u32::try_from(MADT.raw()).map_err(|_| BROKEN)?.to_le_bytes();
    rsdt.get_mut(position..position + 4).ok_or(BROKEN)?.copy_from_slice(&address);
    seal(rsdt)?;
    memory.write(RSDT, rsdt)?;

    // A revision 0 root pointer that knows no XSDT.
    root[15] = 0;
    root[16..20].copy_from_slice(&u32::try_from(RSDT.raw()).map_err(|_| BROKEN)?.to_le_bytes());
    root[8] = 0;
    root[8] = checksum(&root);
    memory.write(RSDP, &root)?;
    memory.clear(Hpa::new(MAILBOX.raw()), 4096)?;
    Ok(Machine { apic_ids, guest_rsdp: Gpa::new(RSDP.raw()) })
}

/// The byte that makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte))
}

/// Puts length and checksum into a table's header.
fn seal(table: &mut [u8]) -> Result<(), &'static str> {
    let length = u32::try_from(table.len()).map_err(|_| BROKEN)?.to_le_bytes();
    table.get_mut(4..8).ok_or(BROKEN)?.copy_from_slice(&length);
    *table.get_mut(9).ok_or(BROKEN)? = 0;
    let sum = checksum(table);
    *table.get_mut(9).ok_or(BROKEN)? = sum;
    Ok(())
}

fn find_rsdp(memory: Physical<'_>) -> Result<([u8; 20], Hpa), &'static str> {
    // A page and the rest of a pointer that begins in its last 16 bytes.
    let mut buffer = [0; 4096 + 16];
    for address in (0xe_0000..0x10_0000_u64).step_by(4096) {
        let length = buffer.len().min(addr::length(0x10_0000 - address));
        let page = buffer.get_mut(..length).ok_or(BROKEN)?;
        memory.read(Hpa::new(address), page)?;
        for bytes in page.windows(20).step_by(16) {
            let Ok(root) = <[u8; 20]>::try_from(bytes) else { continue };
            if root.starts_with(b"RSD PTR ") && checksum(&root) == 0 {
                let rsdt = u32::from_le_bytes([root[16], root[17], root[18], root[19]]);
                return Ok((root, Hpa::new(u64::from(rsdt))));
            }
        }
    }
    Err(NO_RSDP)
}

/// Reads a whole table into `buffer`, at most its length; the checksum must be right.
fn read_table<'b>(
    memory: Physical<'_>,
    address: Hpa,
    buffer: &'b mut [u8],
) -> Result<&'b mut [u8], &'static str> {
    let length = memory.read_u32(address.plus(4))? as usize;
    let table = buffer.get_mut(..length).filter(|t| t.len() >= HEADER_BYTES).ok_or(BROKEN)?;
    memory.read(address, table)?;
    if checksum(table) == 0 { Ok(table) } else { Err(BROKEN) }
}

/// Position of the MADT's pointer in the RSDT, and where it points.
fn find_madt(memory: Physical<'_>, rsdt: &[u8]) -> Result<(usize, Hpa), &'static str> {
    let pointers = rsdt.get(HEADER_BYTES..).ok_or(BROKEN)?;
    for (index, pointer) in pointers.chunks_exact(4).enumerate() {
        let address = pointer.try_into().map(u32::from_le_bytes).map_err(|_| BROKEN)?;
        let mut signature = [0; 4];
        memory.read(Hpa::new(u64::from(address)), &mut signature)?;
        if &signature == b"APIC" {
            return Ok((HEADER_BYTES + index * 4, Hpa::new(u64::from(address))));
        }
    }
    Err(NO_MADT)
}

fn cpus(madt: &[u8]) -> Result<ArrayVec<u32, MAX_CPUS>, &'static str> {
    let mut ids = ArrayVec::new();
    let mut rest = madt.get(MADT_ENTRIES..).ok_or(BROKEN)?;
    while let [kind, length, ..] = rest {
        let entry = rest.get(..usize::from(*length)).filter(|e| e.len() >= 2).ok_or(BROKEN)?;
        if let (LOCAL_APIC, [_, _, _, id, 1, ..]) = (*kind, entry) {
            ids.try_push(u32::from(*id))
                .map_err(|_| "the machine has more CPUs than Ravelin supports (16)")?;
        }
        rest = rest.get(entry.len()..).ok_or(BROKEN)?;
    }
    if ids.is_empty() { Err(NO_MADT) } else { Ok(ids) }
}
