//! Audits of machines made here, against a model that goes through all mappings for every frame.

use crate::fake::{DIRECT, IMAGE, MODULES, Machine, NO_EXECUTE, USER, WRITE};
use crate::root::Evidence;
use crate::survey::{Survey, Use};
use crate::{Dump, DumpError};
use addr::Gva;
use integrity::Rights;
use paging::Level::{self, Page2M, Page4K};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

/// 8 MiB.
const FRAMES: usize = 2048;
/// Tables lie below this address, which the model leaves alone.
const FREE: u64 = 0x10_0000;

fn audit(file: &[u8]) -> Result<Survey, DumpError> {
    let dump = Dump::open(file)?;
    let (root, _) = dump.find_root(None)?;
    dump.survey(&root, |_| {})
}

/// A machine as Linux makes it: an image with code, constants and data, a direct map that follows,
/// two modules of two pages each. 2 MiB leaves, but for the modules.
fn linux(levels: u8) -> Machine {
    let mut machine = Machine::new(FRAMES, levels);
    let direct = direct(levels);
    let root = Machine::ROOT;
    for (number, flags) in
        [(0, WRITE | NO_EXECUTE), (1, NO_EXECUTE), (2, NO_EXECUTE), (3, WRITE | NO_EXECUTE)]
    {
        machine.map(root, direct + (number << 21), number << 21, Page2M, flags);
    }
    machine.map(root, IMAGE, 1 << 21, Page2M, 0);
    machine.map(root, IMAGE + (1 << 21), 2 << 21, Page2M, NO_EXECUTE);
    machine.map(root, IMAGE + (2 << 21), 3 << 21, Page2M, WRITE | NO_EXECUTE);
    for page in 0..4 {
        let gpa = (2 << 21) + (page << 12);
        machine.map(
            root,
            MODULES + (page << 12),
            gpa,
            Page4K,
            if page % 2 == 0 { 0 } else { NO_EXECUTE },
        );
    }
    machine
}

const fn direct(levels: u8) -> u64 {
    if levels == 5 { 0xff11_0000_0000_0000 } else { DIRECT }
}

/// Physical address, number of frames, and address and number of pages of all mappings.
type Found = (u64, u64, Vec<(u64, u64)>);

fn found(survey: &Survey) -> Vec<Found> {
    let mappings = |finding: &crate::survey::Finding| {
        finding.aliases.iter().map(|alias| (alias.gva.raw(), alias.pages)).collect()
    };
    let line = |finding: &crate::survey::Finding| {
        (finding.frames.start.start().raw(), finding.frames.count(), mappings(finding))
    };
    survey.findings.iter().map(line).collect()
}

#[test]
fn a_kernel_as_it_should_be_has_no_findings() {
    for levels in [4, 5] {
        let survey = audit(&linux(levels).dump(&[0xa_0000, 0x10_0000])).unwrap();
        assert!(survey.is_clean(), "{survey:?}");
        assert_eq!(survey.leaves, [4, 7, 0]);
        assert_eq!(survey.count(Use::Code), 512 + 2);
        assert_eq!(survey.count(Use::ReadOnly), 510);
        assert_eq!(survey.count(Use::Data), 1024);
        // The kernel's own root has its own kernel half, too.
        assert_eq!(survey.users.roots, 1);
    }
}

#[test]
fn a_planted_small_page_is_found_with_both_mappings() {
    for levels in [4, 5] {
        let mut machine = linux(levels);
        machine.map(
            Machine::ROOT,
            MODULES + 0x7000,
            (1 << 21) + 0x3000,
            Page4K,
            WRITE | NO_EXECUTE,
        );
        let survey = audit(&machine.dump(&[])).unwrap();
        let text = (1 << 21) + 0x3000;
        let mappings = vec![(direct(levels) + text, 1), (IMAGE + 0x3000, 1), (MODULES + 0x7000, 1)];
        assert_eq!(found(&survey), [(text, 1, mappings)]);
        assert!(!survey.findings[0].is_single());
        assert_eq!(survey.conflicting, 1);
    }
}

