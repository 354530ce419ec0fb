// SPDX-License-Identifier: GPL-2.0
/*
 * Heki's hypercalls (RFC v2), as a guest kernel makes them: its own four tests, each after a
 * request for what it tests, and requests that must be refused.
 *
 * A case is `protected` only if every answer and every effect was as it must be; `open` if there
 * is no such interface, or an attack worked.
 */
#include <linux/gfp.h>
#include <linux/irqflags.h>
#include <linux/mm.h>
#include <linux/seq_file.h>
#include <asm/cpuid.h>
#include <asm/io.h>
#include <asm/processor-flags.h>

#include "attempt.h"
#include "heki.h"
#include "probes.h"
#include "tables.h"


static struct list *list;

static const u8 constant[2 * PAGE_SIZE] __aligned(PAGE_SIZE) = { 0 };
static u8 after_init[2 * PAGE_SIZE] __aligned(PAGE_SIZE) __ro_after_init = { 0 };
/* mov $0x52415645, %eax; ret */
static const u8 function[PAGE_SIZE] __aligned(PAGE_SIZE) = { 0xb8, 0x45, 0x56, 0x41, 0x52, 0xc3 };

/* Asks for what is in `list`. */
static long request_list(u64 count)
{
	list->next = 0;
	list->next_physical = 0;
	list->count = count;
	return hypercall(PROTECT_MEMORY, virt_to_phys(list), 0, 0);
}

long heki_request(u64 start, u64 pages, u64 permissions)
{
	list->entries[0] = (struct entry){ start, start + pages * PAGE_SIZE, permissions };
	return request_list(1);
}

u64 physical_of(const void *at)
{
	struct leaf leaf;

	return leaf_find(&leaf, (unsigned long)at) ? leaf_physical(&leaf) : 0;
}

/* Notes the first answer that is not as it must be. */
bool heki_answers(struct run *run, const char *what, long answer, long expected)
{
	if (answer == expected)
		return true;
	if (answer == UNDEFINED)
		finish(run, SUCCEEDED, "%s: undefined instruction", what);
	else
		finish(run, SUCCEEDED, "%s: %ld instead of %ld", what, answer, expected);
	return false;
}

static enum result discovery(struct run *run)
{
	for (u32 leaf = 0x40000000; leaf < 0x40010000; leaf += 0x100) {
		u32 eax, name[3];

		cpuid(leaf, &eax, &name[0], &name[1], &name[2]);
		if (!memcmp(name, "KVMKVMKVM\0\0\0", sizeof(name)))
			return finish(run, REFUSED, "KVM's signature in leaf %#x", leaf);
	}
	return finish(run, SUCCEEDED, "no leaf has KVM's signature");
}

static enum result version(struct run *run)
{
	long answer = hypercall(LOCK_CONTROL_REGISTER, 0, 0, FLAG_VERSION);

	if (answer == UNDEFINED)
		return finish(run, SUCCEEDED, "undefined instruction");
	return finish(run, answer == 1 ? REFUSED : SUCCEEDED, "answer %ld", answer);
}

/* Whether a change of a control register is refused and has no effect; undone otherwise. */
bool heki_register_holds(int number, u64 set, u64 clear)
{
	unsigned long flags;
	u64 before, after;
	bool written;

	local_irq_save(flags);
	before = number ? raw_cr4() : raw_cr0();
	after = (before | set) & ~clear;
	written = number ? attempt_cr4(after) : attempt_cr0(after);
	after = number ? raw_cr4() : raw_cr0();
	if (after != before)
		number ? attempt_cr4(before) : attempt_cr0(before);
	local_irq_restore(flags);
	return !written && after == before;
}

/* RFC, test 1. */
static enum result cr_disable_smep(struct run *run)
{
	bool asked;

	if (!(raw_cr4() & X86_CR4_SMEP))
		return finish(run, UNUSABLE, "SMEP is off");
	asked = heki_answers(run, "pin", hypercall(LOCK_CONTROL_REGISTER, 4, X86_CR4_SMEP, 0), 0);
	if (!heki_register_holds(4, 0, X86_CR4_SMEP))
		return finish(run, SUCCEEDED, "SMEP was cleared");
	return asked ? finish(run, REFUSED, "general protection, SMEP is set") : SUCCEEDED;
}

