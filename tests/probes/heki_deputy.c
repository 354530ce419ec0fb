// SPDX-License-Identifier: GPL-2.0
/*
 * The confused deputy: what the kernel may not write, the hypervisor might write for it, where it
 * completes an instruction; and what the kernel may not read, it might read for a request.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>
#include <asm/io.h>
#include <asm/processor.h>

#include "heki.h"

/* A page of zeros that may be read alone; 0 if there is none. */
static u8 *read_only_page(struct run *run, bool *asked)
{
	u8 *page = (u8 *)get_zeroed_page(GFP_KERNEL);

	if (page)
		*asked = heki_answers(run, "R", heki_request(virt_to_phys(page), 1, R), 0);
	return page;
}

static void free_read_only_page(u8 *page)
{
	heki_request(virt_to_phys(page), 1, R | W | X);
	free_page((unsigned long)page);
}

static enum result verdict(struct run *run, bool asked, const char *written)
{
	if (written)
		return finish(run, SUCCEEDED, "%s wrote", written);
	return asked ? finish(run, REFUSED, "every store faulted, nothing was written") : SUCCEEDED;
}

/*
 * Stores of registers, which exit on one vendor and are then completed by the hypervisor, and
 * what no hypervisor completes.
 */
static enum result store_by_deputy(struct run *run)
{
	const char *written = NULL;
	bool asked;
	u8 *page = read_only_page(run, &asked);

	if (!page)
		return finish(run, UNUSABLE, "no memory");
#define STORE(name, instruction)                                                            \
	do {                                                                                \
		if (ATTEMPT(instruction, (), ([at] "r"(page), "a"(1))) ||                   \
		    memchr_inv(page, 0, PAGE_SIZE))                                         \
			written = written ?: name;                                          \
	} while (0)
	STORE("SGDT", "sgdt (%[at])");
	STORE("SIDT", "sidt (%[at])");
	STORE("STR", "str (%[at])");
	STORE("SLDT", "sldt 8(%[at])");
	STORE("ADD", "lock addl $1, (%[at])");
	STORE("XCHG", "xchgl %%eax, (%[at])");
#undef STORE
	free_read_only_page(page);
	return verdict(run, asked, written);
}

/* Stores that begin in a page that may be written and end in one that may not. */
static enum result crossing_store(struct run *run)
{
	static const u64 pattern = 0x1111111111111111;
	u8 *pages = vzalloc(2 * PAGE_SIZE);
	u8 *second = pages + PAGE_SIZE, *at = second - 4, *to;
	const char *written = NULL;
	const void *from;
	u64 count;
	bool asked;

	if (!pages)
		return finish(run, UNUSABLE, "no memory");
	asked = heki_answers(run, "R", heki_request(physical_of(second), 1, R), 0);
	if (attempt_write64(at, pattern) || READ_ONCE(*(u64 *)at))
		written = "MOV";
	/* Byte by byte: those of the first page may have been written when it faults. */
	to = at, from = &pattern, count = sizeof(pattern);
	if (ATTEMPT("rep movsb", (, "+D"(to), "+S"(from), "+c"(count)), ()) ||
	    READ_ONCE(*(u32 *)second))
		written = written ?: "MOVS";
	heki_request(physical_of(second), 1, R | W | X);
	vfree(pages);
	return verdict(run, asked, written);
}

/* Lists that are not, or not all, in the kernel's own RAM. */
static enum result lists_elsewhere(struct run *run)
{
	struct list *list = (struct list *)get_zeroed_page(GFP_KERNEL);
	enum result result = SUCCEEDED;
	u64 own = 0, self;
	u64 nexts[4];

	if (!list)
		return finish(run, UNUSABLE, "no memory");
	self = virt_to_phys(list);
	hypervisor_counter(OWN_MEMORY, &own);
	nexts[0] = own;
	/* The header ends in the hypervisor's memory. */
	nexts[1] = own - 8;
	nexts[2] = 0xfee00000;
	nexts[3] = -8ull;
	for (int i = 0; i < ARRAY_SIZE(nexts); i++) {
		list->count = 1;
		list->entries[0] = (struct entry){ self, self + PAGE_SIZE, R };
		list->next_physical = nexts[i];
		if (!heki_answers(run, "list that goes on elsewhere",
				  hypercall(PROTECT_MEMORY, self, 0, 0), -14))
			goto out;
	}
	if (attempt_write64(&list->count, 0x77) && READ_ONCE(list->count) == 0x77)
		result = finish(run, REFUSED, "refused, and nothing was applied");
	else
		result = finish(run, SUCCEEDED, "a refused list was applied in part");
out:
	free_page((unsigned long)list);
	return result;
}