#[test]
fn a_planted_large_page_is_found_as_a_whole() {
    let mut machine = linux(4);
    machine.map(Machine::ROOT, DIRECT + (1 << 21), 1 << 21, Page2M, WRITE | NO_EXECUTE);
    let survey = audit(&machine.dump(&[])).unwrap();
    assert_eq!(found(&survey), [(1 << 21, 512, vec![(DIRECT + (1 << 21), 512), (IMAGE, 512)])]);
    assert_eq!((survey.conflicting, survey.cut_off), (512, false));
}

#[test]
fn an_alias_across_modules_is_found() {
    // The second module's data is the first one's code.
    let mut machine = linux(4);
    machine.map(Machine::ROOT, MODULES + 0x3000, 2 << 21, Page4K, WRITE | NO_EXECUTE);
    let survey = audit(&machine.dump(&[])).unwrap();
    let mappings =
        vec![(DIRECT + (2 << 21), 1), (IMAGE + (1 << 21), 1), (MODULES, 1), (MODULES + 0x3000, 1)];
    assert_eq!(found(&survey), [(2 << 21, 1, mappings)]);
}

#[test]
fn one_mapping_that_is_both_is_found_inside_and_outside_of_memory() {
    let mut machine = linux(4);
    machine.map(Machine::ROOT, MODULES + 0x2000, (3 << 21) + 0x5000, Page4K, WRITE);
    machine.map(Machine::ROOT, MODULES + 0x9000, 0xfee0_0000, Page4K, WRITE);
    let survey = audit(&machine.dump(&[])).unwrap();
    assert_eq!(survey.conflicting, 1);
    assert!(survey.findings[0].is_single());
    assert_eq!(
        survey.outside.iter().map(|alias| alias.gpa.raw()).collect::<Vec<_>>(),
        [0xfee0_0000]
    );
}

#[test]
fn a_page_of_a_process_that_the_kernel_can_execute_is_found() {
    let mut machine = linux(4);
    let process = machine.process();
    machine.map(process, 0x40_0000, (1 << 21) + 0x1000, Page4K, USER);
    machine.map(process, 0x40_1000, (3 << 21) + 0x1000, Page4K, USER | WRITE);
    // What processes cannot use does not count.
    machine.map(process, 0x40_2000, (1 << 21) + 0x2000, Page4K, WRITE);
    let survey = audit(&machine.dump(&[])).unwrap();
    assert_eq!((survey.users.roots, survey.user_code, survey.conflicting), (2, 1, 0));
    assert_eq!(survey.findings[0].usage(), Use::UserCode);
    assert_eq!(survey.frames[3], [1023, 0, 1]);
}

#[test]
fn what_is_open_to_processes_is_found_except_the_vsyscall_page() {
    let mut machine = linux(4);
    machine.map(Machine::ROOT, crate::names::VSYSCALL, 2 << 21, Page4K, USER | NO_EXECUTE);
    assert!(audit(&machine.dump(&[])).unwrap().is_clean());
    machine.map(Machine::ROOT, MODULES + 0x8000, 2 << 21, Page4K, USER | NO_EXECUTE);
    let survey = audit(&machine.dump(&[])).unwrap();
    assert_eq!(
        survey.open.iter().map(|alias| alias.gva.raw()).collect::<Vec<_>>(),
        [MODULES + 0x8000]
    );
}

