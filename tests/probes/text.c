// SPDX-License-Identifier: GPL-2.0
/* Writes to kernel text and read-only data, by every road that leads there. */
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>
#include <asm/processor-flags.h>

#include "attempt.h"
#include "probes.h"
#include "tables.h"

#define PADDING 8

/* A byte between two functions, that nothing ever executes; 0 if there is none. */
static unsigned long unused_text(void)
{
	unsigned int run = 0;

	for (unsigned long at = stext; at < etext; at++) {
		run = *(const u8 *)at == 0xcc ? run + 1 : 0;
		if (run == PADDING)
			return at - PADDING / 2;
	}
	return 0;
}

/*
 * Writes the byte `target` through `alias` (which may be `target` itself), looks at `target`,
 * and puts the byte back if it changed.
 */
static enum result overwrite(struct run *run, unsigned long target, void *alias)
{
	volatile const u8 *seen = (const u8 *)target;
	unsigned long flags;
	bool written;
	u8 old, new, now;

	local_irq_save(flags);
	old = *seen;
	new = old ^ 1;
	written = attempt_write8(alias, new);
	now = *seen;
	if (now != old)
		attempt_write8(alias, old);
	local_irq_restore(flags);

	if (!written)
		return finish(run, REFUSED, "write to %px faulted", alias);
	if (now != new)
		return finish(run, REFUSED, "write to %px had no effect", alias);
	return finish(run, SUCCEEDED, "byte at %px changed from %#x to %#x", (void *)target, old, now);
}

/* Makes `alias` writable by its page-table entry, then overwrites `target` through it. */
static enum result overwrite_forged(struct run *run, unsigned long target, unsigned long alias)
{
	enum result result;
	struct leaf leaf;

	if (!target || !leaf_find(&leaf, alias))
		return finish(run, UNUSABLE, "%#lx is not mapped", alias);
	leaf_forge(&leaf, ENTRY_WRITE, 0);
	result = overwrite(run, target, (void *)alias);
	leaf_restore(&leaf);
	return result;
}

static enum result text_wp(struct run *run)
{
	unsigned long target = unused_text(), flags;
	enum result result;
	u64 cr0;

	if (!target)
		return finish(run, UNUSABLE, "no padding in kernel text");
	local_irq_save(flags);
	cr0 = raw_cr0();
	if (!attempt_cr0(cr0 & ~X86_CR0_WP)) {
		result = finish(run, REFUSED, "clearing CR0.WP faulted");
	} else if (raw_cr0() & X86_CR0_WP) {
		result = finish(run, REFUSED, "clearing CR0.WP had no effect");
	} else {
		result = overwrite(run, target, (void *)target);
		attempt_cr0(cr0);
	}
	local_irq_restore(flags);
	return result;
}

static enum result text_pte(struct run *run)
{
	unsigned long target = unused_text();

	return overwrite_forged(run, target, target);
}

void *text_alias(unsigned long address)
{
	struct leaf leaf;
	struct page *page;
	void *alias;

	if (!leaf_find(&leaf, address))
		return NULL;
	page = pfn_to_page(leaf_physical(&leaf) >> PAGE_SHIFT);
	alias = vmap(&page, 1, VM_MAP, PAGE_KERNEL);
	return alias ? alias + offset_in_page(address) : NULL;
}

void text_unalias(void *alias)
{
	vunmap((void *)((unsigned long)alias & PAGE_MASK));
}

static enum result text_vmap(struct run *run)
{
	unsigned long target = unused_text();
	void *alias = text_alias(target);
	enum result result;

	if (!alias)
		return finish(run, UNUSABLE, "no alias of %#lx", target);
	result = overwrite(run, target, alias);
	text_unalias(alias);
	return result;
}

static enum result text_directmap(struct run *run)
{
	unsigned long target = unused_text();
	struct leaf leaf;

	if (!leaf_find(&leaf, target))
		return finish(run, UNUSABLE, "%#lx is not mapped", target);
	return overwrite_forged(run, target, (unsigned long)__va(leaf_physical(&leaf)));
}

static enum result rodata_pte(struct run *run)
{
	return overwrite_forged(run, rodata, rodata);
}

static enum result ro_after_init_pte(struct run *run)
{
	return overwrite_forged(run, ro_after_init, ro_after_init);
}

const struct probe text_probes[] = {
	{ "text-wp", "write kernel text after clearing CR0.WP", text_wp },
	{ "text-pte", "write kernel text after making its page-table entry writable", text_pte },
	{ "text-vmap", "write kernel text through a second, writable mapping", text_vmap },
	{ "text-directmap", "write kernel text through the direct map", text_directmap },
	{ "rodata-pte", "write read-only data after making its entry writable", rodata_pte },
	{ "ro-after-init-pte", "write read-only-after-init data by its entry", ro_after_init_pte },
	{}
};