/* Bits that are free until the guest asks. */
static enum result pin_by_request(struct run *run)
{
	if (heki_register_holds(0, 0, X86_CR0_AM) || heki_register_holds(4, X86_CR4_PVI, 0))
		return finish(run, UNUSABLE, "a bit is pinned already");
	if (!heki_answers(run, "pin CR0.AM",
		     hypercall(LOCK_CONTROL_REGISTER, 0, X86_CR0_WP | X86_CR0_AM, 0), 0) ||
	    !heki_answers(run, "pin CR4.PVI to 0",
		     hypercall(LOCK_CONTROL_REGISTER, 4, X86_CR4_PVI, FLAG_ZEROS), 0))
		return SUCCEEDED;
	if (!heki_register_holds(0, 0, X86_CR0_AM))
		return finish(run, SUCCEEDED, "CR0.AM was cleared");
	if (!heki_register_holds(4, X86_CR4_PVI, 0))
		return finish(run, SUCCEEDED, "CR4.PVI was set");
	return finish(run, REFUSED, "CR0.AM stays 1, CR4.PVI stays 0");
}

static enum result bad_pins(struct run *run)
{
	static const struct {
		u64 a0, a1, a2;
	} bad[] = {
		{ 0, 0, 0 },	     { 0, X86_CR0_PG, 0 },
		{ 3, X86_CR0_WP, 0 },	     { 0, X86_CR0_WP, 2 },
		{ 4, X86_CR4_PAE, 0 },	     { 0, X86_CR0_WP | X86_CR0_CD, 0 },
		{ 1ull << 32, X86_CR0_WP, 0 }, { 4, X86_CR4_SMEP, FLAG_ZEROS },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (!heki_answers(run, "bad pin",
			     hypercall(LOCK_CONTROL_REGISTER, bad[i].a0, bad[i].a1, bad[i].a2), -22))
			return SUCCEEDED;
	if (!heki_answers(run, "unknown hypercall", hypercall(15, 0, 0, 0), -1000))
		return SUCCEEDED;
	return finish(run, REFUSED, "every one has its error");
}

/* Makes both pages of `buffer` immutable, then writes by a forged entry (RFC, tests 2 and 3). */
static enum result write_to(struct run *run, const u8 *buffer)
{
	struct leaf leaf;
	bool asked = true, written;
	u8 byte;

	if (!leaf_find(&leaf, (unsigned long)buffer) || leaf.original & ENTRY_WRITE)
		return finish(run, UNUSABLE, "%px is not mapped read-only", buffer);
	for (int page = 0; page < 2; page++) {
		u64 at = physical_of(buffer + page * PAGE_SIZE);

		asked = asked && heki_answers(run, "R, immutable", heki_request(at, 1, R | IMMUTABLE), 0) &&
			heki_answers(run, "then RW", heki_request(at, 1, R | W), -1);
	}
	leaf_forge(&leaf, ENTRY_WRITE, 0);
	written = attempt_write8((void *)buffer, 0x11);
	byte = READ_ONCE(*(const volatile u8 *)buffer);
	if (byte)
		attempt_write8((void *)buffer, 0);
	leaf_restore(&leaf);
	if (written || byte)
		return finish(run, SUCCEEDED, "the byte is %#x", byte);
	return asked ? finish(run, REFUSED, "the write faulted, the byte is 0") : SUCCEEDED;
}

static enum result write_to_const(struct run *run)
{
	return write_to(run, constant);
}

static enum result write_to_ro_after_init(struct run *run)
{
	return write_to(run, after_init);
}

/* RFC, test 4. */
static enum result exec(struct run *run)
{
	u64 at = physical_of(function);
	struct leaf leaf;
	struct call call;
	bool asked;