#[test]
fn every_kind_of_evidence_leads_to_the_tables() {
    let machine = linux(4);
    let evidence = |file: &[u8], given| {
        let dump = Dump::open(file).unwrap();
        dump.find_root(given).map(|(root, _)| (root.table.raw(), root.levels, root.evidence))
    };
    let qemu = machine.dump(&[]);
    assert_eq!(evidence(&qemu, None), Ok((Machine::ROOT, 4, Evidence::Cpu(0))));
    assert_eq!(evidence(&qemu, Some(Machine::ROOT | 5)), Ok((Machine::ROOT, 4, Evidence::Given)));
    let text = "SYMBOL(swapper_pg_dir)=ffffffff81201000\nNUMBER(phys_base)=-18874368\n";
    let kdump = machine.kdump(text);
    assert_eq!(evidence(&kdump, None), Ok((Machine::ROOT, 4, Evidence::VmcoreInfo)));
    assert!(matches!(evidence(&machine.kdump(""), None), Err(DumpError::NoRoot { tried: 0, .. })));
    assert!(matches!(evidence(&kdump, Some(0)), Err(DumpError::NoRoot { tried: 2, .. })));
}

#[test]
fn the_kernel_table_of_isolated_tables_is_found() {
    // The process's second table, right behind its first, maps one page of the image.
    let mut machine = linux(4);
    let (first, second) = (0x10_0000, 0x10_1000);
    for offset in (0..4096).step_by(8) {
        machine.set(first + offset, machine.entry(Machine::ROOT + offset));
    }
    machine.set(second + 511 * 8, 0x10_2000 | 3);
    machine.set(0x10_2000 + 510 * 8, 0x10_3000 | 3);
    machine.set(0x10_3000 + 8 * 8, 0x10_4000 | 3);
    machine.set(0x10_4000, 1 << 21 | 1);
    machine.cr3 = second | 0x801;
    let file = machine.dump(&[]);
    let (root, image) = Dump::open(file.as_slice()).unwrap().find_root(None).unwrap();
    assert_eq!((root.table.raw(), root.evidence), (first, Evidence::CpuInUserMode(0)));
    assert_eq!(image.bytes(), 3 << 21);
}

/// A mapping of the property test: where, of what, how.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    gva: u64,
    frame: u64,
    level: Level,
    flags: u64,
}

