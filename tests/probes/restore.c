// SPDX-License-Identifier: GPL-2.0
/*
 * What the lock leaves open and requests protect, at places that are the same in every life of a
 * kernel that is started with nokaslr: bits of CR0 and CR4, text that has done its work, and a page
 * of low memory, which Linux reserves and does not use. For states that are saved in one life and
 * restored in another.
 */
#include <linux/mm.h>
#include <linux/seq_file.h>
#include <asm/io.h>
#include <asm/processor-flags.h>

#include "attempt.h"
#include "heki.h"

#define LOW_PAGE 0x50000
#define RET 0xc3

static const char *register_of(int number, u64 set, u64 clear)
{
	return heki_register_holds(number, set, clear) ? "protected" : "open";
}

/* Runs a return among the bytes of a page that only ran at boot. */
static const char *run_boot_text(void)
{
	const u8 *page = (const u8 *)stext;
	const u8 *at = memchr(page, RET, PAGE_SIZE);

	if (!at)
		return "error";
	return call_function((void *)at).faulted ? "protected" : "open";
}

static const char *write_low_page(void)
{
	u8 *at = phys_to_virt(LOW_PAGE);
	u8 before = READ_ONCE(*at);
	bool written = attempt_write8(at, ~before) || READ_ONCE(*at) != before;

	if (written)
		WRITE_ONCE(*at, before);
	return written ? "open" : "protected";
}

int restore_show(struct seq_file *file, void *unused)
{
	seq_printf(file, "cr0-am\t%s\n", register_of(0, 0, X86_CR0_AM));
	seq_printf(file, "cr4-pvi\t%s\n", register_of(4, X86_CR4_PVI, 0));
	seq_printf(file, "boot-text\t%s\n", run_boot_text());
	seq_printf(file, "low-page\t%s\n", write_low_page());
	return 0;
}

static long ask(void)
{
	long error = heki_begin();

	if (error)
		return error;
	error = hypercall(LOCK_CONTROL_REGISTER, 0, X86_CR0_WP | X86_CR0_AM, 0);
	if (!error)
		error = hypercall(LOCK_CONTROL_REGISTER, 4, X86_CR4_PVI, FLAG_ZEROS);
	if (!error)
		error = heki_request(physical_of((void *)stext), 1, R);
	if (!error)
		error = heki_request(LOW_PAGE, 1, R | IMMUTABLE);
	heki_end();
	return error;
}

/* `ask` has all of it protected; `restore` says that memory is what it was. 0 or an error. */
long restore_do(const char *word)
{
	if (!strcmp(word, "ask"))
		return ask();
	if (!strcmp(word, "restore"))
		return hypercall(RESTORE_STATE, 0, 0, 0);
	return -EINVAL;
}
