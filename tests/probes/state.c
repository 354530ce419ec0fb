// SPDX-License-Identifier: GPL-2.0
/*
 * No attack: registers that only the kernel can see must survive what a hypervisor does behind
 * it. Known values are put into them, exits are provoked, the values are looked at again.
 */
#include <linux/irqflags.h>
#include <linux/preempt.h>
#include <asm/msr-index.h>
#include <asm/processor.h>

#include "attempt.h"
#include "probes.h"

#define ROUNDS 500

static const u32 watched_msrs[] = {
	MSR_IA32_CR_PAT,    MSR_LSTAR,	    MSR_STAR,	  MSR_SYSCALL_MASK, MSR_CSTAR,
	MSR_KERNEL_GS_BASE, MSR_FS_BASE,    MSR_GS_BASE,  MSR_TSC_AUX,	    MSR_IA32_SYSENTER_EIP,
	MSR_IA32_SYSENTER_ESP, MSR_IA32_SYSENTER_CS,
};

struct snapshot {
	u64 dr[6]; /* DR0 to DR3, DR6, DR7 */
	u64 cr0, cr3, cr4, cr8;
	u64 msr[ARRAY_SIZE(watched_msrs)];
};

static const u64 debug_values[4] = {
	0xffff888012345678, 0x00007f0000000123, 0xffffffff81abcdef, 0x0000000000badc0d,
};

#define READ_REGISTER(register, to) asm volatile("movq %%" register ", %0" : "=r"(to))
#define WRITE_REGISTER(register, from) asm volatile("movq %0, %%" register : : "r"((u64)(from)))

static void read_debug(u64 dr[6])
{
	READ_REGISTER("db0", dr[0]);
	READ_REGISTER("db1", dr[1]);
	READ_REGISTER("db2", dr[2]);
	READ_REGISTER("db3", dr[3]);
	READ_REGISTER("db6", dr[4]);
	READ_REGISTER("db7", dr[5]);
}

static void write_debug(const u64 dr[4])
{
	WRITE_REGISTER("db0", dr[0]);
	WRITE_REGISTER("db1", dr[1]);
	WRITE_REGISTER("db2", dr[2]);
	WRITE_REGISTER("db3", dr[3]);
}

static void take(struct snapshot *now)
{
	memset(now, 0, sizeof(*now));
	read_debug(now->dr);
	READ_REGISTER("cr0", now->cr0);
	READ_REGISTER("cr3", now->cr3);
	READ_REGISTER("cr4", now->cr4);
	READ_REGISTER("cr8", now->cr8);
	for (size_t i = 0; i < ARRAY_SIZE(watched_msrs); i++)
		attempt_rdmsr(watched_msrs[i], &now->msr[i]);
}

/* Instructions that a hypervisor may intercept. */
static void provoke(void)
{
	u64 unused;

	cpuid_eax(0);
	hypervisor_counter(0, &unused);
	asm volatile("outb %%al, $0x80" : : "a"(0));
}

/* Interrupts stay off between the snapshots, or the kernel itself may change something. */
enum result check_state(struct run *run)
{
	struct snapshot before, after;
	unsigned long flags;
	u64 saved[6];
	int changed = -1;

	local_irq_save(flags);
	read_debug(saved);
	write_debug(debug_values);
	WRITE_REGISTER("cr8", 1);
	take(&before);
	for (unsigned int i = 0; i < ROUNDS && changed < 0; i++) {
		provoke();
		take(&after);
		for (size_t j = 0; j < sizeof(before) / sizeof(u64) && changed < 0; j++)
			if (((u64 *)&before)[j] != ((u64 *)&after)[j])
				changed = j;
	}
	WRITE_REGISTER("cr8", 0);
	write_debug(saved);
	local_irq_restore(flags);

	if (before.cr8 != 1 || memcmp(before.dr, debug_values, sizeof(debug_values)))
		return finish(run, REFUSED, "DR0 to DR3 or CR8 did not take their values");
	if (changed >= 0)
		return finish(run, REFUSED, "register %d changed from %#llx to %#llx", changed,
			      ((u64 *)&before)[changed], ((u64 *)&after)[changed]);
	return finish(run, SUCCEEDED, "%u rounds", ROUNDS);
}
