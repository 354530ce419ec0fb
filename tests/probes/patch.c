// SPDX-License-Identifier: GPL-2.0
/*
 * Abuse of the way in which a kernel patches its own text: the road is the legitimate one, a
 * temporary writable alias; the place or the bytes are not.
 */
#include <linux/irqflags.h>
#include <linux/jump_label.h>
#include <linux/mm.h>
#include <linux/reboot.h>
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

static enum result patch_int3(struct run *run)
{
	unsigned long target = unpatchable_text();

	if (!target)
		return finish(run, UNUSABLE, "no padding in kernel text");
	return patch(run, target, 0xcc, 1);
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
	unsigned long place = traced_place(), flags;
	s32 distance = (unsigned long)write_function - (place + sizeof(NOP5));
	u8 now[sizeof(NOP5)];
	bool written, changed;
	void *alias;
	u32 tail;

	if (!place)
		return finish(run, UNUSABLE, "no place of the tracer that is a NOP");
	alias = text_alias(place);
	if (!alias)
		return finish(run, UNUSABLE, "no alias of %#lx", place);
	memcpy(&tail, NOP5 + 1, sizeof(tail));
	local_irq_save(flags);
	written = attempt_write8(alias, 0xcc) && attempt_write32(alias + 1, distance) &&
		  attempt_write8(alias, 0xe8);
	barrier();
	memcpy(now, (const void *)place, sizeof(now));
	changed = now[0] == 0xe8 && !memcmp(now + 1, &distance, sizeof(distance));
	/* Back by the same road; after a refusal only the breakpoint is there. */
	if (now[0] == 0xe8)
		attempt_write8(alias, 0xcc);
	if (memcmp(now + 1, &tail, sizeof(tail)))
		attempt_write32(alias + 1, tail);
	if (now[0] != NOP5[0])
		attempt_write8(alias, NOP5[0]);
	local_irq_restore(flags);
	text_unalias(alias);

	if (!written)
		return finish(run, REFUSED, "patch of %#lx faulted, it held %5ph", place, now);
	if (!changed)
		return finish(run, REFUSED, "patch of %#lx had no effect", place);
	return finish(run, SUCCEEDED, "%#lx patched to %5ph", place, now);
}

const struct probe patch_probes[] = {
	{ "patch-site-bytes", "patch a static branch with bytes it never has", patch_site_bytes },
	{ "patch-traced", "make a traced function call what is no tracer", patch_traced },
	{ "patch-int3", "put a breakpoint where no patch site is", patch_int3 },
	{}
};
