// SPDX-License-Identifier: GPL-2.0
/* Text of a module, this one: while it is loaded, and after its init text was freed. */
#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "attempt.h"
#include "probes.h"
#include "tables.h"

#define VALUE 0x52415645u

static struct page *init_page;
/* Writable and executable from the time when the page was the module's init text. */
static void *init_alias;
static struct leaf init_leaf;

int module_init_text(void *function)
{
	init_page = vmalloc_to_page(function);
	if (!init_page)
		return -EINVAL;
	/* The page is not given to anybody else. */
	get_page(init_page);
	init_alias = vmap(&init_page, 1, VM_MAP, PAGE_KERNEL);
	if (!init_alias || !leaf_find(&init_leaf, (unsigned long)init_alias)) {
		module_exit_text();
		return -ENOMEM;
	}
	leaf_forge(&init_leaf, 0, ENTRY_NX);
	return 0;
}

void module_exit_text(void)
{
	if (init_alias)
		vunmap(init_alias);
	put_page(init_page);
}

static enum result ran(struct run *run, void *target)
{
	struct call call = call_function(target);

	if (call.faulted)
		return finish(run, REFUSED, "call of %px faulted", target);
	if (call.value != VALUE)
		return finish(run, REFUSED, "call of %px ran what it was before", target);
	return finish(run, SUCCEEDED, "%px ran after it was changed", target);
}

static enum result module_text_pte(struct run *run)
{
	void *target = raced_function;
	enum result result;
	struct leaf leaf;

	if (!leaf_find(&leaf, (unsigned long)target))
		return finish(run, UNUSABLE, "%px is not mapped", target);
	leaf_forge(&leaf, ENTRY_WRITE, 0);
	if (attempt_write32(target + 1, VALUE))
		result = ran(run, target);
	else
		result = finish(run, REFUSED, "write to %px faulted", target);
	leaf_restore(&leaf);
	return result;
}

static enum result init_text(struct run *run)
{
	write_function(init_alias, VALUE);
	return ran(run, init_alias);
}

const struct probe module_probes[] = {
	{ "module-text-pte", "write a module's text by its entry, and run it", module_text_pte },
	{ "init-text", "write freed init text that is still executable, and run it", init_text },
	{}
};
