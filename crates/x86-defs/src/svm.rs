//! The virtual-machine control block and its codes (APM 15.5 to 15.15, appendices B and C).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Intercepts in `Vmcb::cr_write`, by CR number.
pub mod cr_write {
    /// MOV to CR0, LMSW, CLTS.
    pub const CR0: u16 = 1 << 0;
    /// MOV to CR3.
    pub const CR3: u16 = 1 << 3;
    /// MOV to CR4.
    pub const CR4: u16 = 1 << 4;
}

/// Intercepts in `Vmcb::intercept1` (offset 0x00c).
pub mod intercept1 {
    /// Non-maskable interrupts.
    pub const NMI: u32 = 1 << 1;
    /// INIT.
    pub const INIT: u32 = 1 << 3;
    /// Virtual interrupts.
    pub const VINTR: u32 = 1 << 4;
    /// LIDT.
    pub const IDTR_WRITE: u32 = 1 << 10;
    /// LGDT.
    pub const GDTR_WRITE: u32 = 1 << 11;
    /// LLDT.
    pub const LDTR_WRITE: u32 = 1 << 12;
    /// LTR.
    pub const TR_WRITE: u32 = 1 << 13;
    /// CPUID.
    pub const CPUID: u32 = 1 << 18;
    /// IRET.
    pub const IRET: u32 = 1 << 20;
    /// Ports, by the I/O permission map.
    pub const IOIO: u32 = 1 << 27;
    /// MSRs, by the MSR permission map.
    pub const MSR: u32 = 1 << 28;
    /// Task switches.
    pub const TASK_SWITCH: u32 = 1 << 29;
    /// Triple faults.
    pub const SHUTDOWN: u32 = 1 << 31;
}

/// Intercepts in `Vmcb::intercept2` (offset 0x010): VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI,
/// SKINIT. VMRUN must be intercepted or VMRUN fails (APM 15.5.1).
pub const INTERCEPT2_SVM: u32 = 0x7f;

/// `Vmcb::nested_control` (APM 15.25.3).
pub mod nested_control {
    /// Nested paging.
    pub const ENABLE: u64 = 1 << 0;
    /// Guest mode execute trap (CPUID 8000_000A EDX bit 17): supervisor code cannot execute user
    /// pages of the nested tables, whose user bits then say nothing of reads and writes.
    pub const GMET: u64 = 1 << 3;
}

/// `Vmcb::tlb_control`: flush everything of every ASID.
pub const TLB_FLUSH_ALL: u8 = 1;

/// `Vmcb::virtual_interrupt` (APM 15.21.4).
pub mod virtual_interrupt {
    /// One waits.
    pub const PENDING: u64 = 1 << 8;
    /// Its priority, the highest.
    pub const PRIORITY: u64 = 0xf << 16;
    /// It is taken whatever the task priority is.
    pub const IGNORE_TPR: u64 = 1 << 20;
}

/// `Vmcb::interrupt_shadow`: the guest is right behind STI or a load of SS.
pub const INTERRUPT_SHADOW: u64 = 1;

/// `Vmcb::event_injection` and `exit_interrupt_info` fields (APM 15.20).
pub mod event {
    /// The field holds an event.
    pub const VALID: u64 = 1 << 31;
    /// The event has an error code.
    pub const ERROR_CODE: u64 = 1 << 11;
    /// Position of the type.
    pub const TYPE_SHIFT: u32 = 8;
    /// Type: external interrupt.
    pub const TYPE_INTERRUPT: u64 = 0;
    /// Type: NMI.
    pub const TYPE_NMI: u64 = 2;
    /// Type: exception.
    pub const TYPE_EXCEPTION: u64 = 3;
}

/// Exit codes (APM appendix C).
pub mod exit {
    /// Write of CR0; CR3 and CR4 are 3 and 4 further.
    pub const WRITE_CR0: u64 = 0x10;
    /// Write of CR3.
    pub const WRITE_CR3: u64 = 0x13;
    /// Write of CR4.
    pub const WRITE_CR4: u64 = 0x14;
    /// NMI.
    pub const NMI: u64 = 0x61;
    /// INIT.
    pub const INIT: u64 = 0x63;
    /// The guest would take a virtual interrupt.
    pub const VINTR: u64 = 0x64;
    /// LIDT.
    pub const WRITE_IDTR: u64 = 0x6a;
    /// LGDT.
    pub const WRITE_GDTR: u64 = 0x6b;
    /// LLDT.
    pub const WRITE_LDTR: u64 = 0x6c;
    /// LTR.
    pub const WRITE_TR: u64 = 0x6d;
    /// CPUID.
    pub const CPUID: u64 = 0x72;
    /// IRET.
    pub const IRET: u64 = 0x74;
    /// IN, OUT, INS, OUTS.
    pub const IOIO: u64 = 0x7b;
    /// RDMSR (`exit_info1` 0), WRMSR (1).
    pub const MSR: u64 = 0x7c;
    /// Triple fault.
    pub const SHUTDOWN: u64 = 0x7f;
    /// VMRUN; the other SVM instructions follow up to SKINIT.
    pub const VMRUN: u64 = 0x80;
    /// VMMCALL.
    pub const VMMCALL: u64 = 0x81;
    /// SKINIT.
    pub const SKINIT: u64 = 0x86;
    /// Second-stage fault.
    pub const NESTED_FAULT: u64 = 0x400;
    /// VMRUN refused the control block; compare the low 32 bits only, QEMU 7.2 leaves the upper
    /// half clear.
    pub const INVALID: u64 = 0xffff_ffff;
}

