//! Inspection of fake kernels.

use crate::fake::{Era, Fake};
use crate::inspect::{Prospect, Setting};
use crate::{ImageError, Inspection, inspect};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

fn inspected(fake: &Fake) -> Inspection {
    inspect(&fake.bzimage()).unwrap()
}

fn setting(inspection: &Inspection, option: &str) -> Setting {
    inspection.settings.iter().find(|setting| setting.option == option).unwrap().clone()
}

fn prospect(inspection: &Inspection, what: &str) -> Prospect {
    inspection.outlook.iter().find(|outlook| outlook.what == what).unwrap().prospect
}

#[test]
fn options_are_read_from_what_they_leave_behind() {
    let mut fake = Fake::new(Era::V6_4);
    let plain = inspected(&fake);
    assert_eq!(setting(&plain, "STRICT_KERNEL_RWX").on, Some(false));
    assert_eq!(setting(&plain, "STRICT_KERNEL_RWX").evidence, "no symbol rodata_enabled");
    assert_eq!(setting(&plain, "JUMP_LABEL").on, Some(true));
    assert_eq!(setting(&plain, "DYNAMIC_FTRACE").on, Some(true));
    assert_eq!(setting(&plain, "RANDOMIZE_BASE").on, Some(false));
    assert_eq!(prospect(&plain, "read-only data"), Prospect::Not);
    assert_eq!(prospect(&plain, "function tracer"), Prospect::Enforced);
    assert_eq!(prospect(&plain, "modules"), Prospect::Absent);
    assert_eq!(plain.keys.remark.unwrap(), "the kernel has no system_certificate_list");

    fake.name("rodata_enabled", &[1]);
    fake.name("load_module", &[]);
    fake.name("sig_enforce", &[0]);
    let rich = inspected(&fake);
    assert_eq!(setting(&rich, "STRICT_KERNEL_RWX").on, Some(true));
    assert_eq!(setting(&rich, "MODULE_SIG_FORCE").evidence, "sig_enforce starts as 0");
    assert_eq!(prospect(&rich, "read-only data"), Prospect::Enforced);
    assert_eq!(prospect(&rich, "modules"), Prospect::Partly);

    let mut fake = Fake::new(Era::V6_4);
    fake.name("sig_enforce", &[1]);
    assert_eq!(setting(&inspected(&fake), "MODULE_SIG_FORCE").on, Some(true));
}

#[test]
fn sections_and_shared_pages_are_listed() {
    let inspection = inspected(&Fake::new(Era::V6_4));
    let names: Vec<&str> = inspection.sections.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, [".text", ".rodata", ".init.text"]);
    let text = &inspection.sections[0];
    assert_eq!((text.offset, text.end(), text.writable, text.executable), (0, 0x1ff0, false, true));
    let shared: Vec<_> =
        inspection.shared.iter().map(|s| (s.what.as_str(), s.offset, s.length, s.pages)).collect();
    assert_eq!(shared, [("after _etext", 0x1ff0, 16, 1)]);
}

#[test]
fn the_boot_stub_tells_of_kaslr() {
    let mut file = Fake::new(Era::V6_4).bzimage();
    file.extend(b"...KASLR disabled: 'nokaslr' on cmdline.\0");
    assert_eq!(setting(&inspect(&file).unwrap(), "RANDOMIZE_BASE").on, Some(true));
}

#[test]
fn an_embedded_configuration_decides() {
    let text = b"CONFIG_LIVEPATCH=y\n# CONFIG_JUMP_LABEL is not set\n";
    let mut packed = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    packed.extend(miniz_oxide::deflate::compress_to_vec(text, 6));
    packed.extend([0; 4]);
    packed.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    let mut fake = Fake::new(Era::V6_1);
    fake.name("kernel_config_data", &packed);
    fake.name("kernel_config_data_end", &[]);
    let inspection = inspected(&fake);
    assert_eq!(setting(&inspection, "LIVEPATCH").on, Some(true));
    assert_eq!(setting(&inspection, "JUMP_LABEL").on, Some(false));
    let evidence = "CONFIG_LIVEPATCH=y in the embedded configuration";
    assert_eq!(setting(&inspection, "LIVEPATCH").evidence, evidence);
}

/// A certificate of the smallest form that is one: an attribute in each name, a key of no use.
fn certificate(subject: &str) -> Vec<u8> {
    let wrap = |tag: u8, parts: &[&[u8]]| {
        let body: Vec<u8> = parts.concat();
        let mut der = vec![tag, 0x82];
        der.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        // DER wants the shortest length.
        if body.len() < 0x80 {
            der.truncate(1);
            der.push(u8::try_from(body.len()).unwrap());
        } else if body.len() < 0x100 {
            der.truncate(1);
            der.extend([0x81, u8::try_from(body.len()).unwrap()]);
        }
        der.extend(body);
        der
    };
    let name = |text: &str| {
        let common = wrap(0x30, &[&[6, 3, 0x55, 4, 3], &wrap(0x0c, &[text.as_bytes()])]);
        wrap(0x30, &[&wrap(0x31, &[&common])])
    };
    let rsa = [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
    let algorithm = wrap(0x30, &[&rsa, &[5, 0]]);
    let day = wrap(0x17, &[b"300101000000Z"]);
    let body = wrap(
        0x30,
        &[
            &wrap(0xa0, &[&[2, 1, 2]]),
            &[2, 1, 7],
            &algorithm,
            &name("Somebody"),
            &wrap(0x30, &[&day, &day]),
            &name(subject),
            &wrap(0x30, &[&algorithm, &wrap(3, &[&[0; 200]])]),
        ],
    );
    wrap(0x30, &[&body, &algorithm, &wrap(3, &[&[0; 9]])])
}

fn with_certificates(list: &[u8]) -> Inspection {
    let mut fake = Fake::new(Era::V7_2);
    fake.name("system_certificate_list", list);
    fake.name("system_certificate_list_size", &(list.len() as u64).to_le_bytes());
    inspected(&fake)
}

#[test]
fn trusted_certificates_are_named() {
    let list = [certificate("One"), certificate("Two")].concat();
    let keys = with_certificates(&list).keys;
    let subjects: Vec<&str> = keys.certificates.iter().map(|c| c.subject.as_str()).collect();
    assert_eq!((subjects, keys.remark), (vec!["CN=One", "CN=Two"], None::<String>));
    assert_eq!(keys.certificates[0].issuer, "CN=Somebody");
    assert!(keys.certificates[0].not_after.starts_with("2030-01-01"));

    let keys = with_certificates(&[&list[..], b"junk"].concat()).keys;
    assert_eq!(keys.certificates.len(), 2);
    assert!(keys.remark.unwrap().contains(&alloc::format!("byte {}", list.len())));
}

#[test]
fn what_is_no_kernel_is_refused() {
    assert_eq!(inspect(b"\x7fELF").unwrap_err(), ImageError::NotABzImage);
}