fn mappings() -> impl Strategy<Value = Vec<Mapping>> {
    let flags = (any::<bool>(), any::<bool>(), 0..10_u8).prop_map(|(write, execute, user)| {
        let flag = |on, flag| if on { flag } else { 0 };
        flag(write, WRITE) | flag(!execute, NO_EXECUTE) | flag(user == 0, USER)
    });
    let frame = FREE / 4096..FRAMES as u64 + 4;
    let small = (0..40_u64, frame, flags.clone()).prop_map(|(slot, frame, flags)| Mapping {
        gva: MODULES + (slot << 12),
        frame,
        level: Page4K,
        flags,
    });
    let large = (0..6_u64, 1..5_u64, flags).prop_map(|(slot, block, flags)| Mapping {
        gva: DIRECT + (slot << 21),
        frame: block * 512,
        level: Page2M,
        flags,
    });
    prop::collection::vec(prop_oneof![small, large], 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_audit_agrees_with_a_search_of_all_mappings(
        mappings in mappings(),
        own in mappings(),
        ends in prop::collection::btree_set((FREE / 4096..FRAMES as u64).prop_map(|n| n << 12), 0..3),
    ) {
        let mut machine = Machine::new(FRAMES, 4);
        machine.map(Machine::ROOT, IMAGE, FREE, Page4K, NO_EXECUTE);
        let mut last = std::collections::BTreeMap::new();
        for mapping in &mappings {
            machine.map(Machine::ROOT, mapping.gva, mapping.frame << 12, mapping.level, mapping.flags);
            last.insert(mapping.gva, *mapping);
        }
        let process = machine.process();
        let mut theirs = std::collections::BTreeMap::new();
        for mapping in &own {
            let gva = mapping.gva & 0x7fff_ffff_f000;
            machine.map(process, gva, mapping.frame << 12, mapping.level, mapping.flags);
            theirs.insert(gva, *mapping);
        }
        last.insert(IMAGE, Mapping { gva: IMAGE, frame: FREE >> 12, level: Page4K, flags: NO_EXECUTE });
        let ends: Vec<u64> = ends.into_iter().collect();
        let survey = audit(&machine.dump(&ends)).unwrap();

        let covers = |m: &Mapping, frame: u64| frame >= m.frame && frame < m.frame + m.level.frames();
        let rights = |m: &Mapping| {
            let mut rights = Rights::READ;
            rights.set(Rights::WRITE, m.flags & WRITE != 0);
            rights.set(Rights::EXECUTE, m.flags & NO_EXECUTE == 0);
            rights
        };
        let mut expected = [[0; 3]; 8];
        let mut suspects = BTreeSet::new();
        let mut code_as_data = 0;
        for frame in 0..FRAMES as u64 {
            let all = last.values().filter(|m| covers(m, frame)).map(&rights);
            let kernel = all.fold(Rights::empty(), |sum, rights| sum | rights);
            let open = theirs.values().filter(|m| covers(m, frame) && m.flags & USER != 0);
            let user = open.map(&rights).fold(Rights::empty(), |sum, rights| sum | rights);
            let reach = if user.is_empty() { 0 } else if user.contains(Rights::WRITE) { 2 } else { 1 };
            expected[usize::from(kernel.bits())][reach] += 1;
            let mut each = last.values().filter(|m| covers(m, frame)).map(&rights);
            let as_data = each.any(|rights| !rights.contains(Rights::EXECUTE));
            code_as_data += u64::from(kernel.contains(Rights::EXECUTE) && as_data);
            if kernel.contains(Rights::EXECUTE) && (kernel.contains(Rights::WRITE) || !user.is_empty()) {
                suspects.extend(last.values().filter(|m| covers(m, frame)).map(|m| {
                    (frame, m.gva + ((frame - m.frame) << 12), rights(m).bits())
                }));
            }
        }
        prop_assert_eq!(survey.frames, expected);
        prop_assert_eq!(survey.code_as_data, code_as_data);
        let listed: BTreeSet<_> = survey.findings.iter().flat_map(|f| &f.aliases).flat_map(|alias| {
            (0..alias.pages).map(|page| {
                (alias.gpa.frame().raw() + page, alias.gva.raw() + (page << 12), alias.rights.bits())
            })
        }).collect();
        prop_assert_eq!(listed, suspects);
        let open: u64 = last.values().filter(|m| m.flags & USER != 0).map(|m| m.level.frames()).sum();
        prop_assert_eq!(survey.open_pages, open);
        prop_assert!(!survey.cut_off && !survey.users.cut_off);
        let frames: u64 = survey.cells.iter().flat_map(|cell| cell.uses).sum();
        prop_assert_eq!(frames, FRAMES as u64);
        prop_assert!(survey.cells.is_sorted_by(|a, b| a.number < b.number));
    }

    #[test]
    fn damage_is_answered(
        damage in prop::collection::vec((0..0x9400_usize, any::<u8>()), 0..40),
        wild in prop::collection::vec((0..0x9400_usize, any::<u64>()), 0..4),
        keep in 0..FRAMES * 4096,
        cut in any::<bool>(),
        levels in 4_u8..=5,
    ) {
        let mut file = linux(levels).dump(&[0xa_0000]);
        for (at, value) in damage {
            file[at] = value;
        }
        for (at, value) in wild {
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        if cut {
            file.truncate(keep);
        }
        if let Ok(survey) = audit(&file) {
            let frames: u64 = survey.cells.iter().flat_map(|cell| cell.uses).sum();
            prop_assert!(frames <= FRAMES as u64 + 1);
        }
    }

    #[test]
    fn any_bytes_behind_a_header_are_answered(tail in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut file = linux(4).dump(&[]);
        file.truncate(64);
        file.extend(tail);
        let _ = audit(&file);
    }
}

#[test]
fn tables_in_a_circle_are_an_error_and_not_a_loop() {
    let mut machine = linux(4);
    for index in 300..400 {
        machine.set(Machine::ROOT + index * 8, Machine::ROOT | 7);
    }
    assert!(matches!(audit(&machine.dump(&[])), Err(DumpError::Tables(_))));
    // In a process's half they only end the search.
    let mut machine = linux(4);
    let process = machine.process();
    for index in 0..100 {
        machine.set(process + index * 8, process | 7);
    }
    assert!(audit(&machine.dump(&[])).unwrap().users.cut_off);
}

#[test]
fn other_files_are_refused_in_words() {
    let error = |bytes: &[u8]| Dump::open(bytes).err().unwrap().to_string();
    assert!(error(b"").contains("not an ELF memory dump"));
    assert!(error(&[0; 4096]).contains("not an ELF memory dump"));
    let starting = |magic: &[u8]| {
        let mut file = magic.to_vec();
        file.resize(4096, 0);
        error(&file)
    };
    assert!(starting(b"KDUMP   \x06").contains("kdump's compressed format is not read: take"));
    assert!(starting(b"makedumpfile").contains("makedumpfile -R"));
    assert!(starting(b"LibvirtQemudSave\x02").contains("virsh dump --memory-only"));
    assert!(starting(b"\x28\xb5\x2f\xfd").ends_with("unpack it"));
    let file = linux(4).dump(&[]);
    let mut other = file.clone();
    other[16] = 2;
    assert!(error(&other).contains("another kind"));
    other = file.clone();
    other[18] = 3;
    assert!(error(&other).contains("another machine"));
    other = file;
    other[56..58].copy_from_slice(&60_000_u16.to_le_bytes());
    other.truncate(4096);
    assert!(error(&other).contains("cut off"));
    // Two pieces of memory in the same place of the file.
    other = linux(4).dump(&[4 << 20]);
    let second = 64 + 56 * 2 + 8;
    let first: Vec<u8> = other[64 + 56 + 8..64 + 56 + 16].to_vec();
    other[second..second + 8].copy_from_slice(&first);
    other.truncate(5 << 20);
    assert!(error(&other).contains("same place"));
}

#[test]
fn a_dump_that_is_cut_off_says_so() {
    let mut machine = linux(4);
    machine.cr3 = 7 << 20;
    let mut file = machine.dump(&[]);
    file.truncate(5 << 20);
    let error = audit(&file).unwrap_err();
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn areas_and_the_image_are_named() {
    let file = linux(4).dump(&[]);
    let dump = Dump::open(file.as_slice()).unwrap();
    let (root, image) = dump.find_root(None).unwrap();
    let map = b"ffffffff81000000 T _text\nffffffff81000100 t f\n\
                ffffffff81400010 D page_offset_base\nffffffff81400ffc D linux_banner\n";
    let mut file = file.clone();
    let at = dump.memory.offset_of(addr::Gpa::new((3 << 21) + 0x10), 8).unwrap();
    let at = usize::try_from(at).unwrap();
    file[at..at + 8].copy_from_slice(&DIRECT.to_le_bytes());
    file[at + 0xfec..at + 0xff4].copy_from_slice(b"Linux 1\n");
    let dump = Dump::open(file.as_slice()).unwrap();
    let names = crate::names::Names::new(&dump, &root, &image, Some(map)).unwrap();
    let describe = |gva, gpa| names.describe(Gva::new(gva), addr::Gpa::new(gpa));
    assert_eq!(describe(IMAGE + 0x120, (1 << 21) + 0x120), "f+0x20");
    assert_eq!(describe(DIRECT + (1 << 21), 1 << 21), "direct map of _text+0x0");
    assert_eq!(names.banner(), Some("Linux 1"));
    assert_eq!(describe(DIRECT, 0), "direct map");
    assert_eq!(describe(MODULES, 0), "modules");
}
