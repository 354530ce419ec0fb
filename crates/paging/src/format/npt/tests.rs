//! The exact bits of leaves, and what the CPU makes of them, with and without GMET.

use super::*;
use NptExecute::{Nobody, SupervisorPage, UserPage};
use std::vec::Vec;

/// Every right.
pub fn all_rights() -> Vec<NptRights> {
    let mut all = Vec::new();
    for execute in [Nobody, UserPage, SupervisorPage] {
        for (read, write) in [(false, false), (false, true), (true, false), (true, true)] {
            all.push(NptRights { read, write, execute });
        }
    }
    all
}

/// What a CPU allows after a walk over these entries, written down independently of the format:
/// read, write, fetch at CPL 0, fetch at CPL 3. Rights are those that all entries give.
fn cpu(walk: &[u64], gmet: bool) -> [bool; 4] {
    let all = |bit: u32| walk.iter().all(|entry| entry >> bit & 1 == 1);
    let executable = walk.iter().all(|entry| entry >> 63 == 0);
    let (present, writable, user) = (all(0), all(1), all(2));
    if gmet {
        let fetch = present && executable;
        [present, present && writable, fetch && !user, fetch]
    } else {
        let reached = present && user;
        [reached, reached && writable, reached && executable, reached && executable]
    }
}

/// Each wish, and what the CPU makes of the leaf that comes of it: supervisor fetch, user fetch.
#[test]
fn wishes_come_true_but_supervisor_alone_becomes_everybody() {
    let fetches = |execute: NptExecute, gmet| {
        let entry = Npt::leaf(Hfn::new(1), Level::Page4K, NptRights { execute, ..NptRights::READ });
        let [read, _, supervisor, user] = cpu(&[Npt::table(Hfn::new(2)), entry], gmet);
        assert!(read);
        assert_eq!(supervisor, execute.allows_supervisor(gmet));
        (supervisor, user)
    };
    for (supervisor, user) in [(false, false), (false, true), (true, true)] {
        let execute = NptExecute::with_gmet(supervisor, user);
        assert_eq!(fetches(execute, true), (supervisor, user));
    }
    assert_eq!(fetches(NptExecute::with_gmet(true, false), true), (true, true));
    for everybody in [false, true] {
        let execute = NptExecute::without_gmet(everybody);
        assert_eq!(fetches(execute, false), (everybody, everybody));
    }
}

const WALKS: [(Level, usize); 3] = [(Level::Page4K, 3), (Level::Page2M, 2), (Level::Page1G, 1)];

fn walk(rights: NptRights, level: Level, links: usize) -> Vec<u64> {
    let mut walk = std::vec![Npt::table(Hfn::new(1)); links];
    walk.push(Npt::leaf(Hfn::new(0x4_0000), level, rights));
    walk
}

#[test]
fn with_gmet_leaves_mean_their_rights() {
    for NptRights { read, write, execute } in all_rights() {
        let supervisor = execute == SupervisorPage;
        let user = execute != Nobody;
        let expected = [read, read && write, read && supervisor, read && user];
        for (level, links) in WALKS {
            let rights = NptRights { read, write, execute };
            assert_eq!(cpu(&walk(rights, level, links), true), expected, "{rights:?}");
        }
    }
}

#[test]
fn without_gmet_user_pages_mean_their_rights_and_supervisor_pages_nothing() {
    for NptRights { read, write, execute } in all_rights() {
        let read_in_force = read && execute != SupervisorPage;
        let fetch = read_in_force && execute == UserPage;
        let expected = [read_in_force, read_in_force && write, fetch, fetch];
        for (level, links) in WALKS {
            let rights = NptRights { read, write, execute };
            assert_eq!(cpu(&walk(rights, level, links), false), expected, "{rights:?}");
        }
    }
}

/// Present, write, user, accessed, dirty, bit 9 of ours; NX.
#[test]
fn the_exact_bits() {
    let page = |read, write, execute| {
        Npt::leaf(Hfn::new(0x123), Level::Page4K, NptRights { read, write, execute })
    };
    const NX: u64 = 1 << 63;
    // Data: to be executed by nobody, or by user code alone.
    assert_eq!(page(true, true, Nobody), NX | 0x12_3267);
    assert_eq!(page(true, true, UserPage), 0x12_3267);
    // Locked read-only data and the vDSO in it.
    assert_eq!(page(true, false, UserPage), 0x12_3265);
    // Kernel code.
    assert_eq!(page(true, false, SupervisorPage), 0x12_3261);
    // A released page.
    assert_eq!(page(true, true, SupervisorPage), 0x12_3263);
    // A frozen page; one out of reach.
    assert_eq!(page(true, false, Nobody), NX | 0x12_3265);
    assert_eq!(page(false, false, Nobody), NX | 0x12_3264);
    // Large leaves have bit 7, too.
    let large = NptRights { read: true, write: false, execute: SupervisorPage };
    assert_eq!(Npt::leaf(Hfn::new(0x400), Level::Page2M, large), 0x40_02e1);
    // A link: present, write, user, accessed.
    assert_eq!(Npt::table(Hfn::new(0x123)), 0x12_3027);
}
