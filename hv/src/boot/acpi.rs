//! ACPI, as far as the hypervisor needs it: which CPUs there are, and a copy of the tables that
//! tells the guest to start them through a mailbox, not by INIT and SIPI (ACPI 6.5, 5.2.12.19).
//!
//! The firmware's tables stay as they are; the guest is pointed to edited copies of RSDP, RSDT or
//! XSDT, and MADT in memory that its map shows as reserved. All of it is read through windows.

use super::layout::LOW_RESERVED;
use crate::memory::physical::{Physical, Unreachable};
use abi::{Fingerprint, MAX_CPUS};
use addr::{Gpa, Hpa};
use arrayvec::ArrayVec;
use boot_info::RSDP_BYTES;
use core::ops::Range;

const RSDP: Hpa = Hpa::new(LOW_RESERVED.start);
const ROOT: Hpa = Hpa::new(LOW_RESERVED.start + 0x100);
const MADT: Hpa = Hpa::new(LOW_RESERVED.start + 0x1000);
/// The mailbox page.
pub const MAILBOX: Gpa = Gpa::new(LOW_RESERVED.start + 0x3000);

const HEADER_BYTES: usize = 36;
const ROOT_LIMIT: usize = 0xf00;
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
    "no ACPI root pointer, neither from the boot loader nor between 0xe0000 and 0xfffff";
const NO_MADT: &str = "no ACPI table lists the CPUs (MADT)";
const BROKEN: &str = "an ACPI table is damaged or unreasonably long";

impl From<Unreachable> for &'static str {
    fn from(_: Unreachable) -> Self {
        "an ACPI table lies in the hypervisor's memory"
    }
}

/// As it is written in a root pointer of revision 2.
const RSDP_LENGTH: [u8; 4] = [36, 0, 0, 0];
/// The root pointer (ACPI 6.5, 5.2.5.3).
type Rsdp = [u8; RSDP_BYTES];

/// The table that lists all others: XSDT or RSDT.
#[derive(Clone, Copy)]
struct Root {
    address: Hpa,
    /// Bytes per pointer: 8 in an XSDT, 4 in an RSDT.
    pointer: usize,
}

impl Root {
    /// The table that `rsdp` names: the XSDT if it knows one.
    fn of(rsdp: &Rsdp) -> Self {
        let [.., r0, r1, r2, r3, _, _, _, _, x0, x1, x2, x3, x4, x5, x6, x7, _, _, _, _] = *rsdp;
        let xsdt = u64::from_le_bytes([x0, x1, x2, x3, x4, x5, x6, x7]);
        if is_new(rsdp) && xsdt != 0 {
            Self { address: Hpa::new(xsdt), pointer: 8 }
        } else {
            let rsdt = u32::from_le_bytes([r0, r1, r2, r3]);
            Self { address: Hpa::new(u64::from(rsdt)), pointer: 4 }
        }
    }

    /// A root pointer that names only this table, at `address`.
    fn pointer_to(self, address: u64, old: &Rsdp) -> Result<Rsdp, &'static str> {
        let mut rsdp = [0; RSDP_BYTES];
        // Signature and OEM id; the checksum is for later.
        rsdp[..15].copy_from_slice(&old[..15]);
        rsdp[8] = 0;
        if self.pointer == 8 {
            rsdp[15] = 2;
            rsdp[20..24].copy_from_slice(&RSDP_LENGTH);
            rsdp[24..32].copy_from_slice(&address.to_le_bytes());
        } else {
            let address = u32::try_from(address).map_err(|_| BROKEN)?;
            rsdp[16..20].copy_from_slice(&address.to_le_bytes());
        }
        rsdp[8] = checksum(&rsdp[..20]);
        rsdp[32] = checksum(&rsdp);
        Ok(rsdp)
    }
}

/// Whether the pointer has the fields of revision 2 and is whole.
fn is_new(rsdp: &Rsdp) -> bool {
    rsdp[15] >= 2 && checksum(rsdp) == 0
}

