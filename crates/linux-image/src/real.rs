//! On the real kernels that `RAVELIN_TEST_KERNELS` names (paths, with `:` between them): facts that
//! every Debian kernel shares, and, where Debian's `config-*` lies beside the kernel, what it says.
//! `cargo xtask test` names the kernels that it has fetched.

use crate::{Inspection, Summary, SymbolTable, finished, inspect, manifest, opened_vmlinux};
use crate::{decompress, setup, vmlinux};
use abi::manifest::{Manifest, Span};
use alloc::vec;
use alloc::vec::Vec;
use std::path::{Path, PathBuf};
use std::println;
use zerocopy::IntoBytes;

fn each_kernel(check: impl Fn(&Path, &[u8])) {
    let named = std::env::var_os("RAVELIN_TEST_KERNELS").unwrap_or_default();
    let paths: Vec<PathBuf> = std::env::split_paths(&named).filter(|p| p.is_file()).collect();
    if paths.is_empty() {
        println!("skipped: RAVELIN_TEST_KERNELS names no kernel file");
    }
    for path in paths {
        println!("{}", path.display());
        check(&path, &std::fs::read(&path).unwrap());
    }
}

/// A file `config...` where the kernel is `vmlinuz...`.
fn config_beside(kernel: &Path) -> Option<std::string::String> {
    let name = kernel.file_name()?.to_str()?.replace("vmlinuz", "config");
    std::fs::read_to_string(kernel.with_file_name(name)).ok()
}

#[test]
fn a_real_kernel_has_a_manifest() {
    each_kernel(|_, file| {
        let bytes = manifest(file).unwrap();
        let summary = Summary::from_manifest(&bytes).unwrap();
        assert!((1000..50_000).contains(&summary.jump_labels));
        assert!((100..50_000).contains(&summary.static_calls));
        assert!((10_000..500_000).contains(&summary.functions));
        assert!((10_000..500_000).contains(&summary.traced));
        assert!(crate::pack(&bytes).len() < 1 << 20 && summary.resident_length < 1 << 20);
        let payload = setup::parse(file).unwrap().payload;
        let vmlinux = decompress::decompress(payload).unwrap();
        code_and_data_agree(&vmlinux, &bytes);
        names_agree(&bytes);
    });
}

/// Code and data that do not come from kallsyms say the same as it does.
fn code_and_data_agree(vmlinux: &[u8], manifest: &[u8]) {
    let image = vmlinux::Image::parse(vmlinux).unwrap();
    let symbols = SymbolTable::from_manifest(manifest).unwrap();
    let at = |offset: u32, length| image.bytes(image.base() + u64::from(offset), length).unwrap();
    let entry = at(symbols.find("entry_SYSCALL_64").unwrap(), 7);
    let swapgs = [0x0f, 0x01, 0xf8];
    assert!(entry.starts_with(&swapgs) || entry.ends_with(&swapgs), "{entry:x?}");
    let table = at(symbols.find("sys_call_table").unwrap(), 16);
    let calls: Vec<u64> =
        table.chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap())).collect();
    for (call, name) in calls.iter().zip(["__x64_sys_read", "__x64_sys_write"]) {
        assert_eq!(symbols.lookup(call - image.base()), Some((name, 0)));
    }
}

/// What is known of single functions of Linux is in the tables.
fn names_agree(bytes: &[u8]) {
    let symbols = SymbolTable::from_manifest(bytes).unwrap();
    let mut words = vec![0_u64; bytes.len().div_ceil(8)];
    words.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
    let manifest = Manifest::parse(&words.as_bytes()[..bytes.len()]).unwrap();
    let find = |name| symbols.find(name).unwrap_or_else(|| panic!("no {name}"));
    // Behind ENDBR, or at the entry.
    let traced = |name| [0, 4].map(|more| manifest.traced_at(u64::from(find(name)) + more));
    assert!(traced("vfs_read").iter().any(Option::is_some), "vfs_read can be traced");
    assert_eq!(traced("entry_SYSCALL_64"), [None; 2], "the system call entry cannot");
    assert!(manifest.may_probe(find("vfs_read").into()));
    for name in ["entry_SYSCALL_64", "notify_die", "exc_int3"] {
        assert!(!manifest.may_probe(find(name).into()), "no kprobe on {name}");
    }
    let [caller, regs] = manifest.header().tracers;
    let tracer = |start, end| Span { start: find(start), end: find(end) };
    assert_eq!(caller, tracer("ftrace_caller", "ftrace_caller_end"));
    assert_eq!(regs, tracer("ftrace_regs_caller", "ftrace_regs_caller_end"));
    let reads = |offset: &u32| symbols.lookup((*offset).into()).unwrap().0 == "__get_user_8";
    assert!(manifest.faulting().iter().any(reads), "a read of user memory may fault");
    let entries = manifest.traced().iter().filter(|&&offset| {
        [0, 4].iter().any(|more| manifest.is_function_entry(offset.saturating_sub(*more)))
    });
    // The rest belongs to weak functions that another definition replaced.
    assert!(entries.count() * 100 > manifest.traced().len() * 98);
}

#[test]
fn a_real_kernel_is_inspected() {
    each_kernel(|path, file| {
        let Inspection { settings, sections, keys, outlook, .. } = inspect(file).unwrap();
        assert!(sections.iter().any(|section| section.name == ".text" && section.executable));
        assert!(!keys.certificates.is_empty() && keys.remark.is_none(), "{keys:?}");
        assert!(outlook.len() > 5);
        let config = config_beside(path);
        println!("configuration beside it: {}", config.is_some());
        for setting in settings {
            if let Some(text) = &config {
                let line = alloc::format!("CONFIG_{}=y", setting.option);
                let there = text.lines().any(|other| other == line);
                assert_eq!(setting.on, Some(there), "{setting:?}");
            }
        }
    });
}

/// Damage behind the decoder's checksum, which an attacker would repair.
#[test]
fn a_damaged_real_kernel_is_no_panic() {
    each_kernel(|_, file| {
        let setup = setup::parse(file).unwrap();
        let good = decompress::decompress(setup.payload).unwrap();
        for part in 1..5 {
            let mut bad = good.clone();
            let length = bad.len();
            if part == 4 {
                bad.truncate(length / 2);
            } else {
                // Every 4099th byte of this quarter: in text, in read-only data, in data.
                let quarter = length / 4 * part..length / 4 * (part + 1);
                bad[quarter].iter_mut().step_by(4099).for_each(|byte| *byte ^= 0x5a);
            }
            // The outcome of each may be either.
            let _ = opened_vmlinux(&bad, file, &setup, |parts| {
                let bytes = finished(parts)?;
                assert!(SymbolTable::from_manifest(&bytes).is_ok());
                Inspection::new(&bad, parts, bytes)
            });
        }
    });
}
