// SPDX-License-Identifier: GPL-2.0
#include <linux/mm.h>
#include <linux/smp.h>
#include <asm/processor-flags.h>

#include "attempt.h"
#include "tables.h"

bool leaf_find(struct leaf *leaf, unsigned long address)
{
	u64 table = raw_cr3() & ENTRY_ADDRESS;
	unsigned int shift = raw_cr4() & X86_CR4_LA57 ? 48 : 39;

	for (;; shift -= 9) {
		u64 *entry = (u64 *)__va(table) + (address >> shift & 511);

		if (!(*entry & ENTRY_PRESENT))
			return false;
		if (shift == 12 || (shift <= 30 && *entry & ENTRY_LARGE)) {
			*leaf = (struct leaf){ address, entry, *entry, shift };
			return true;
		}
		table = *entry & ENTRY_ADDRESS;
	}
}

u64 leaf_physical(const struct leaf *leaf)
{
	u64 mask = (1ull << leaf->shift) - 1;

	return (leaf->original & ENTRY_ADDRESS & ~mask) | (leaf->address & mask);
}

static void flush(void *address)
{
	asm volatile("invlpg (%0)" : : "r"(address) : "memory");
}

void leaf_forge_here(struct leaf *leaf, u64 set, u64 clear)
{
	WRITE_ONCE(*leaf->entry, (leaf->original | set) & ~clear);
	flush((void *)leaf->address);
}

void leaf_forge(struct leaf *leaf, u64 set, u64 clear)
{
	WRITE_ONCE(*leaf->entry, (leaf->original | set) & ~clear);
	on_each_cpu(flush, (void *)leaf->address, 1);
}

void leaf_restore(struct leaf *leaf)
{
	leaf_forge(leaf, 0, 0);
}
