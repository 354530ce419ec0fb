// SPDX-License-Identifier: GPL-2.0
/*
 * The cases that the RFC's successor adds: one register each, written with a value that an
 * attacker may want. Where the interface has a request for it, that is made first; the others the
 * lock pins by itself.
 *
 * Refused means all of this: the instruction took #GP, the register kept its value, and that value
 * can still be written.
 */
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <asm/desc.h>
#include <asm/msr-index.h>
#include <asm/processor-flags.h>
#include <asm/trapnr.h>

#include "heki.h"

#define NO_TRAP (-1)
#define BOGUS 0x1234

/* The number of the trap that the instruction took, or NO_TRAP; `a` is in RAX before. */
#define TRAP_OF(instruction, a, inputs)                                                     \
	({                                                                                  \
		u64 rax_ = (a);                                                             \
		asm volatile("1: " instruction "\n\t"                                       \
			     "movl %[none], %%eax\n"                                        \
			     "2:\n" _ASM_EXTABLE_FAULT(1b, 2b)                              \
			     : "+a"(rax_)                                                   \
			     : [none] "i"(NO_TRAP) UNWRAP inputs                            \
			     : "memory", "cc");                                             \
		(int)rax_;                                                                  \
	})

/* A kind of register: how the one with this number is read, and written. */
struct kind {
	u64 (*read)(u32 number);
	int (*write)(u32 number, u64 value);
};

static u64 read_control(u32 number)
{
	return number ? raw_cr4() : raw_cr0();
}

static int write_control(u32 number, u64 value)
{
	return number ? TRAP_OF("movq %%rax, %%cr4", value, ()) :
			TRAP_OF("movq %%rax, %%cr0", value, ());
}

static u64 read_msr(u32 number)
{
	u64 value = 0;

	attempt_rdmsr(number, &value);
	return value;
}

static int write_msr(u32 number, u64 value)
{
	return TRAP_OF("wrmsr", (u32)value, (, "c"(number), "d"((u32)(value >> 32))));
}

enum { GDTR, IDTR };

static void store_table(u32 number, struct desc_ptr *table)
{
	if (number == GDTR)
		asm volatile("sgdt %0" : "=m"(*table));
	else
		asm volatile("sidt %0" : "=m"(*table));
}

static u64 read_table(u32 number)
{
	struct desc_ptr table;

	store_table(number, &table);
	return table.address;
}

/* Moves the table; it stays as long as it is. */
static int write_table(u32 number, u64 address)
{
	struct desc_ptr table;

	store_table(number, &table);
	table.address = address;
	return number == GDTR ? TRAP_OF("lgdt (%[table])", 0, (, [table] "r"(&table))) :
				TRAP_OF("lidt (%[table])", 0, (, [table] "r"(&table)));
}

static const struct kind control = { read_control, write_control };
static const struct kind msr = { read_msr, write_msr };
static const struct kind table = { read_table, write_table };

static enum result attack(struct run *run, const struct kind *kind, u32 number, u64 value)
{
	unsigned long flags;
	u64 before, after;
	int trap, again;

	local_irq_save(flags);
	before = kind->read(number);
	trap = kind->write(number, value);
	after = kind->read(number);
	again = kind->write(number, before);
	local_irq_restore(flags);

	if (before == value)
		return finish(run, UNUSABLE, "the register has that value already");
	if (trap == NO_TRAP && after == value)
		return finish(run, SUCCEEDED, "%#llx became %#llx", before, after);
	if (trap == X86_TRAP_GP && after == before && again == NO_TRAP)
		return finish(run, REFUSED, "general protection, %#llx stays", before);
	return finish(run, UNUSABLE, "%#llx became %#llx, trap %d, then %d", before, after, trap,
		      again);
}

static enum result cr_disable_wp(struct run *run)
{
	long answer = hypercall(LOCK_CONTROL_REGISTER, 0, X86_CR0_WP, 0);
	enum result result = attack(run, &control, 0, raw_cr0() & ~X86_CR0_WP);