/* The second page of the list begins at the first one's entries, so one is part of the other. */
static enum result list_over_itself(struct run *run)
{
	struct list *list = (struct list *)get_zeroed_page(GFP_KERNEL);
	u8 *page = (u8 *)get_zeroed_page(GFP_KERNEL);
	enum result result = SUCCEEDED;
	u64 self, at;
	bool protected;

	if (!list || !page) {
		finish(run, UNUSABLE, "no memory");
		goto free;
	}
	self = virt_to_phys(list);
	at = virt_to_phys(page);
	list->next_physical = self + offsetof(struct list, entries);
	/* As a header: one entry, no next page. */
	list->entries[0] = (struct entry){ 0, 0, 1 };
	list->entries[1] = (struct entry){ at, at + PAGE_SIZE, R };
	/* As an entry of the first page it is an empty range. */
	list->count = 1;
	if (!heki_answers(run, "header as entry", hypercall(PROTECT_MEMORY, self, 0, 0), -22))
		goto free;
	if (!attempt_write8(page, 0)) {
		finish(run, SUCCEEDED, "a refused list was applied in part");
		goto free;
	}
	list->count = 0;
	if (!heki_answers(run, "header alone", hypercall(PROTECT_MEMORY, self, 0, 0), 0))
		goto free;
	protected = !attempt_write8(page, 0x11) && !READ_ONCE(*page);
	heki_request(at, 1, R | W | X);
	if (protected)
		result = finish(run, REFUSED, "read as it stands, and applied");
	else
		finish(run, SUCCEEDED, "the page could be written");
free:
	free_page((unsigned long)list);
	free_page((unsigned long)page);
	return result;
}

/*
 * A page that the kernel has made secret: a list of requests that lies there cannot be read for the
 * kernel either. Also an example of how a kernel uses Ravelin's secret pages.
 */
static enum result secret_pages(struct run *run)
{
	struct list *list = (struct list *)get_zeroed_page(GFP_KERNEL);
	enum result result = SUCCEEDED;
	u64 self, frame;

	if (!list)
		return finish(run, UNUSABLE, "no memory");
	self = virt_to_phys(list);
	frame = self >> PAGE_SHIFT;
	if (!heki_answers(run, "ordinary list", hypercall(PROTECT_MEMORY, self, 0, 0), 0))
		goto free;
	if (!(cpuid_eax(RAVELIN_FEATURES) & RAVELIN_SECRET_PAGES)) {
		finish(run, SUCCEEDED, "CPUID does not offer secret pages");
		goto free;
	}
	if (!heki_answers(run, "none", hypercall(MAKE_SECRET, frame, 0, 0), -22) ||
	    !heki_answers(run, "too many", hypercall(MAKE_SECRET, frame, 513, 0), -22) ||
	    !heki_answers(run, "no RAM", hypercall(MAKE_SECRET, 0xfee00, 1, 0), -14) ||
	    !heki_answers(run, "overflow", hypercall(MAKE_SECRET, -1ull, 2, 0), -14) ||
	    !heki_answers(run, "text",
			  hypercall(MAKE_SECRET, physical_of(_printk) >> PAGE_SHIFT, 1, 0), -1) ||
	    !heki_answers(run, "secret", hypercall(MAKE_SECRET, frame, 1, 0), 0))
		goto free;
	list->count = 0;
	if (!heki_answers(run, "secret list", hypercall(PROTECT_MEMORY, self, 0, 0), -14))
		goto ordinary;
	/* The kernel itself reads and writes it as before. */
	list->next = 0x5ec7e7;
	if (READ_ONCE(list->next) == 0x5ec7e7)
		result = finish(run, REFUSED, "no window opened on it");
	list->next = 0;
ordinary:
	if (!heki_answers(run, "ordinary", hypercall(MAKE_ORDINARY, frame, 1, 0), 0) ||
	    !heki_answers(run, "list again", hypercall(PROTECT_MEMORY, self, 0, 0), 0))
		result = SUCCEEDED;
free:
	free_page((unsigned long)list);
	return result;
}

const struct probe heki_deputy[] = {
	{ "store-by-deputy", "have the hypervisor write for the kernel", store_by_deputy },
	{ "crossing-store", "store across the end of what may be written", crossing_store },
	{ "lists-elsewhere", "lists that go on outside of the kernel's RAM", lists_elsewhere },
	{ "list-over-itself", "a list whose pages overlap", list_over_itself },
	{ "secret-pages", "a list in a page that is secret", secret_pages },
	{}
};
