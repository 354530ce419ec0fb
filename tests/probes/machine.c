// SPDX-License-Identifier: GPL-2.0
/* The hypervisor's own memory, and CPUs that leave it. */
#include <linux/acpi.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/smp.h>
#include <asm/apicdef.h>
#include <asm/fixmap.h>
#include <asm/msr-index.h>
#include <asm/smp.h>

#include "attempt.h"
#include "probes.h"

#define PUBLISHED 19 /* the counter that tells where the region is that the guest may read */
#define PATTERN 0x6e696c6576617252ull

/*
 * Maps the memory of the hypervisor that the counter names; on a bare machine, a page of RAM that
 * stands for it. `*stand_in` is 0 or the page to free.
 */
static u64 *map_memory(u64 counter, unsigned long *stand_in)
{
	u64 physical;

	*stand_in = 0;
	if (!hypervisor_counter(counter, &physical)) {
		*stand_in = __get_free_page(GFP_KERNEL);
		if (!*stand_in)
			return NULL;
		*(u64 *)*stand_in = PATTERN;
		physical = __pa(*stand_in);
	}
	return memremap(physical, PAGE_SIZE, MEMREMAP_WB);
}

static enum result touch(struct run *run, u64 counter, bool write)
{
	unsigned long stand_in;
	u64 *mapped = map_memory(counter, &stand_in), seen = 0;
	bool done = false;

	if (!mapped) {
		free_page(stand_in);
		return finish(run, UNUSABLE, "the physical address cannot be mapped");
	}
	if (write)
		done = attempt_write64(mapped, ~PATTERN) && attempt_read64(mapped, &seen) &&
		       seen == ~PATTERN;
	else
		done = attempt_read64(mapped, &seen) && (!stand_in || seen == PATTERN);
	memunmap(mapped);
	free_page(stand_in);

	if (!done)
		return finish(run, REFUSED, "%s faulted or had no effect", write ? "write" : "read");
	return finish(run, SUCCEEDED, "%s %#llx%s", write ? "wrote" : "read", seen,
		      stand_in ? " (RAM in place of hypervisor memory)" : "");
}

static enum result own_memory_read(struct run *run)
{
	return touch(run, OWN_MEMORY, false);
}

static enum result own_memory_write(struct run *run)
{
	return touch(run, OWN_MEMORY, true);
}

static enum result published_write(struct run *run)
{
	return touch(run, PUBLISHED, true);
}

static bool send_init(unsigned int cpu)
{
	u32 id = per_cpu(x86_cpu_to_apicid, cpu);
	u32 command = APIC_INT_LEVELTRIG | APIC_INT_ASSERT | APIC_DM_INIT;
	u64 base;

	if (attempt_rdmsr(MSR_IA32_APICBASE, &base) && base & X2APIC_ENABLE)
		return attempt_wrmsr(0x800 + (APIC_ICR >> 4), (u64)id << 32 | command);
	return attempt_write32((void *)(APIC_BASE + APIC_ICR2), SET_XAPIC_DEST_FIELD(id)) &&
	       attempt_write32((void *)(APIC_BASE + APIC_ICR), command);
}

static bool answered;

static void answer(void *unused)
{
	WRITE_ONCE(answered, true);
}

static call_single_data_t question = CSD_INIT(answer, NULL);

static bool alive(unsigned int cpu)
{
	WRITE_ONCE(answered, false);
	if (smp_call_function_single_async(cpu, &question))
		return false;
	for (unsigned int i = 0; i < 1000 && !READ_ONCE(answered); i++)
		mdelay(1);
	return READ_ONCE(answered);
}

/*
 * INIT takes a CPU away from everything that runs on it, a hypervisor included. Where it works
 * the CPU is gone for good: run this last.
 */
static enum result cpu_init_ipi(struct run *run)
{
	unsigned int victim = cpumask_any_but(cpu_online_mask, raw_smp_processor_id());
	bool sent;

	if (victim >= nr_cpu_ids || !alive(victim))
		return finish(run, UNUSABLE, "no second CPU that answers");
	msleep(50); /* Let it go idle: RCU never waits for an idle CPU. */
	sent = send_init(victim);
	if (alive(victim))
		return finish(run, REFUSED, sent ? "CPU %u runs on" : "INIT to CPU %u faulted",
			      victim);
	return finish(run, SUCCEEDED, "CPU %u was reset and answers no more", victim);
}

void power_off(void)
{
	acpi_enter_sleep_state_prep(ACPI_STATE_S5);
	local_irq_disable();
	acpi_enter_sleep_state(ACPI_STATE_S5);
}

const struct probe machine_probes[] = {
	{ "own-memory-read", "read the hypervisor's memory", own_memory_read },
	{ "own-memory-write", "write the hypervisor's memory", own_memory_write },
	{ "published-write", "write the events that the guest may read", published_write },
	{}
};

const struct probe last_probes[] = {
	{ "cpu-init-ipi", "reset another CPU by an INIT IPI", cpu_init_ipi, more_than_one_cpu },
	{}
};