	if (!leaf_find(&leaf, (unsigned long)function))
		return finish(run, UNUSABLE, "%px is not mapped", function);
	asked = heki_answers(run, "R, immutable", heki_request(at, 1, R | IMMUTABLE), 0) &&
		heki_answers(run, "then RX", heki_request(at, 1, R | X), -1);
	leaf_forge(&leaf, 0, ENTRY_NX);
	call = call_function((void *)function);
	leaf_restore(&leaf);
	if (!call.faulted)
		return finish(run, SUCCEEDED, "the function ran and returned %#x", call.value);
	return asked ? finish(run, REFUSED, "the call faulted") : SUCCEEDED;
}

/* A right is taken away and given back; the RFC's host ignores the former. */
static enum result remove(struct run *run)
{
	u8 *page = (u8 *)get_zeroed_page(GFP_KERNEL);
	enum result result = SUCCEEDED;
	u64 at;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	at = virt_to_phys(page);
	if (!heki_answers(run, "RW", heki_request(at, 1, R | W), 0) ||
	    !heki_answers(run, "R", heki_request(at, 1, R), 0))
		goto out;
	if (attempt_write8(page, 0x11) || READ_ONCE(*page)) {
		finish(run, SUCCEEDED, "a page without WRITE was written");
		goto out;
	}
	/* Nothing is withheld any more. */
	if (!heki_answers(run, "RWX", heki_request(at, 1, R | W | X), 0))
		goto out;
	if (!attempt_write8(page, 0x11) || READ_ONCE(*page) != 0x11)
		result = finish(run, SUCCEEDED, "WRITE was not given back");
	else
		result = finish(run, REFUSED, "WRITE was taken away and given back");
out:
	heki_request(at, 1, R | W | X);
	free_page((unsigned long)page);
	return result;
}

/* A refused request changes nothing, whatever stands before the entry that is wrong. */
static enum result all_or_nothing(struct run *run)
{
	u8 *page = (u8 *)get_zeroed_page(GFP_KERNEL);
	enum result result = SUCCEEDED;
	u64 at;

	if (!page)
		return finish(run, UNUSABLE, "no memory");
	at = virt_to_phys(page);
	list->entries[0] = (struct entry){ at, at + PAGE_SIZE, R };
	list->entries[1] = (struct entry){ 1, PAGE_SIZE, R };
	if (!heki_answers(run, "unaligned", request_list(2), -22))
		goto out;
	list->entries[1] = (struct entry){ at, at + PAGE_SIZE, R };
	if (!heki_answers(run, "overlap", request_list(2), -22))
		goto out;
	list->entries[1] = (struct entry){ physical_of((void *)stext), 0, R | W };
	list->entries[1].end = list->entries[1].start + PAGE_SIZE;
	if (!heki_answers(run, "writable text", request_list(2), -1))
		goto out;
	if (attempt_write8(page, 0x11) && READ_ONCE(*page) == 0x11)
		result = finish(run, REFUSED, "the first entry was not applied");
	else
		result = finish(run, SUCCEEDED, "a refused request was applied in part");
out:
	free_page((unsigned long)page);
	return result;
}

static enum result bad_lists(struct run *run)
{
	u64 self = virt_to_phys(list), own = 0;

	list->entries[0] = (struct entry){ 0, PAGE_SIZE, R | W };
	if (!heki_answers(run, "170 entries", request_list(170), -7))
		return SUCCEEDED;
	list->count = 0;
	list->next_physical = self;
	if (!heki_answers(run, "circle", hypercall(PROTECT_MEMORY, self, 0, 0), -22) ||
	    !heki_answers(run, "list in the APIC", hypercall(PROTECT_MEMORY, 0xfee00000, 0, 0), -14) ||
	    !heki_answers(run, "range in the APIC", heki_request(0xfee00000, 1, R | W), -14) ||
	    !heki_answers(run, "no list", hypercall(PROTECT_MEMORY, 0, 0, 0), 0) ||
	    !heki_answers(run, "no permissions", heki_request(self, 1, 0), -22) ||
	    !heki_answers(run, "unknown permission", heki_request(self, 1, 16), -22) ||
	    !heki_answers(run, "writing alone", heki_request(self, 1, W), -95))
		return SUCCEEDED;
	if (!hypervisor_counter(OWN_MEMORY, &own))
		return finish(run, UNUSABLE, "the hypervisor's memory is not told");
	if (!heki_answers(run, "list in its memory", hypercall(PROTECT_MEMORY, own, 0, 0), -14) ||
	    !heki_answers(run, "range in its memory", heki_request(own, 1, R | W), -14))
		return SUCCEEDED;
	return finish(run, REFUSED, "every one has its error");
}

/* A request for the page that holds it. */
static enum result own_list(struct run *run)
{
	u64 self = virt_to_phys(list);
	struct list *other = (struct list *)get_zeroed_page(GFP_KERNEL);
	struct list *mine = list;
	bool protected;