/// Reads the tables and writes the guest's copies. `given` is the root pointer if the boot loader
/// gave it.
///
/// # Errors
/// A sentence for the person who started the machine.
pub fn read_and_edit(memory: Physical<'_>, given: Option<Rsdp>) -> Result<Machine, &'static str> {
    let rsdp = match given {
        Some(rsdp) => rsdp,
        None => find_rsdp(memory)?,
    };
    let root = Root::of(&rsdp);
    let mut buffer = [0; ROOT_LIMIT];
    let list = read_table(memory, root.address, &mut buffer)?;
    let (position, madt_address) = find_madt(memory, list, root.pointer)?;
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

    // The list that points to it.
    let address = MADT.raw().to_le_bytes();
    let slot = list.get_mut(position..position + root.pointer).ok_or(BROKEN)?;
    slot.copy_from_slice(address.get(..root.pointer).ok_or(BROKEN)?);
    seal(list)?;
    memory.write(ROOT, list)?;
    memory.write(RSDP, &root.pointer_to(ROOT.raw(), &rsdp)?)?;
    memory.clear(Hpa::new(MAILBOX.raw()), 4096)?;
    Ok(Machine { apic_ids, guest_rsdp: Gpa::new(RSDP.raw()) })
}

/// Most tables whose bytes are kept in mind.
const MOST_TABLES: usize = 64;
/// Longest of them.
const MOST_BYTES: u64 = 16 << 20;
const FADT: &[u8; 4] = b"FACP";
/// Where a FADT has the address of the DSDT: in 8 bytes, or else in 4 (ACPI 6.5, table 5.9).
const X_DSDT: u64 = 140;
const DSDT: u64 = 40;

/// The firmware's tables that a guest reads and may write, where they are.
pub type Tables = ArrayVec<Range<u64>, MOST_TABLES>;

/// Every table that the guest's list names, and the one that the FADT names.
///
/// # Errors
/// There are too many, or one is unreasonably long.
pub fn tables(memory: Physical<'_>) -> Result<Tables, &'static str> {
    let mut rsdp = [0; RSDP_BYTES];
    memory.read(RSDP, &mut rsdp)?;
    let root = Root::of(&rsdp);
    let mut tables = Tables::new();
    let mut add = |start: u64| {
        let length = u64::from(memory.read_u32(Hpa::new(start).plus(4))?);
        let table = (length <= MOST_BYTES).then_some(start..start.saturating_add(length));
        tables.try_push(table.ok_or(BROKEN)?).map_err(|_| "there are too many ACPI tables")?;
        Ok::<u64, &'static str>(length)
    };
    let pointer = |at: Hpa, bytes: usize| {
        let mut address = [0; 8];
        memory.read(at, address.get_mut(..bytes).unwrap_or_default())?;
        Ok::<u64, &'static str>(u64::from_le_bytes(address))
    };
    let end = u64::from(memory.read_u32(ROOT.plus(4))?).min(ROOT_LIMIT as u64);
    for at in (HEADER_BYTES as u64..end).step_by(root.pointer) {
        let table = pointer(ROOT.plus(at), root.pointer)?;
        if table == 0 {
            continue;
        }
        let length = add(table)?;
        let start = Hpa::new(table);
        if memory.read_u32(start)? == u32::from_le_bytes(*FADT) {
            let new = if length >= X_DSDT + 8 { pointer(start.plus(X_DSDT), 8)? } else { 0 };
            let dsdt = if new == 0 { pointer(start.plus(DSDT), 4)? } else { new };
            let _ = add(dsdt)?;
        }
    }
    Ok(tables)
}

/// What all their bytes come to.
///
/// # Errors
/// One lies in the hypervisor's memory.
pub fn fingerprint(memory: Physical<'_>, tables: &Tables) -> Result<[u8; 32], &'static str> {
    let mut fingerprint = Fingerprint::default();
    for table in tables {
        // No guest runs.
        let length = table.end.saturating_sub(table.start);
        memory.scan(Hpa::new(table.start), length, |piece| fingerprint.update(piece))?;
    }
    Ok(fingerprint.finish())
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

fn find_rsdp(memory: Physical<'_>) -> Result<Rsdp, &'static str> {
    const OLD_BYTES: usize = 20;
    // A page and the rest of a pointer that begins in its last 16 bytes.
    let mut buffer = [0; 4096 + RSDP_BYTES];
    for address in (0xe_0000..0x10_0000_u64).step_by(4096) {
        let length = buffer.len().min(addr::length(0x10_0000 - address));
        let (page, rest) = buffer.split_at_mut(length);
        memory.read(Hpa::new(address), page)?;
        rest.fill(0);
        for bytes in buffer.windows(RSDP_BYTES).step_by(16) {
            let Ok(mut rsdp) = Rsdp::try_from(bytes) else { continue };
            let (old, new) = rsdp.split_at_mut(OLD_BYTES);
            if old.starts_with(b"RSD PTR ") && checksum(old) == 0 {
                if old[15] < 2 {
                    new.fill(0);
                }
                return Ok(rsdp);
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

/// Position of the MADT's pointer in the list of tables, and where it points.
fn find_madt(
    memory: Physical<'_>,
    list: &[u8],
    pointer: usize,
) -> Result<(usize, Hpa), &'static str> {
    let pointers = list.get(HEADER_BYTES..).ok_or(BROKEN)?;
    for (index, bytes) in pointers.chunks_exact(pointer).enumerate() {
        let mut address = [0; 8];
        address.get_mut(..pointer).ok_or(BROKEN)?.copy_from_slice(bytes);
        let address = Hpa::new(u64::from_le_bytes(address));
        let mut signature = [0; 4];
        memory.read(address, &mut signature)?;
        if &signature == b"APIC" {
            return Ok((HEADER_BYTES + index * pointer, address));
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