/// `exit_info1` of a second-stage fault (APM 15.25.6).
pub mod nested_fault {
    /// The nested entry was present.
    pub const PRESENT: u64 = 1 << 0;
    /// The access was a write.
    pub const WRITE: u64 = 1 << 1;
    /// The access was an instruction fetch.
    pub const FETCH: u64 = 1 << 4;
    /// The access was part of the guest's own page walk.
    pub const TABLE_WALK: u64 = 1 << 33;
}

/// `exit_info1` of a port access (APM 15.10.2).
pub mod port {
    /// Input rather than output.
    pub const IN: u64 = 1 << 0;
    /// Position of the size in bytes: 1, 2 or 4.
    pub const SIZE_SHIFT: u32 = 4;
}

/// A segment register (APM 15.5.1, table B-2).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Descriptor bits 55:52 and 47:40.
    pub attributes: u16,
    /// Limit in bytes.
    pub limit: u32,
    /// Base.
    pub base: u64,
}

impl Segment {
    /// `attributes` bit: 64-bit code.
    pub const LONG: u16 = 1 << 9;
    /// `attributes` bit: 32-bit default size.
    pub const DEFAULT_32: u16 = 1 << 10;
}

/// The control block: one page.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
#[expect(missing_docs, reason = "the names are the manual's")]
pub struct Vmcb {
    pub cr_read: u16,
    pub cr_write: u16,
    pub dr_read: u16,
    pub dr_write: u16,
    pub exceptions: u32,
    pub intercept1: u32,
    pub intercept2: u32,
    pub intercept3: u32,
    reserved1: [u8; 0x040 - 0x018],
    pub io_permission_map: u64,
    pub msr_permission_map: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u8,
    reserved2: [u8; 3],
    pub virtual_interrupt: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_interrupt_info: u64,
    pub nested_control: u64,
    reserved3: [u8; 0x0a8 - 0x098],
    pub event_injection: u64,
    pub nested_cr3: u64,
    pub lbr_control: u64,
    pub clean: u64,
    pub next_rip: u64,
    pub fetched: [u8; 16],
    reserved4: [u8; 0x400 - 0x0e0],
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    reserved5: [u8; 0x4cb - 0x4a0],
    pub cpl: u8,
    reserved6: [u8; 4],
    pub efer: u64,
    reserved7: [u8; 0x548 - 0x4d8],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved8: [u8; 0x5d8 - 0x580],
    pub rsp: u64,
    reserved9: [u8; 0x5f8 - 0x5e0],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved10: [u8; 0x668 - 0x648],
    pub guest_pat: u64,
    reserved11: [u8; 0x1000 - 0x670],
}

const _: () = {
    assert!(size_of::<Vmcb>() == 0x1000);
    assert!(core::mem::offset_of!(Vmcb, asid) == 0x058);
    assert!(core::mem::offset_of!(Vmcb, exit_interrupt_info) == 0x088);
    assert!(core::mem::offset_of!(Vmcb, event_injection) == 0x0a8);
    assert!(core::mem::offset_of!(Vmcb, next_rip) == 0x0c8);
    assert!(core::mem::offset_of!(Vmcb, tr) == 0x490);
    assert!(core::mem::offset_of!(Vmcb, cpl) == 0x4cb);
    assert!(core::mem::offset_of!(Vmcb, efer) == 0x4d0);
    assert!(core::mem::offset_of!(Vmcb, rip) == 0x578);
    assert!(core::mem::offset_of!(Vmcb, rax) == 0x5f8);
    assert!(core::mem::offset_of!(Vmcb, cr2) == 0x640);
    assert!(core::mem::offset_of!(Vmcb, guest_pat) == 0x668);
};

/// Bytes of the MSR permission map.
pub const MSR_MAP_BYTES: usize = 8192;
/// Bytes of the I/O permission map.
pub const IO_MAP_BYTES: usize = 3 * 4096;

/// Byte and lowest bit of an MSR's two bits (read, then write) in the permission map; `None` for
/// MSRs outside the map, which always exit (APM 15.11).
pub const fn msr_map_position(msr: u32) -> Option<(usize, u8)> {
    let base: u32 = match msr {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x800,
        0xc001_0000..=0xc001_1fff => 0x1000,
        _ => return None,
    };
    let bit = (msr & 0x1fff) * 2;
    Some(((base + bit / 8) as usize, (bit % 8) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msr_positions_follow_the_manual() {
        assert_eq!(msr_map_position(0), Some((0, 0)));
        assert_eq!(msr_map_position(0xc000_0000), Some((0x800, 0)));
        assert_eq!(msr_map_position(0xc000_0082), Some((0x820, 4)));
        assert_eq!(msr_map_position(0xc001_1fff), Some((0x17ff, 6)));
        assert_eq!(msr_map_position(0x4b56_4d00), None);
    }
}
