// SPDX-License-Identifier: GPL-2.0
/*
 * Random requests on all CPUs at once. Each CPU asks for rights of pages of its own, mixed with
 * what must be refused, and looks now and then whether its pages allow what was granted last, and
 * the kernel's text and read-only data no more than the lock.
 * Some of its lists go on in a page that all CPUs change all the time.
 *
 * Whatever is granted by chance must not hurt this kernel: no entry names memory of others
 * without a right that is refused there.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/prandom.h>
#include <linux/slab.h>
#include <linux/workqueue.h>
#include <asm/io.h>

#include "heki.h"
#include "tables.h"

#define CHECK_EVERY 50
#define PAGES 3

struct worker {
	struct work_struct work;
	struct rnd_state random;
	struct list *list;
	u8 *pages[PAGES];
	u64 rights[PAGES]; /* by the last request that was granted */
	unsigned int granted, refused, checked;
	const char *problem;
};

/* A page of a list and a page to protect that belong to nobody. */
static struct list *shared;
static u8 *everybodys;
static u64 text, data, own;
/* Writable mappings of pages that the lock made read-only. */
static u8 *aliases[2];
static unsigned int calls;

static u32 below(struct worker *worker, u32 limit)
{
	return prandom_u32_state(&worker->random) % limit;
}

/* Fills an entry; whether it can be granted. */
static bool fill(struct worker *worker, struct entry *entry, int *page)
{
	u64 start, length = PAGE_SIZE, permissions = below(worker, 8);
	bool alone = permissions == X && boot_cpu_data.x86_vendor == X86_VENDOR_INTEL;
	bool possible = permissions & R || alone;

	*page = -1;
	switch (below(worker, 12)) {
	case 0:
		start = text, permissions |= W, possible = false;
		break;
	case 1:
		start = data, permissions |= W, possible = false;
		break;
	case 2:
		start = own, possible = false;
		break;
	case 3:
		start = 0xfee00000, possible = false;
		break;
	case 4:
		start = 1ull << 51 | (u64)below(worker, 1u << 31) << 12;
		length = (u64)below(worker, 1u << 31) << 12;
		possible = false;
		break;
	default:
		*page = below(worker, PAGES);
		start = virt_to_phys(worker->pages[*page]);
		break;
	}
	if (below(worker, 40) == 0)
		start++, possible = false;
	*entry = (struct entry){ start, start + length, permissions };
	return possible;
}

/* A page allows reading and writing if and only if the last request said so. */
static void check(struct worker *worker)
{
	int page = below(worker, PAGES + ARRAY_SIZE(aliases));
	bool locked = page >= PAGES;
	u8 *at = locked ? aliases[page - PAGES] : worker->pages[page];
	u64 rights = locked ? 0 : worker->rights[page], seen;
	u8 value = below(worker, 256);
	bool written = attempt_write8(at, value);

	worker->checked++;
	if (written && !(rights & W))
		worker->problem = locked ? "a locked page was written" :
					   "a page without WRITE was written";
	if (!written && rights & W)
		worker->problem = "a page with WRITE was not written";
	if (!locked && attempt_read64(at, &seen) != !!(rights & R))
		worker->problem = "READ is not as it was granted";
	if (written && rights & R && READ_ONCE(*at) != value)
		worker->problem = "a write had no effect";
}

static void ask(struct worker *worker)
{
	struct list *list = worker->list;
	u32 count = below(worker, 4), kind = below(worker, 16);
	bool possible = true;
	int pages[3];
	long answer;

	for (u32 i = 0; i < count; i++)
		possible &= fill(worker, &list->entries[i], &pages[i]);
	list->count = count;
	list->next_physical = 0;
	if (kind == 12 || kind == 13) {
		list->next_physical = virt_to_phys(shared);
		WRITE_ONCE(shared->entries[0].permissions, below(worker, 32));
		WRITE_ONCE(shared->entries[1].start, below(worker, 2) ? own : 0xfee00000);
		WRITE_ONCE(shared->count, below(worker, 3));
		WRITE_ONCE(shared->next_physical, below(worker, 2) ? virt_to_phys(shared) : 0);
	} else if (kind == 14) {
		list->next_physical = virt_to_phys(list);
		possible = false;
	} else if (kind == 15) {
		list->count = 170 + below(worker, 1u << 31);
		possible = false;
	}
	answer = hypercall(PROTECT_MEMORY, virt_to_phys(list), 0, 0);
	if (answer) {
		worker->refused++;
		if (answer == UNDEFINED || answer > 0 || answer < -1000)
			worker->problem = "the answer is no error";
		return;
	}
	worker->granted++;
	if (!possible)
		worker->problem = "what is impossible was granted";
	for (u32 i = 0; i < count; i++)
		if (pages[i] >= 0)
			worker->rights[pages[i]] = list->entries[i].permissions;
}