	if (answer && result == REFUSED)
		return finish(run, SUCCEEDED, "the request was answered %ld", answer);
	return result;
}

/* A bit that is not pinned changes freely, and not together with one that is. */
static enum result mixed_write(struct run *run)
{
	u64 before = raw_cr4();
	unsigned long flags;
	int alone, back;
	u64 toggled;

	if (!(before & X86_CR4_SMEP))
		return finish(run, UNUSABLE, "SMEP is off");
	local_irq_save(flags);
	alone = write_control(4, before ^ X86_CR4_VME);
	toggled = raw_cr4();
	back = write_control(4, before);
	local_irq_restore(flags);
	if (alone != NO_TRAP || back != NO_TRAP || toggled != (before ^ X86_CR4_VME))
		return finish(run, UNUSABLE, "VME cannot be toggled");
	return attack(run, &control, 4, (before & ~X86_CR4_SMEP) ^ X86_CR4_VME);
}

/* Moves a descriptor table to a copy of itself. */
static enum result move(struct run *run, u32 number)
{
	unsigned long page = __get_free_page(GFP_KERNEL);
	enum result result;
	struct desc_ptr now;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	store_table(number, &now);
	memcpy((void *)page, (const void *)now.address, min_t(size_t, now.size + 1, PAGE_SIZE));
	result = attack(run, &table, number, page);
	free_page(page);
	return result;
}

static enum result idtr(struct run *run)
{
	return move(run, IDTR);
}

static enum result gdtr(struct run *run)
{
	return move(run, GDTR);
}

static enum result lstar(struct run *run)
{
	return attack(run, &msr, MSR_LSTAR, BOGUS);
}

static enum result star(struct run *run)
{
	return attack(run, &msr, MSR_STAR, BOGUS);
}

static enum result cstar(struct run *run)
{
	return attack(run, &msr, MSR_CSTAR, BOGUS);
}

static enum result sfmask(struct run *run)
{
	return attack(run, &msr, MSR_SYSCALL_MASK, BOGUS);
}

/* Other bits of EFER cannot be changed while code runs, or are reserved. */
static enum result efer(struct run *run)
{
	return attack(run, &msr, MSR_EFER, read_msr(MSR_EFER) & ~EFER_SCE);
}

/* A page further. */
static enum result apic_base(struct run *run)
{
	return attack(run, &msr, MSR_IA32_APICBASE, read_msr(MSR_IA32_APICBASE) ^ PAGE_SIZE);
}

static enum result sysenter_cs(struct run *run)
{
	return attack(run, &msr, MSR_IA32_SYSENTER_CS, BOGUS);
}

static enum result sysenter_eip(struct run *run)
{
	return attack(run, &msr, MSR_IA32_SYSENTER_EIP, BOGUS);
}

static enum result sysenter_esp(struct run *run)
{
	return attack(run, &msr, MSR_IA32_SYSENTER_ESP, BOGUS);
}

/* The others of the suite are among the RFC's own four: cr-disable-smep, write-to-const, exec. */
const struct probe heki_suite[] = {
	{ "cr-disable-wp", "clear CR0.WP", cr_disable_wp },
	{ "mixed-write", "clear CR4.SMEP and toggle CR4.VME at once", mixed_write },
	{ "idtr", "move the IDT", idtr },
	{ "gdtr", "move the GDT", gdtr },
	{ "ldtr", "load an LDT", ldt_load },
	{ "tr", "load another task state", tr_load },
	{ "lstar", "move the entry of SYSCALL", lstar },
	{ "star", "change the selectors of SYSCALL", star },
	{ "cstar", "move the entry of SYSCALL from 32-bit code", cstar },
	{ "efer", "switch SYSCALL off", efer },
	{ "apic-base", "move the local APIC", apic_base },
	{ "sysenter-cs", "change the selectors of SYSENTER", sysenter_cs },
	{ "sysenter-eip", "move the entry of SYSENTER", sysenter_eip },
	{ "sysenter-esp", "move the stack of SYSENTER", sysenter_esp },
	{ "sfmask", "change the flags that SYSCALL clears", sfmask },
	{}
};
