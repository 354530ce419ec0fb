// SPDX-License-Identifier: GPL-2.0
/*
 * Abuse of the way in which a kernel patches its own text: the road is the legitimate one, a
 * temporary writable alias; the place or the bytes are not.
 */
#include <linux/irqflags.h>
#include <linux/jump_label.h>
#include <linux/mm.h>
#include <linux/reboot.h>
#include <linux/static_call_types.h>
#include <linux/stop_machine.h>
#include <linux/string.h>

#include "attempt.h"
#include "probes.h"

/* What the kernel itself puts at a static branch that is not taken. */
static const u8 NOP5[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };

/* A static branch of the kernel, inside one page, that holds the 5-byte NOP now; 0 if none. */
static unsigned long jump_site(void)
{
	const struct jump_entry *entry = (const struct jump_entry *)jump_start;

	for (; entry < (const struct jump_entry *)jump_end; entry++) {
		unsigned long site = jump_entry_code(entry);

		if (site >= stext && site < etext && offset_in_page(site) < PAGE_SIZE - 8 &&
		    !memcmp((const void *)site, NOP5, sizeof(NOP5)))
			return site;
	}
	return 0;
}

/* `size` (1 or 4) bytes at `target` become `value`, and what they were again. */
static enum result patch(struct run *run, unsigned long target, u32 value, unsigned int size)
{
	void *alias = text_alias(target);
	u32 old = 0, now = 0;
	unsigned long flags;
	bool written;

	if (!alias)
		return finish(run, UNUSABLE, "no alias of %#lx", target);
	local_irq_save(flags);
	memcpy(&old, (const void *)target, size);
	written = size == 1 ? attempt_write8(alias, value) : attempt_write32(alias, value);
	barrier();
	memcpy(&now, (const void *)target, size);
	if (now != old)
		size == 1 ? attempt_write8(alias, old) : attempt_write32(alias, old);
	local_irq_restore(flags);
	text_unalias(alias);

	if (!written)
		return finish(run, REFUSED, "patch of %#lx faulted", target);
	if (now != value)
		return finish(run, REFUSED, "patch of %#lx had no effect", target);
	return finish(run, SUCCEEDED, "%#lx patched from %#x to %#x", target, old, now);
}

/*
 * Turns the NOP into another NOP of the same length that the kernel never writes: CPUs that
 * run through it meanwhile do not notice.
 */
static enum result patch_site_bytes(struct run *run)
{
	unsigned long site = jump_site();

	if (!site)
		return finish(run, UNUSABLE, "no static branch that is a NOP");
	return patch(run, site + 1, 0x5a00441f, 4);
}

/* The 8-byte NOP with which compilers pad, after prefixes, up to an aligned function. */
static const u8 NOP8[] = { 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00 };

/* The start of a NOP that stands behind an int3, so nothing runs into it; 0 if there is none. */
static unsigned long unpatchable_text(void)
{
	for (unsigned long at = stext + 16; at < etext; at += 16) {
		const u8 *nop = (const u8 *)at - sizeof(NOP8);

		if (memcmp(nop, NOP8, sizeof(NOP8)))
			continue;
		while (nop[-1] == 0x66 || nop[-1] == 0x2e)
			nop--;
		if (nop[-1] == 0xcc)
			return (unsigned long)nop;
	}
	return 0;
}

/* Not even a kprobe goes into an instruction. */
static enum result patch_int3(struct run *run)
{
	unsigned long target = unpatchable_text();

	if (!target)
		return finish(run, UNUSABLE, "no padding in kernel text");
	return patch(run, target + 1, 0xcc, 1);
}

/* What a kprobe does, where the policy allows none. */
static enum result kprobe_text(struct run *run)
{
	unsigned long target = unpatchable_text();

	if (!target)
		return finish(run, UNUSABLE, "no padding in kernel text");
	return patch(run, target, 0xcc, 1);
}

/* A change of a patch site by the kernel's own steps. */
struct change {
	unsigned long place;
	void *alias;
	u8 length; /* 2 or 5 */
	u8 new[5];
	bool skip_tail; /* Goes from the breakpoint to the first byte at once. */
	/* What came of it. */
	bool written;
	u8 now[5];
};

static bool write_tail(const struct change *change, const u8 *bytes)
{
	u32 tail;

	if (change->length == 2)
		return attempt_write8(change->alias + 1, bytes[1]);
	memcpy(&tail, bytes + 1, sizeof(tail));
	return attempt_write32(change->alias + 1, tail);
}

/*
 * Makes the change, looks, and goes back by the same road. All other CPUs are stopped: none of
 * them runs into the breakpoint.
 */
static int make_change(void *data)
{
	struct change *change = data;
	u8 old[5] = {};

	memcpy(old, (const void *)change->place, change->length);
	change->written = attempt_write8(change->alias, 0xcc) &&
			  (change->skip_tail || write_tail(change, change->new)) &&
			  attempt_write8(change->alias, change->new[0]);
	barrier();
	memcpy(change->now, (const void *)change->place, change->length);
	/* After a refusal nothing but the breakpoint is there. */
	if (change->now[0] != 0xcc && change->now[0] != old[0])
		attempt_write8(change->alias, 0xcc);
	if (memcmp(change->now + 1, old + 1, change->length - 1))
		write_tail(change, old);
	if (change->now[0] != old[0])
		attempt_write8(change->alias, old[0]);
	return 0;
}

static enum result make(struct run *run, struct change *change)
{
	bool changed;

