//! The page that tells a kernel of its boot, as the old kernel or its user has made it (Linux,
//! Documentation/arch/x86/zero-page.rst). All that is taken is where the initial file system is. The
//! rest (memory map, firmware tables, setup header, command line) the hypervisor knows by itself.

use addr::Gpa;

const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const RAMDISK: [usize; 2] = [0x218, 0x0c0];
const RAMDISK_BYTES: [usize; 2] = [0x21c, 0x0c4];

/// As many bytes of the page as are looked at.
pub const BYTES: usize = RAMDISK_BYTES[0] + 4;

/// What is taken from the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Where the initial file system is.
    pub initrd: Gpa,
    /// Its bytes, 0 if there is none.
    pub initrd_bytes: u64,
}

impl Parameters {
    /// Reads a page, of which these are the first bytes; `None` if it is no such page.
    pub fn of(page: &[u8; BYTES]) -> Option<Self> {
        let is_one = page.get(BOOT_FLAG..)?.starts_with(&[0x55, 0xaa])
            && page.get(MAGIC..)?.starts_with(b"HdrS");
        let half = |at| page.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
        // Low half in the setup header, high half apart from it.
        let whole =
            |[low, high]: [usize; 2]| Some(u64::from(half(low)?) | u64::from(half(high)?) << 32);
        let parameters =
            Self { initrd: Gpa::new(whole(RAMDISK)?), initrd_bytes: whole(RAMDISK_BYTES)? };
        is_one.then_some(parameters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_halves_count() {
        let mut page = [0; BYTES];
        assert_eq!(Parameters::of(&page), None);
        page[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        page[0x202..0x206].copy_from_slice(b"HdrS");
        for (at, value) in [(0x218, 0x1000_u32), (0x0c0, 2), (0x21c, 0x3456), (0x0c4, 1)] {
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let expected = Parameters { initrd: Gpa::new(0x2_0000_1000), initrd_bytes: 0x1_0000_3456 };
        assert_eq!(Parameters::of(&page), Some(expected));
        page[0x1ff] = 0;
        assert_eq!(Parameters::of(&page), None);
    }
}
