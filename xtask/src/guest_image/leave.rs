//! The least program there is: it ends. Executing it costs what the kernel's fork and exec cost and
//! nothing else, where a C library's start runs CPUID dozens of times.

/// Where the file is mapped.
const BASE: u64 = 0x40_0000;
const HEADERS: u16 = 64 + 56;
/// `exit(0)`: mov eax, 60; xor edi, edi; syscall.
const CODE: [u8; 9] = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];

/// The program as a static ELF file: header, one segment that holds all of it, code.
pub fn leave() -> Vec<u8> {
    let length = u64::from(HEADERS) + CODE.len() as u64;
    let mut file = Vec::new();
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // 64-bit, little-endian, version 1, System V; executable, x86-64.
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    put(&(BASE + u64::from(HEADERS)).to_le_bytes());
    // Program headers follow at once; no section headers, no flags.
    put(&64_u64.to_le_bytes());
    put(&[0; 12]);
    for size in [64_u16, 56, 1, 0, 0, 0] {
        put(&size.to_le_bytes());
    }
    // PT_LOAD, readable and executable: offset, both addresses, both sizes, alignment.
    put(&[1, 0, 0, 0, 5, 0, 0, 0]);
    for field in [0, BASE, BASE, length, length, 4096] {
        put(&field.to_le_bytes());
    }
    put(&CODE);
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_runs_and_ends_well() {
        let path = std::env::temp_dir().join(format!("leave-{}", std::process::id()));
        std::fs::write(&path, super::leave()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        let status = std::process::Command::new(&path).status();
        std::fs::remove_file(&path).unwrap();
        assert!(status.unwrap().success());
    }
}