	change->alias = text_alias(change->place);
	if (!change->alias)
		return finish(run, UNUSABLE, "no alias of %#lx", change->place);
	stop_machine(make_change, change, NULL);
	text_unalias(change->alias);
	changed = change->now[0] == change->new[0] &&
		  (change->skip_tail ||
		   !memcmp(change->now, change->new, change->length));
	if (!change->written)
		return finish(run, REFUSED, "patch of %#lx faulted, it held %*ph", change->place,
			      change->length, change->now);
	if (!changed)
		return finish(run, REFUSED, "patch of %#lx had no effect", change->place);
	return finish(run, SUCCEEDED, "%#lx patched to %*ph", change->place, change->length,
		      change->now);
}

/*
 * A static branch of the scheduler's statistics, which nothing here runs through, while it is a NOP;
 * `distance` is that of its jump.
 */
static bool branch_site(struct change *change, s32 *distance)
{
	static const u8 NOP2[] = { 0x66, 0x90 };
	const struct jump_entry *entry = (const struct jump_entry *)jump_start;

	for (; entry < (const struct jump_entry *)jump_end; entry++) {
		unsigned long site = jump_entry_code(entry);

		if ((unsigned long)jump_entry_key(entry) != stats_key || site < stext ||
		    site >= etext || offset_in_page(site) > PAGE_SIZE - sizeof(NOP5))
			continue;
		if (!memcmp((const void *)site, NOP5, sizeof(NOP5)))
			change->length = 5;
		else if (!memcmp((const void *)site, NOP2, sizeof(NOP2)))
			change->length = 2;
		else
			continue;
		change->place = site;
		change->new[0] = change->length == 2 ? 0xeb : 0xe9;
		*distance = jump_entry_target(entry) - (site + change->length);
		return true;
	}
	return false;
}

/* The steps in the wrong order: the first byte of the jump before its distance. */
static enum result patch_order(struct run *run)
{
	struct change change = { .skip_tail = true };
	s32 distance;

	if (!branch_site(&change, &distance))
		return finish(run, UNUSABLE, "no static branch of the statistics is a NOP");
	return make(run, &change);
}

static enum result patch_jump_target(struct run *run)
{
	struct change change = {};
	s32 distance;

	if (!branch_site(&change, &distance))
		return finish(run, UNUSABLE, "no static branch of the statistics is a NOP");
	distance++;
	memcpy(change.new + 1, &distance, change.length - 1);
	return make(run, &change);
}

/* A static call of the performance counters' driver, which there is none of, is led past the first byte of a function. */
static enum result patch_static_call(struct run *run)
{
	const struct static_call_site *site = (const struct static_call_site *)call_start;
	struct change change = { .length = 5, .new = { 0xe8 } };
	s32 distance;

	for (; site < (const struct static_call_site *)call_end; site++) {
		unsigned long place = (unsigned long)&site->addr + site->addr;
		unsigned long key = (unsigned long)&site->key + site->key;
		u8 first;

		if ((key & ~STATIC_CALL_SITE_FLAGS) != call_key || place < stext || place >= etext ||
		    key & STATIC_CALL_SITE_TAIL ||
		    offset_in_page(place) > PAGE_SIZE - sizeof(NOP5))
			continue;
		first = *(const u8 *)place;
		if (first != 0xe8 && first != NOP5[0])
			continue;
		change.place = place;
		distance = (unsigned long)emergency_restart + 1 - (place + sizeof(NOP5));
		memcpy(change.new + 1, &distance, sizeof(distance));
		return make(run, &change);
	}
	return finish(run, UNUSABLE, "no static call of the performance counters");
}

/*
 * Where a function that nobody calls while this runs calls the tracer, if that is a NOP now and
 * all on one page; 0 if not.
 */
static unsigned long traced_place(void)
{
	static const u8 ENDBR64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	unsigned long place = (unsigned long)emergency_restart;

	if (!memcmp((const void *)place, ENDBR64, sizeof(ENDBR64)))
		place += sizeof(ENDBR64);
	if (offset_in_page(place) > PAGE_SIZE - sizeof(NOP5) ||
	    memcmp((const void *)place, NOP5, sizeof(NOP5)))
		return 0;
	return place;
}

/* Takes the tracer's own road: breakpoint, distance, first byte. Only the target is another. */
static enum result patch_traced(struct run *run)
{
	struct change change = { .place = traced_place(), .length = 5, .new = { 0xe8 } };
	s32 distance = (unsigned long)write_function - (change.place + sizeof(NOP5));

	if (!change.place)
		return finish(run, UNUSABLE, "no place of the tracer that is a NOP");
	memcpy(change.new + 1, &distance, sizeof(distance));
	return make(run, &change);
}

const struct probe patch_probes[] = {
	{ "patch-site-bytes", "patch a static branch with bytes it never has", patch_site_bytes },
	{ "patch-order", "finish the patch of a static branch in the wrong order", patch_order },
	{ "patch-jump-target", "make a static branch jump somewhere else", patch_jump_target },
	{ "patch-static-call", "make a static call call the middle of a function",
	  patch_static_call },
	{ "patch-traced", "make a traced function call what is no tracer", patch_traced },
	{ "patch-int3", "put a breakpoint inside an instruction", patch_int3 },
	{}
};

const struct probe kprobe_probes[] = {
	{ "kprobe-text", "put a kprobe into kernel text under kprobes = \"deny\"", kprobe_text },
	{}
};