	if (!other)
		return finish(run, UNUSABLE, "no memory");
	if (!heki_answers(run, "R for the list", heki_request(self, 1, R), 0)) {
		free_page((unsigned long)other);
		return SUCCEEDED;
	}
	protected = !attempt_write64(&mine->count, 0x77) && READ_ONCE(mine->count) == 1;
	list = other;
	heki_request(self, 1, R | W | X);
	list = mine;
	free_page((unsigned long)other);
	if (!protected)
		return finish(run, SUCCEEDED, "the list could be written");
	return finish(run, REFUSED, "the list was read-only");
}

/* What the lock fixed is not widened, and can be asked for again. */
static enum result lock_not_widened(struct run *run)
{
	u64 text = physical_of((void *)stext), data = physical_of((void *)(rodata & PAGE_MASK));

	if (!heki_answers(run, "text RWX", heki_request(text, 1, R | W | X), -1) ||
	    !heki_answers(run, "text RX", heki_request(text, 1, R | X), 0) ||
	    !heki_answers(run, "read-only data RW", heki_request(data, 1, R | W), -1) ||
	    !heki_answers(run, "read-only data RX", heki_request(data, 1, R | X), -1) ||
	    !heki_answers(run, "read-only data R", heki_request(data, 1, R), 0))
		return SUCCEEDED;
	return finish(run, REFUSED, "only what the lock allows is granted");
}

static const struct probe cases[] = {
	{ "discovery", "KVM's signature in CPUID", discovery },
	{ "version", "the version call", version },
	{ "cr-disable-smep", "RFC test 1", cr_disable_smep },
	{ "write-to-const", "RFC test 2", write_to_const },
	{ "write-to-ro-after-init", "RFC test 3", write_to_ro_after_init },
	{ "exec", "RFC test 4", exec },
	{ "pin-by-request", "bits that only the guest pins, to 1 and to 0", pin_by_request },
	{ "bad-pins", "pins that stand for nothing", bad_pins },
	{ "remove", "WRITE taken away and given back", remove },
	{ "all-or-nothing", "refused requests", all_or_nothing },
	{ "bad-lists", "lists that are wrong, or not in RAM", bad_lists },
	{ "own-list", "a request for the list itself", own_list },
	{ "lock-not-widened", "more than the lock allows", lock_not_widened },
	{}
};

unsigned int heki_calls = 3000;

static enum result random(struct run *run)
{
	return heki_random(run, heki_calls);
}

static const struct probe last[] = {
	{ "random", "random requests on all CPUs at once", random },
	{}
};

static const struct probe *const tables[] = { cases, heki_suite, heki_deputy, heki_read, last };

static void show(struct seq_file *file, const struct probe *one)
{
	static const char *const names[] = { "open", "protected", "error" };
	struct run run = {};
	enum result result = one->run(&run);

	seq_printf(file, "%s\t%s\t%s\n", one->name, names[result], run.detail);
}

int heki_begin(void)
{
	list = (struct list *)get_zeroed_page(GFP_KERNEL);
	return list ? 0 : -ENOMEM;
}

void heki_end(void)
{
	free_page((unsigned long)list);
}

int heki_show(struct seq_file *file, void *unused)
{
	int error = heki_begin();

	if (error)
		return error;
	for (size_t i = 0; i < ARRAY_SIZE(tables); i++)
		for (const struct probe *one = tables[i]; one->name; one++)
			show(file, one);
	heki_end();
	return 0;
}
