// SPDX-License-Identifier: GPL-2.0
/* Control registers and model-specific registers that hold the kernel's protections up. */
#include <linux/irqflags.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>

#include "attempt.h"
#include "probes.h"

static enum result cr0_wp(struct run *run)
{
	u64 before, after = 0;
	unsigned long flags;
	bool written;

	local_irq_save(flags);
	before = raw_cr0();
	written = attempt_cr0(before & ~X86_CR0_WP);
	after = raw_cr0();
	if (after != before)
		attempt_cr0(before);
	local_irq_restore(flags);

	if (!written || after & X86_CR0_WP)
		return finish(run, REFUSED, written ? "CR0 kept its value" : "write of CR0 faulted");
	return finish(run, SUCCEEDED, "CR0 became %#llx", after);
}

static enum result clear_cr4(struct run *run, u64 bit)
{
	u64 before, after = 0;
	unsigned long flags;
	bool written;

	local_irq_save(flags);
	before = raw_cr4();
	written = attempt_cr4(before & ~bit);
	after = raw_cr4();
	if (after != before)
		attempt_cr4(before);
	local_irq_restore(flags);

	if (!written || after & bit)
		return finish(run, REFUSED, written ? "CR4 kept its value" : "write of CR4 faulted");
	return finish(run, SUCCEEDED, "CR4 became %#llx", after);
}

static bool has_smep(void)
{
	return raw_cr4() & X86_CR4_SMEP;
}

static bool has_smap(void)
{
	return raw_cr4() & X86_CR4_SMAP;
}

static bool has_umip(void)
{
	return raw_cr4() & X86_CR4_UMIP;
}

static enum result cr4_smep(struct run *run)
{
	return clear_cr4(run, X86_CR4_SMEP);
}

static enum result cr4_smap(struct run *run)
{
	return clear_cr4(run, X86_CR4_SMAP);
}

static enum result cr4_umip(struct run *run)
{
	return clear_cr4(run, X86_CR4_UMIP);
}

/*
 * With NXE clear the NX bit is a reserved bit, so any touch of the stack could fault: between
 * the two writes only registers are used, and the code's own pages have no NX bit.
 */
static enum result efer_nxe(struct run *run)
{
	u32 before, high, after = 0, faulted = 1;
	unsigned long flags;

	local_irq_save(flags);
	asm volatile("rdmsr\n\t"
		     "movl %%eax, %[before]\n\t"
		     "movl %%edx, %[high]\n\t"
		     "andl %[mask], %%eax\n"
		     "1: wrmsr\n\t"
		     "xorl %[faulted], %[faulted]\n\t"
		     "rdmsr\n\t"
		     "movl %%eax, %[after]\n\t"
		     "cmpl %[before], %[after]\n\t"
		     "je 2f\n\t"
		     "movl %[before], %%eax\n\t"
		     "movl %[high], %%edx\n\t"
		     "wrmsr\n"
		     "2:\n" _ASM_EXTABLE(1b, 2b)
		     : [before] "=&r"(before), [high] "=&r"(high), [after] "+&r"(after),
		       [faulted] "+&r"(faulted)
		     : "c"(MSR_EFER), [mask] "i"((s32)~EFER_NX)
		     : "eax", "edx", "cc", "memory");
	local_irq_restore(flags);

	if (faulted)
		return finish(run, REFUSED, "write of EFER faulted");
	if (after & EFER_NX)
		return finish(run, REFUSED, "EFER kept its value");
	return finish(run, SUCCEEDED, "EFER became %#x", after);
}

static enum result change_msr(struct run *run, u32 msr, u64 flip)
{
	u64 before, after = 0;
	unsigned long flags;
	bool known, written;

	local_irq_save(flags);
	known = attempt_rdmsr(msr, &before);
	written = known && attempt_wrmsr(msr, before ^ flip);
	if (written) {
		attempt_rdmsr(msr, &after);
		if (after != before)
			attempt_wrmsr(msr, before);
	}
	local_irq_restore(flags);

	if (!known)
		return finish(run, UNUSABLE, "MSR %#x cannot be read", msr);
	if (!written)
		return finish(run, REFUSED, "write of MSR %#x faulted", msr);
	if (after != (before ^ flip))
		return finish(run, REFUSED, "MSR %#x kept its value", msr);
	return finish(run, SUCCEEDED, "MSR %#x became %#llx", msr, after);
}

static enum result msr_lstar(struct run *run)
{
	return change_msr(run, MSR_LSTAR, 0x10);
}

static enum result msr_cstar(struct run *run)
{
	return change_msr(run, MSR_CSTAR, 0x10);
}

static enum result msr_star(struct run *run)
{
	return change_msr(run, MSR_STAR, 0x8ull << 32);
}

static enum result msr_sfmask(struct run *run)
{
	return change_msr(run, MSR_SYSCALL_MASK, X86_EFLAGS_AC);
}

static enum result msr_sysenter_eip(struct run *run)
{
	return change_msr(run, MSR_IA32_SYSENTER_EIP, 0x10);
}

/* EFER.SVME or CR4.VMXE: who has it set can put a hypervisor of his own under the kernel. */
static enum result virtualization(struct run *run)
{
	u64 before, after = 0;
	unsigned long flags;
	bool written;

	if (boot_cpu_data.x86_vendor != X86_VENDOR_INTEL)
		return change_msr(run, MSR_EFER, EFER_SVME);
	local_irq_save(flags);
	before = raw_cr4();
	written = attempt_cr4(before | X86_CR4_VMXE);
	after = raw_cr4();
	if (after != before)
		attempt_cr4(before);
	local_irq_restore(flags);

	if (!written || !(after & X86_CR4_VMXE))
		return finish(run, REFUSED, written ? "CR4 kept its value" : "write of CR4 faulted");
	return finish(run, SUCCEEDED, "CR4 became %#llx", after);
}

const struct probe control_probes[] = {
	{ "cr0-wp", "clear CR0.WP", cr0_wp },
	{ "cr4-smep", "clear CR4.SMEP", cr4_smep, has_smep },
	{ "cr4-smap", "clear CR4.SMAP", cr4_smap, has_smap },
	{ "cr4-umip", "clear CR4.UMIP", cr4_umip, has_umip },
	{ "efer-nxe", "clear EFER.NXE", efer_nxe },
	{ "virtualization", "set EFER.SVME (AMD) or CR4.VMXE (Intel)", virtualization },
	{ "msr-lstar", "move the entry of SYSCALL", msr_lstar },
	{ "msr-cstar", "move the entry of SYSCALL from 32-bit code", msr_cstar },
	{ "msr-star", "change the selectors of SYSCALL", msr_star },
	{ "msr-sfmask", "let user flags through SYSCALL", msr_sfmask },
	{ "msr-sysenter-eip", "move the entry of SYSENTER", msr_sysenter_eip },
	{}
};
