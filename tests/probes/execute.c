// SPDX-License-Identifier: GPL-2.0
/*
 * Execution at CPL 0 of bytes that are no kernel code, after the kernel's own page tables were
 * made to allow it.
 */
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/kdebug.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/vmalloc.h>
#include <asm/asm.h>
#include <asm/nospec-branch.h>

#include "probes.h"
#include "tables.h"

#define VALUE 0x52415645u

/* The address whose execution may fault just now; 0 when none is expected. */
static unsigned long expected;
static bool faulted;

/* Lets a fault on the first byte of a called function return to its caller. */
static int on_fault(struct notifier_block *block, unsigned long event, void *data)
{
	struct pt_regs *regs = ((struct die_args *)data)->regs;

	if ((event != DIE_GPF && event != DIE_OOPS) || !regs || user_mode(regs) || !expected ||
	    regs->ip != expected)
		return NOTIFY_DONE;
	faulted = true;
	regs->ip = *(const unsigned long *)regs->sp;
	regs->sp += sizeof(unsigned long);
	return NOTIFY_STOP;
}

static struct notifier_block fault_block = { .notifier_call = on_fault, .priority = INT_MAX };

int execute_init(void)
{
	return register_die_notifier(&fault_block);
}

void execute_exit(void)
{
	unregister_die_notifier(&fault_block);
}

void write_function(void *at, u32 value)
{
	u8 code[] = { 0xb8, value, value >> 8, value >> 16, value >> 24, 0xc3 };

	memcpy(at, code, sizeof(code));
}

struct call call_function(void *target)
{
	unsigned long flags;
	struct call call;
	u32 value = 0;

	local_irq_save(flags);
	faulted = false;
	expected = (unsigned long)target;
	asm volatile(ANNOTATE_RETPOLINE_SAFE "call *%[target]"
		     : "+a"(value), ASM_CALL_CONSTRAINT
		     : [target] "r"(target)
		     : "memory", "cc");
	expected = 0;
	call = (struct call){ faulted, value };
	local_irq_restore(flags);
	return call;
}

/* Forges the entry of `target`, calls it, and puts the entry back. */
static enum result execute(struct run *run, void *target, u64 clear)
{
	struct leaf leaf;
	struct call call;

	if (!leaf_find(&leaf, (unsigned long)target))
		return finish(run, UNUSABLE, "%px is not mapped", target);
	leaf_forge(&leaf, 0, clear);
	call = call_function(target);
	leaf_restore(&leaf);
	if (call.faulted)
		return finish(run, REFUSED, "call of %px faulted", target);
	if (call.value != VALUE)
		return finish(run, REFUSED, "call of %px ran nothing", target);
	return finish(run, SUCCEEDED, "%px ran at CPL 0", target);
}

static enum result exec_data_nx(struct run *run)
{
	void *page = (void *)__get_free_page(GFP_KERNEL);
	enum result result;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	write_function(page, VALUE);
	result = execute(run, page, ENTRY_NX);
	free_page((unsigned long)page);
	return result;
}

static enum result exec_vmalloc_w(struct run *run)
{
	void *page = vmalloc(PAGE_SIZE);
	enum result result;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	write_function(page, VALUE);
	result = execute(run, page, ENTRY_NX);
	vfree(page);
	return result;
}

/* Lies in the module range, where a page may become code, if no alias of it is writable. */
static u8 module_page[PAGE_SIZE] __aligned(PAGE_SIZE);

static enum result exec_module_data(struct run *run)
{
	write_function(module_page, VALUE);
	return execute(run, module_page, ENTRY_NX);
}

static enum result exec_module_alias(struct run *run)
{
	write_function(module_page, VALUE);
	return execute(run, module_page, ENTRY_NX | ENTRY_WRITE);
}

/* The bytes at `run->user` are what write_function() makes with VALUE; user space put them. */
static enum result exec_user_pte(struct run *run)
{
	return execute(run, (void *)run->user, ENTRY_NX | ENTRY_USER);
}

static enum result exec_user_directmap(struct run *run)
{
	struct leaf leaf;

	if (!leaf_find(&leaf, run->user))
		return finish(run, UNUSABLE, "no user page was given");
	return execute(run, __va(leaf_physical(&leaf)), ENTRY_NX);
}

const struct probe execute_probes[] = {
	{ "exec-data-nx", "run a data page after clearing NX in its entry", exec_data_nx },
	{ "exec-vmalloc-w", "run a writable vmalloc page after clearing NX", exec_vmalloc_w },
	{ "exec-module-data", "run a module's writable data after clearing NX", exec_module_data },
	{ "exec-module-alias", "run a module page that the direct map can write",
	  exec_module_alias },
	{ "exec-user-pte", "run a user page at CPL 0 after clearing its U bit", exec_user_pte },
	{ "exec-user-directmap", "run a user page through the direct map (ret2dir)",
	  exec_user_directmap },
	{}
};
