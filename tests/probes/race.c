// SPDX-License-Identifier: GPL-2.0
/*
 * Two CPUs: one writes a page while it becomes code.
 *
 * CPU B writes the page through a writable alias without pause, so the alias sits in its TLB.
 * CPU A makes the alias's entry read-only but does not flush B, so no page table shows a writer
 * any more, and executes the page. Two outcomes protect the kernel: B's stale translation stops
 * working before the first instruction runs, or the execution is refused. If B was stopped, A makes the
 * alias writable again, writes, and executes once more: code that somebody can write.
 *
 * Or: CPU A executes the page for the first time after a write, so that it is judged; the alias is
 * read-only then, and CPU B makes it writable at that very time, and writes.
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/mm.h>
#include <linux/smp.h>
#include <linux/vmalloc.h>

#include "attempt.h"
#include "probes.h"
#include "tables.h"

#define MILLISECONDS 300

static struct {
	void *constant; /* the function's constant, through the alias */
	u32 written; /* the constant of the last write */
	bool stop, faulted, ended;
} writer;

static void write_on(void *unused)
{
	for (u32 value = 1; !READ_ONCE(writer.stop); value++) {
		if (!attempt_write32(writer.constant, value)) {
			WRITE_ONCE(writer.faulted, true);
			break;
		}
		WRITE_ONCE(writer.written, value);
	}
	WRITE_ONCE(writer.ended, true);
}

static call_single_data_t writing = CSD_INIT(write_on, NULL);

/* Calls the page until its constant changes under the call, or for MILLISECONDS. */
static enum result watch(struct run *run, bool *undecided)
{
	struct call first = call_function(raced_function), next = first;

	*undecided = false;
	for (unsigned int i = 0; i < MILLISECONDS && !next.faulted; i++) {
		if (next.value != first.value)
			return finish(run, SUCCEEDED,
				      "CPU B changed running code from %#x to %#x by a stale translation",
				      first.value, next.value);
		mdelay(1);
		next = call_function(raced_function);
	}
	if (next.faulted)
		return finish(run, REFUSED, "execution faulted while the page was written");
	*undecided = true;
	return finish(run, REFUSED, "the writer was stopped");
}

/* The page is code and nobody writes it: open the alias again and change the code. */
static enum result rewrite(struct run *run, struct leaf *alias)
{
	u32 value = writer.written + 1000;
	struct call call;

	leaf_restore(alias);
	if (!attempt_write32(writer.constant, value))
		return finish(run, REFUSED, "stale writer stopped, then write to the code faulted");
	call = call_function(raced_function);
	if (call.faulted)
		return finish(run, REFUSED,
			      "stale writer stopped, then execution of the written page faulted");
	if (call.value != value)
		return finish(run, REFUSED, "stale writer stopped, then the write had no effect");
	return finish(run, SUCCEEDED, "code changed to %#x after it ran", value);
}

static enum result stale_tlb(struct run *run)
{
	unsigned int other = cpumask_any_but(cpu_online_mask, raw_smp_processor_id());
	struct page *page = vmalloc_to_page(raced_function);
	void *alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	enum result result;
	struct leaf leaf;
	bool undecided;

	if (!alias || other >= nr_cpu_ids || !leaf_find(&leaf, (unsigned long)alias)) {
		vunmap(alias);
		return finish(run, UNUSABLE, "no alias or no second CPU");
	}
	memset(&writer, 0, sizeof(writer));
	writer.constant = alias + 1;
	if (smp_call_function_single_async(other, &writing)) {
		vunmap(alias);
		return finish(run, UNUSABLE, "CPU %u takes no call", other);
	}
	for (unsigned int i = 0; i < MILLISECONDS && !READ_ONCE(writer.written); i++)
		mdelay(1);
	leaf_forge_here(&leaf, 0, ENTRY_WRITE);
	result = watch(run, &undecided);
	WRITE_ONCE(writer.stop, true);
	while (!READ_ONCE(writer.ended))
		cpu_relax();
	if (undecided)
		result = rewrite(run, &leaf);
	vunmap(alias);
	return result;
}

#define FIRST 1
#define SECOND 2

static struct leaf flipped;
static bool closed;

static void flip(void *unused)
{
	attempt_write32(writer.constant, FIRST);
	leaf_forge_here(&flipped, 0, ENTRY_WRITE);
	WRITE_ONCE(closed, true);
	leaf_forge_here(&flipped, ENTRY_WRITE, 0);
	attempt_write32(writer.constant, SECOND);
	WRITE_ONCE(writer.ended, true);
}

static call_single_data_t flipping = CSD_INIT(flip, NULL);

static enum result pte_flip(struct run *run)
{
	unsigned int other = cpumask_any_but(cpu_online_mask, raw_smp_processor_id());
	struct page *page = vmalloc_to_page(raced_function);
	void *alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	struct call call = {};

	if (!alias || other >= nr_cpu_ids || !leaf_find(&flipped, (unsigned long)alias)) {
		vunmap(alias);
		return finish(run, UNUSABLE, "no alias or no second CPU");
	}
	memset(&writer, 0, sizeof(writer));
	writer.constant = alias + 1;
	WRITE_ONCE(closed, false);
	if (smp_call_function_single_async(other, &flipping)) {
		vunmap(alias);
		return finish(run, UNUSABLE, "CPU %u takes no call", other);
	}
	while (!READ_ONCE(closed))
		cpu_relax();
	for (unsigned int i = 0; i < MILLISECONDS && !call.faulted && call.value != SECOND; i++) {
		call = call_function(raced_function);
		if (!call.faulted && call.value != SECOND)
			mdelay(1);
	}
	while (!READ_ONCE(writer.ended))
		cpu_relax();
	/*
	 * B may have been slow. And QEMU can miss a write that races with its translation of the page, and
	 * go on with the old code: the same write again is not missed.
	 */
	if (!call.faulted && call.value != SECOND) {
		if (READ_ONCE(*(u32 *)writer.constant) == SECOND)
			attempt_write32(writer.constant, SECOND);
		call = call_function(raced_function);
	}
	vunmap(alias);
	if (call.faulted)
		return finish(run, REFUSED, "execution of the page faulted");
	if (call.value != SECOND)
		return finish(run, REFUSED, "the second write had no effect");
	return finish(run, SUCCEEDED, "what CPU B wrote meanwhile ran");
}

const struct probe race_probes[] = {
	{ "pte-flip", "make a page writable while another CPU's execution is judged", pte_flip,
	  more_than_one_cpu },
	{ "stale-tlb", "write a page from one CPU while another makes it code", stale_tlb,
	  more_than_one_cpu },
	{}
};
