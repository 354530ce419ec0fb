// SPDX-License-Identifier: GPL-2.0
/* Forged descriptor tables. */
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/smp.h>
#include <asm/desc.h>

#include "attempt.h"
#include "probes.h"
#include "tables.h"

typedef void (*store)(struct desc_ptr *table);
typedef bool (*load)(const struct desc_ptr *table);

static void store_idtr(struct desc_ptr *table)
{
	asm volatile("sidt %0" : "=m"(*table));
}

static void store_gdtr(struct desc_ptr *table)
{
	asm volatile("sgdt %0" : "=m"(*table));
}

static bool attempt_lidt(const struct desc_ptr *table)
{
	return ATTEMPT("lidt (%[table])", (), ([table] "r"(table)));
}

static bool attempt_lgdt(const struct desc_ptr *table)
{
	return ATTEMPT("lgdt (%[table])", (), ([table] "r"(table)));
}

/* Moves the table to a copy of itself, which an attacker could then fill at leisure. */
static enum result move_table(struct run *run, store store, load load)
{
	struct desc_ptr before, forged, after;
	unsigned long flags, page = __get_free_page(GFP_KERNEL);
	bool loaded;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	local_irq_save(flags);
	store(&before);
	memcpy((void *)page, (const void *)before.address, min_t(size_t, before.size + 1, PAGE_SIZE));
	forged = (struct desc_ptr){ .size = before.size, .address = page };
	loaded = load(&forged);
	store(&after);
	if (after.address != before.address)
		load(&before);
	local_irq_restore(flags);
	free_page(page);

	if (!loaded)
		return finish(run, REFUSED, "load of the forged table faulted");
	if (after.address != page)
		return finish(run, REFUSED, "load of the forged table had no effect");
	return finish(run, SUCCEEDED, "table moved from %#lx to %#lx", before.address, after.address);
}

static enum result idt_load(struct run *run)
{
	return move_table(run, store_idtr, attempt_lidt);
}

static enum result gdt_load(struct run *run)
{
	return move_table(run, store_gdtr, attempt_lgdt);
}

static bool attempt_lldt(u16 selector)
{
	return ATTEMPT("lldt %w[selector]", (), ([selector] "r"((u32)selector)));
}

static bool attempt_ltr(u16 selector)
{
	return ATTEMPT("ltr %w[selector]", (), ([selector] "r"((u32)selector)));
}

enum result ldt_load(struct run *run)
{
	unsigned long flags, page = get_zeroed_page(GFP_KERNEL);
	ldt_desc *slot, old;
	u16 before, after;
	bool loaded;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	local_irq_save(flags);
	slot = (ldt_desc *)(get_cpu_gdt_rw(smp_processor_id()) + GDT_ENTRY_LDT);
	old = *slot;
	set_tssldt_descriptor(slot, page, DESC_LDT, PAGE_SIZE - 1);
	asm volatile("sldt %0" : "=m"(before));
	loaded = attempt_lldt(GDT_ENTRY_LDT * 8);
	asm volatile("sldt %0" : "=m"(after));
	if (after != before)
		attempt_lldt(before);
	*slot = old;
	local_irq_restore(flags);
	free_page(page);

	if (!loaded)
		return finish(run, REFUSED, "LLDT faulted");
	if (after != GDT_ENTRY_LDT * 8)
		return finish(run, REFUSED, "LLDT had no effect");
	return finish(run, SUCCEEDED, "LDTR changed from %#x to %#x", before, after);
}

/*
 * LTR marks the descriptor busy, in the table that GDTR names: the kernel maps that one
 * read-only, so its entry is forged too.
 */
enum result tr_load(struct run *run)
{
	unsigned long flags, page = get_zeroed_page(GFP_KERNEL);
	struct desc_ptr gdt;
	struct leaf leaf;
	tss_desc *slot, old, idle;
	bool loaded, busy;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	store_gdtr(&gdt);
	if (!leaf_find(&leaf, gdt.address)) {
		free_page(page);
		return finish(run, UNUSABLE, "the GDT is not mapped");
	}
	leaf_forge(&leaf, ENTRY_WRITE, 0);
	local_irq_save(flags);
	slot = (tss_desc *)(get_cpu_gdt_rw(smp_processor_id()) + GDT_ENTRY_TSS);
	old = *slot;
	memcpy((void *)page, (const void *)(get_desc_base((struct desc_struct *)&old) |
					    (u64)old.base3 << 32), sizeof(struct x86_hw_tss));
	set_tssldt_descriptor(slot, page, DESC_TSS, __KERNEL_TSS_LIMIT);
	loaded = attempt_ltr(GDT_ENTRY_TSS * 8);
	busy = READ_ONCE(((u32 *)slot)[1]) & BIT(9);
	if (loaded && busy) {
		idle = old;
		idle.type = DESC_TSS;
		*slot = idle;
		attempt_ltr(GDT_ENTRY_TSS * 8);
	} else {
		*slot = old;
	}
	local_irq_restore(flags);
	leaf_restore(&leaf);
	free_page(page);

	if (!loaded)
		return finish(run, REFUSED, "LTR faulted");
	if (!busy)
		return finish(run, REFUSED, "LTR had no effect");
	return finish(run, SUCCEEDED, "TR moved to %#lx", page);
}

const struct probe descriptor_probes[] = {
	{ "idt-load", "load a forged IDT", idt_load },
	{ "gdt-load", "load a forged GDT", gdt_load },
	{ "ldt-load", "load a forged LDT", ldt_load },
	{ "tr-load", "load a forged task state", tr_load },
	{}
};
