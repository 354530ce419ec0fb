//! Other formats of dumps, which are told apart to say what would be read instead.

/// First bytes of a file, what it is then, and what to do.
const FORMATS: &[(&[u8], &str, &str)] = &[
    (
        b"KDUMP   ",
        "a dump in kdump's compressed format",
        "take it with QEMU's `dump-guest-memory` without -z, -l and -s, `virsh dump --memory-only` \
         without --format, or `makedumpfile -E`",
    ),
    (
        b"makedumpfile\0",
        "a dump in makedumpfile's flattened format",
        "take it with QEMU's `dump-guest-memory` without -z, -l and -s; one of `makedumpfile -E -F` \
         becomes an ELF file by `makedumpfile -R NEW < THIS`",
    ),
    (b"DISKDUMP", "a dump in diskdump's format", "take it with `makedumpfile -E`"),
    (b"LibvirtQemudSave", SAVED, "take it with `virsh dump --memory-only`"),
    (b"QEVM", SAVED, "take it with QEMU's `dump-guest-memory FILE`"),
    (b"EMiL", "a dump in LiME's format", "take an ELF dump from outside the machine"),
    (b"PAGEDU64", "a Windows dump", "take it with QEMU's `dump-guest-memory` without -w"),
    (b"\x1f\x8b", COMPRESSED, UNPACK),
    (b"\xfd7zXZ\0", COMPRESSED, UNPACK),
    (b"\x28\xb5\x2f\xfd", COMPRESSED, UNPACK),
    (b"\x04\x22\x4d\x18", COMPRESSED, UNPACK),
];
const SAVED: &str = "the state of a whole machine";
const COMPRESSED: &str = "a compressed file";
const UNPACK: &str = "unpack it";

/// What a file that begins like this is, and what to do, if it is known.
pub fn known(start: &[u8]) -> Option<(&'static str, &'static str)> {
    let format = FORMATS.iter().find(|(magic, _, _)| start.starts_with(magic))?;
    Some((format.1, format.2))
}