static void work_on(struct work_struct *work)
{
	struct worker *worker = container_of(work, struct worker, work);

	for (int call = 0; call < calls && !worker->problem; call++) {
		ask(worker);
		if (call % CHECK_EVERY == 0 && !worker->problem)
			check(worker);
		cond_resched();
	}
}

static void release(struct worker *worker)
{
	for (int page = 0; page < PAGES; page++) {
		if (worker->list && worker->pages[page]) {
			u64 at = virt_to_phys(worker->pages[page]);

			worker->list->entries[0] = (struct entry){ at, at + PAGE_SIZE, R | W | X };
			worker->list->count = 1;
			worker->list->next_physical = 0;
			hypercall(PROTECT_MEMORY, virt_to_phys(worker->list), 0, 0);
		}
		free_page((unsigned long)worker->pages[page]);
	}
	free_page((unsigned long)worker->list);
}

static bool prepare(struct worker *worker, int cpu)
{
	bool ready;

	INIT_WORK(&worker->work, work_on);
	prandom_seed_state(&worker->random, 0x52415645 + cpu);
	worker->list = (struct list *)get_zeroed_page(GFP_KERNEL);
	ready = worker->list;
	for (int page = 0; page < PAGES; page++) {
		worker->pages[page] = (u8 *)get_zeroed_page(GFP_KERNEL);
		worker->rights[page] = R | W;
		ready &= !!worker->pages[page];
	}
	return ready;
}

enum result heki_random(struct run *run, unsigned int calls_per_cpu)
{
	struct worker *workers = kcalloc(nr_cpu_ids, sizeof(*workers), GFP_KERNEL);
	unsigned int granted = 0, refused = 0, checked = 0;
	const char *problem = NULL;
	struct leaf leaf;
	bool ready;
	int cpu;

	calls = calls_per_cpu;
	/* These two may be immutable afterwards: they are never freed. */
	shared = (struct list *)get_zeroed_page(GFP_KERNEL);
	everybodys = (u8 *)get_zeroed_page(GFP_KERNEL);
	ready = workers && shared && everybodys && leaf_find(&leaf, stext & PAGE_MASK);
	text = ready ? leaf_physical(&leaf) : 0;
	ready = ready && leaf_find(&leaf, rodata & PAGE_MASK);
	data = ready ? leaf_physical(&leaf) : 0;
	aliases[0] = ready ? text_alias(stext & PAGE_MASK) : NULL;
	aliases[1] = ready ? text_alias(rodata & PAGE_MASK) : NULL;
	ready = ready && aliases[0] && aliases[1];
	if (!ready || !hypervisor_counter(OWN_MEMORY, &own)) {
		kfree(workers);
		return finish(run, ready ? SUCCEEDED : UNUSABLE, "no memory, or no hypervisor");
	}
	for (int i = 0; i < 2; i++)
		shared->entries[i] = (struct entry){ virt_to_phys(everybodys),
						     virt_to_phys(everybodys) + PAGE_SIZE, R };

	for_each_online_cpu(cpu)
		ready &= prepare(&workers[cpu], cpu);
	if (ready) {
		for_each_online_cpu(cpu)
			schedule_work_on(cpu, &workers[cpu].work);
		for_each_online_cpu(cpu)
			flush_work(&workers[cpu].work);
	}
	for_each_online_cpu(cpu) {
		struct worker *worker = &workers[cpu];

		granted += worker->granted;
		refused += worker->refused;
		checked += worker->checked;
		problem = worker->problem ?: problem;
		release(worker);
	}
	kfree(workers);
	for (int i = 0; i < ARRAY_SIZE(aliases); i++)
		text_unalias(aliases[i]);
	if (!ready)
		return finish(run, UNUSABLE, "no memory");
	if (problem)
		return finish(run, SUCCEEDED, "%s", problem);
	if (!granted || !refused)
		return finish(run, SUCCEEDED, "%u granted, %u refused", granted, refused);
	return finish(run, REFUSED, "%u granted, %u refused, %u checked", granted, refused, checked);
}
