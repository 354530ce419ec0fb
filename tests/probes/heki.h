/* SPDX-License-Identifier: GPL-2.0 */
/* Heki's hypercalls: numbers, structures, the call. */
#ifndef RAVELIN_HEKI_H
#define RAVELIN_HEKI_H

#include <linux/limits.h>
#include <linux/types.h>

#include "attempt.h"
#include "probes.h"

#define LOCK_CONTROL_REGISTER 13
#define PROTECT_MEMORY 14
/* Ravelin's own. */
#define MAKE_SECRET 0x52564c4e00000001ull
#define MAKE_ORDINARY 0x52564c4e00000002ull
#define RESTORE_STATE 0x52564c4e00000005ull
#define RAVELIN_FEATURES 0x40000002
#define RAVELIN_SECRET_PAGES 1u
#define FLAG_VERSION 1ull
#define FLAG_ZEROS (1ull << 63)

#define R 1ull
#define W 2ull
#define X 4ull
#define IMMUTABLE 8ull

#define UNDEFINED LONG_MIN

/* One page of a list, and one entry. */
struct entry {
	u64 start, end, permissions;
};

struct list {
	u64 next, next_physical, count;
	struct entry entries[169];
};

/* The answer, or UNDEFINED where there is no such instruction. */
static inline long hypercall(u64 number, u64 a0, u64 a1, u64 a2)
{
	u64 answer = number;
	bool done;

	if (boot_cpu_data.x86_vendor == X86_VENDOR_INTEL)
		done = ATTEMPT("vmcall", (, "+a"(answer)), ("b"(a0), "c"(a1), "d"(a2)));
	else
		done = ATTEMPT("vmmcall", (, "+a"(answer)), ("b"(a0), "c"(a1), "d"(a2)));
	return done ? (long)answer : UNDEFINED;
}

/* heki.c: asks for rights of pages; the answer. */
long heki_request(u64 start, u64 pages, u64 permissions);
/* Whether the answer is as expected; if not, that is the case's outcome. */
bool heki_answers(struct run *run, const char *what, long answer, long expected);
/* Whether a change of CR0 or CR4 is refused and has no effect; undone otherwise. */
bool heki_register_holds(int number, u64 set, u64 clear);
/* The page for lists of requests. */
int heki_begin(void);
void heki_end(void);
/* Where a mapped address leads, or 0. */
u64 physical_of(const void *at);

/* heki_suite.c: registers. heki_deputy.c: what the hypervisor does for others. heki_read.c: READ. */
extern const struct probe heki_suite[], heki_deputy[], heki_read[];

/* heki_random.c */
enum result heki_random(struct run *run, unsigned int calls_per_cpu);

#endif
