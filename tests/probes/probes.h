/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What every probe shares: its result, the symbols that the module was given, and the
 * table of probes.
 *
 * Rules for a probe:
 *  - it says `succeeded` only after it has seen the effect (the byte read back, the function run);
 *  - after the first refusal it touches nothing forbidden again, so that it leaves one event;
 *  - after a success it undoes its damage, so that the kernel lives on.
 */
#ifndef RAVELIN_PROBES_H
#define RAVELIN_PROBES_H

#include <linux/types.h>

enum result {
	SUCCEEDED, /* the attack worked */
	REFUSED, /* a fault was taken, or the write had no effect */
	UNUSABLE, /* the probe could not be set up; says nothing about protection */
};

/* One run of one probe. */
struct run {
	unsigned long user; /* user page, mapped readable, writable and executable; or 0 */
	char detail[192]; /* for people */
};

struct probe {
	const char *name;
	const char *description;
	enum result (*run)(struct run *run);
	bool (*applies)(void); /* NULL: everywhere */
};

/* Each file has one table, ended by an entry without a name. */
extern const struct probe text_probes[];
extern const struct probe patch_probes[];
extern const struct probe execute_probes[];
extern const struct probe control_probes[];
extern const struct probe descriptor_probes[];
extern const struct probe machine_probes[];
extern const struct probe race_probes[];
/* Kills a CPU where it succeeds, so it comes last. */
extern const struct probe last_probes[];
/* What only a policy refuses that denies what is allowed by default. */
extern const struct probe kprobe_probes[];
extern const struct probe jit_probes[];

/* Addresses from /proc/kallsyms, given as module parameters. */
extern unsigned long stext, etext, rodata, ro_after_init, jump_start, jump_end;
extern unsigned long call_start, call_end, stats_key, call_key, jit_enable;

/* Writes `run->detail` and hands `result` through. */
__printf(3, 4) enum result finish(struct run *run, enum result result, const char *format, ...);

bool more_than_one_cpu(void);

/* text.c: a writable alias of the kernel text page that holds `address`, until text_unalias(). */
void *text_alias(unsigned long address);
void text_unalias(void *alias);

/* execute.c: what a call of a page that is no code returns. */
struct call {
	bool faulted;
	u32 value; /* EAX after the call */
};
/* Writes `mov $value, %eax; ret` to `at`. */
void write_function(void *at, u32 value);
/* Calls `target`, which write_function() made; a fault on its first byte ends the call. */
struct call call_function(void *target);
int execute_init(void);
void execute_exit(void);

/* module.c: keeps a mapping of the page that holds `function`, which is freed after init. */
int module_init_text(void *function);
void module_exit_text(void);
extern const struct probe module_probes[];

/* raced.S: a page of text with nothing in it but this function, which returns a constant. */
void raced_function(void);

/* descriptors.c: LDTR and TR, loaded with forged descriptors. */
enum result ldt_load(struct run *run);
enum result tr_load(struct run *run);

/* machine.c: powers off by ACPI alone, while other CPUs may be dead. */
void power_off(void);

/* state.c: SUCCEEDED if every register was kept. */
enum result check_state(struct run *run);

/* heki.c: runs every case; "name, tab, protected or open or error, tab, detail" for each. */
struct seq_file;
int heki_show(struct seq_file *file, void *unused);
/* restore.c: what only requests protect; asked for, or restored. */
int restore_show(struct seq_file *file, void *unused);
long restore_do(const char *word);
/* Random requests that each CPU makes. */
extern unsigned int heki_calls;

#endif
