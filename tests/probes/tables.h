/* SPDX-License-Identifier: GPL-2.0 */
/* The page tables of this CPU, read and forged by hand. */
#ifndef RAVELIN_TABLES_H
#define RAVELIN_TABLES_H

#include <linux/types.h>

#define ENTRY_PRESENT BIT_ULL(0)
#define ENTRY_WRITE BIT_ULL(1)
#define ENTRY_USER BIT_ULL(2)
#define ENTRY_LARGE BIT_ULL(7)
#define ENTRY_NX BIT_ULL(63)
#define ENTRY_ADDRESS 0x000ffffffffff000ull

/* The entry that maps one address. */
struct leaf {
	unsigned long address;
	u64 *entry; /* through the direct map */
	u64 original;
	unsigned int shift; /* log2 of the bytes it maps: 12, 21 or 30 */
};

/* Finds the leaf of `address` under CR3; false if nothing is mapped there. */
bool leaf_find(struct leaf *leaf, unsigned long address);
/* Physical address behind `leaf->address`. */
u64 leaf_physical(const struct leaf *leaf);
/* Rewrites the entry and flushes the address on this CPU only. */
void leaf_forge_here(struct leaf *leaf, u64 set, u64 clear);
/* Rewrites the entry and flushes the address on every CPU. Interrupts must be on. */
void leaf_forge(struct leaf *leaf, u64 set, u64 clear);
/* Puts the entry back and flushes on every CPU. Interrupts must be on. */
void leaf_restore(struct leaf *leaf);

#endif
