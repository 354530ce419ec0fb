//! The attacks, and the event that each must leave.

use abi::event::ViolationKind::{
    self, ControlRegister, CpuEscape, DescriptorTable, Execute, Msr, OwnMemory, Patch, WriteRodata,
    WriteText,
};

/// One attack.
pub struct Attack {
    /// Its name in the guest's reports.
    pub name: &'static str,
    /// The kinds of violation that describe it.
    pub kinds: &'static [ViolationKind],
    /// CPUs it takes.
    pub cpus: usize,
    /// Whether only a policy refuses it that denies what the default one allows.
    pub denied: bool,
}

const fn attack(name: &'static str, kinds: &'static [ViolationKind]) -> Attack {
    Attack { name, kinds, cpus: 1, denied: false }
}

/// Every attack. The guest must report each one that its CPUs allow.
pub const ATTACKS: &[Attack] = &[
    // It is stopped at its first step, before it writes.
    attack("text-wp", &[ControlRegister]),
    attack("text-pte", &[WriteText]),
    attack("text-vmap", &[WriteText]),
    attack("text-directmap", &[WriteText]),
    attack("rodata-pte", &[WriteRodata]),
    attack("ro-after-init-pte", &[WriteRodata]),
    attack("patch-site-bytes", &[Patch]),
    attack("patch-order", &[Patch]),
    attack("patch-jump-target", &[Patch]),
    attack("patch-static-call", &[Patch]),
    attack("patch-traced", &[Patch]),
    attack("patch-int3", &[WriteText]),
    attack("exec-data-nx", &[Execute]),
    attack("exec-vmalloc-w", &[Execute]),
    attack("exec-module-data", &[Execute]),
    attack("exec-module-alias", &[Execute]),
    attack("exec-user-pte", &[Execute]),
    attack("exec-user-directmap", &[Execute]),
    attack("module-text-pte", &[Execute]),
    attack("init-text", &[Execute]),
    attack("cr0-wp", &[ControlRegister]),
    attack("cr4-smep", &[ControlRegister]),
    attack("cr4-smap", &[ControlRegister]),
    attack("cr4-umip", &[ControlRegister]),
    attack("efer-nxe", &[Msr]),
    attack("virtualization", &[Msr, ControlRegister]),
    attack("msr-lstar", &[Msr]),
    attack("msr-cstar", &[Msr]),
    attack("msr-star", &[Msr]),
    attack("msr-sfmask", &[Msr]),
    attack("msr-sysenter-eip", &[Msr]),
    attack("idt-load", &[DescriptorTable]),
    attack("gdt-load", &[DescriptorTable]),
    attack("ldt-load", &[DescriptorTable]),
    attack("tr-load", &[DescriptorTable]),
    attack("own-memory-read", &[OwnMemory]),
    attack("own-memory-write", &[OwnMemory]),
    attack("published-write", &[OwnMemory]),
    Attack { cpus: 2, ..attack("pte-flip", &[Execute]) },
    Attack { cpus: 2, ..attack("stale-tlb", &[WriteText, Execute]) },
    Attack { cpus: 2, ..attack("cpu-init-ipi", &[CpuEscape]) },
    Attack { denied: true, ..attack("kprobe-text", &[WriteText]) },
    Attack { denied: true, ..attack("jit-spray", &[Execute]) },
];

/// The attack of this name.
pub fn find(name: &str) -> Option<&'static Attack> {
    ATTACKS.iter().find(|attack| attack.name == name)
}

/// How many attacks a machine with so many CPUs reports at least.
pub fn expected(cpus: usize, denied: bool) -> usize {
    ATTACKS.iter().filter(|attack| attack.cpus <= cpus && attack.denied == denied).count()
}
