// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that can be executed and not read, where the CPU can tell: Intel's EPT. AMD's nested
 * tables cannot, and the request must say so.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <asm/desc.h>
#include <asm/io.h>

#include "heki.h"
#include "tables.h"

#define UNSUPPORTED (-95)

void unread_function(void);

/* Asks for execution alone. Where the answer ends the case, `*result` is how. */
static bool ask(struct run *run, u64 at, long *answer, enum result *result)
{
	*answer = heki_request(at, 1, X);
	*result = finish(run, REFUSED, "no such right on this CPU, and the answer says so");
	return *answer != UNSUPPORTED || boot_cpu_data.x86_vendor == X86_VENDOR_INTEL;
}

static bool readable(const void *at)
{
	u64 seen;

	return attempt_read64(at, &seen);
}

/* A page of module code: while it is data, and when it has become code by promotion. */
static enum result execute_only(struct run *run)
{
	u8 *page = (u8 *)unread_function;
	u64 at = physical_of(page);
	enum result result;
	struct call call;
	long answer;
	u8 *alias;

	/* A write makes data of it. */
	alias = text_alias((unsigned long)page + PAGE_SIZE / 2);
	if (!alias || !attempt_write8(alias, 0xcc))
		return finish(run, UNUSABLE, "the module's text has no writable alias");
	text_unalias(alias);
	if (!ask(run, at, &answer, &result))
		return result;
	if (readable(page))
		return finish(run, SUCCEEDED, "data was read");
	call = call_function(page);
	if (call.faulted || call.value != 0x52415645)
		return finish(run, UNUSABLE, "it was not executed");
	if (readable(page))
		return finish(run, SUCCEEDED, "code was read");
	if (!heki_answers(run, "execution alone", answer, 0) ||
	    !heki_answers(run, "a list in it", hypercall(PROTECT_MEMORY, at, 0, 0), -14) ||
	    !heki_answers(run, "R and X", heki_request(at, 1, R | X), 0))
		return SUCCEEDED;
	if (!readable(page))
		return finish(run, UNUSABLE, "READ was not given back");
	return finish(run, REFUSED, "executed, not read, and READ was given back");
}

/* Text of the kernel that runs at boot only; it stays so. */
static enum result execute_only_text(struct run *run)
{
	u64 at = physical_of((void *)stext);
	enum result result;
	long answer;

	if (!ask(run, at, &answer, &result))
		return result;
	if (readable((void *)stext))
		return finish(run, SUCCEEDED, "text was read");
	if (readable(phys_to_virt(at)))
		return finish(run, SUCCEEDED, "text was read through the direct map");
	if (!heki_answers(run, "execution alone", answer, 0) ||
	    !heki_answers(run, "R and X", heki_request(at, 1, R | X), -1))
		return SUCCEEDED;
	return finish(run, REFUSED, "text is not read any more");
}

/* An instruction that the hypervisor completes has its operand in such a page. */
static enum result read_by_deputy(struct run *run)
{
	struct desc_ptr *table = (struct desc_ptr *)get_zeroed_page(GFP_KERNEL);
	enum result result;
	long answer;
	bool loaded;
	u64 at;

	if (!table)
		return finish(run, UNUSABLE, "no memory");
	at = virt_to_phys(table);
	asm volatile("sidt %0" : "=m"(*table));
	if (ask(run, at, &answer, &result)) {
		loaded = ATTEMPT("lidt (%[table])", (), ([table] "r"(table)));
		if (loaded)
			result = finish(run, SUCCEEDED, "LIDT read its operand");
		else
			result = finish(run, REFUSED, "LIDT faulted");
		heki_request(at, 1, R | W | X);
	}
	free_page((unsigned long)table);
	return result;
}

const struct probe heki_read[] = {
	{ "execute-only", "read module code that may be executed alone", execute_only },
	{ "execute-only-text", "read kernel text that may be executed alone", execute_only_text },
	{ "read-by-deputy", "have the hypervisor read for the kernel", read_by_deputy },
	{}
};
