//! Policies survive the trip, and damage to them is noticed.

use super::*;

#[test]
fn a_policy_survives_the_trip() {
    let mut policy = Policy { announce: true, heki_exec: HekiExec::Deny, ..Policy::default() };
    policy.reactions[3] = Reaction::Stop;
    policy.reactions[4] = Reaction::Ask;
    policy.warden = Warden { stop_after: 32, within_seconds: 1, heki_configure: false };
    policy.patching.static_call = false;
    policy.platform = Platform::Known;
    policy.tables = Tables::Guard;
    policy.patching.livepatch = false;
    assert_eq!(Policy::parse(policy.to_record().as_bytes()), Ok(policy));
    policy.jit = false;
    policy.kexec = Policy::MOST_KERNELS;
    policy.patching.kprobes = false;
    assert_eq!(Policy::parse(policy.to_record().as_bytes()), Ok(policy));
    policy.kexec += 1;
    assert_eq!(Policy::parse(policy.to_record().as_bytes()), Err(PolicyError::Value));
    policy.kexec = 0;
    policy.warden.stop_after = Warden::MOST + 1;
    assert_eq!(Policy::parse(policy.to_record().as_bytes()), Err(PolicyError::Value));
}

#[test]
fn what_needs_code_of_its_own_goes_with_modules() {
    let mut policy = Policy::default();
    assert_eq!((policy.patching_in_force(), policy.jit_in_force()), (Patching::ALL, true));
    policy.modules = Modules::Deny;
    let rest = Patching { ftrace: false, kprobes: false, livepatch: false, ..Patching::ALL };
    assert_eq!((policy.patching_in_force(), policy.jit_in_force()), (rest, false));
    policy = Policy::default();
    policy.patching.ftrace = false;
    assert!(!policy.patching_in_force().livepatch);
}

#[test]
fn the_kernel_is_told_what_it_will_be_refused() {
    let told = |policy: &Policy| policy.kernel_arguments().collect::<std::string::String>();
    let kexec = "sysctl.kernel.kexec_load_disabled=1 ";
    let optimised = "sysctl.debug.kprobes-optimization=0 ";
    let jit = "sysctl.net.core.bpf_jit_enable=0 ";
    let mut policy = Policy::default();
    assert_eq!(told(&policy), [kexec, optimised].concat());
    policy.jit = false;
    assert_eq!(told(&policy), [kexec, jit, optimised].concat());
    policy.patching.kprobes = false;
    assert_eq!(told(&policy), [kexec, jit].concat());
    policy = Policy { modules: Modules::Deny, ..Policy::default() };
    assert_eq!(told(&policy), [kexec, jit].concat());
    policy = Policy { reactions: [Reaction::Log; ViolationKind::COUNT], ..Policy::default() };
    assert_eq!(told(&policy), optimised);
    policy = Policy { kexec: 1, ..Policy::default() };
    assert_eq!((policy.kexec_in_force(), told(&policy).as_str()), (true, optimised));
    policy.supervisor_exec = SupervisorExec::Off;
    assert_eq!((policy.kexec_in_force(), told(&policy)), (false, [kexec, optimised].concat()));
}

#[test]
fn every_flipped_bit_is_noticed() {
    let record = Policy::default().to_record();
    for bit in 0..record.as_bytes().len() * 8 {
        let mut bytes = record.as_bytes().to_owned_array();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Policy::parse(&bytes).is_err(), "bit {bit}");
    }
    assert_eq!(Policy::parse(&record.as_bytes()[1..]), Err(PolicyError::NotAPolicy));
}

trait ToOwnedArray {
    fn to_owned_array(&self) -> [u8; size_of::<Record>()];
}
impl ToOwnedArray for [u8] {
    fn to_owned_array(&self) -> [u8; size_of::<Record>()] {
        self.try_into().expect("length")
    }
}
