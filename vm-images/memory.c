/* The working set: written at the set rate, and verified so that any lost or stale page is found.
 *
 * Every 4 KiB page is a function of (seed, page number, generation): a header {magic, page, generation, check} and
 * 508 words that follow from it. The expected generation of each page is kept apart, in a table. So a page that was
 * lost, is stale, or landed elsewhere differs from what the table says; and should a page of the table be stale
 * together with its pages, then the sum of the table no longer equals the number of writes that was counted.
 *
 * Verified: the header (all of it) and 8 words spread over the page before each rewrite; every word of every page
 * in each sweep. A page that migration leaves stale is stale as a whole, so the header finds it before it is
 * overwritten; the sampled words and the sweep are for damage within a page. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "workload.h"

#define PAGE_BYTES 4096u
#define PAGES_PER_MIB 256u
#define WORDS (PAGE_BYTES / 8)
#define HEADER 4u
#define SAMPLES 8u
#define MAGIC UINT64_C(0x4547415050474d51) /* "QMGPPAGE" */
#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)

#define QUANTUM_NS (5 * NS_PER_MS)
/* With nothing to write: most of what an idle guest costs its host is waking up. */
#define IDLE_QUANTUM_NS (50 * NS_PER_MS)
#define PORTION 512u
/* A sweep takes about this long, but never more than this share of a quantum: it must not eat the rate. */
#define SWEEP_PERIOD_NS (2 * NS_PER_S)
#define SWEEP_SHARE 8u
/* Behind by more than this, the writer forgets the rest: no burst after a pause. */
#define MAX_DEBT_NS (100 * NS_PER_MS)
/* After so many QM BAD lines the sweep's count must do: the first ones tell, the rest only fill the log. */
#define MAX_BAD_LINES 32u

typedef uint64_t pair __attribute__((vector_size(16)));

static uint64_t *memory;
static uint32_t *generations;
static uint64_t pages, stride;
static atomic_ullong written;
static atomic_uint rate_mib_s;
static atomic_bool hurry;
static unsigned bad_lines;

uint64_t memory_pages_written(void)
{
	return atomic_load_explicit(&written, memory_order_relaxed);
}

void memory_set_rate(unsigned mib_s)
{
	atomic_store(&rate_mib_s, mib_s);
}

void memory_verify_now(void)
{
	atomic_store(&hurry, true);
}

/* One thread writes it, others read it. */
static void written_one(void)
{
	atomic_store_explicit(&written, memory_pages_written() + 1, memory_order_relaxed);
}

static uint64_t mixed(uint64_t value)
{
	value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
	return value ^ value >> 31;
}

/* Where the page's words start; word i of the body is start + i * GOLDEN: one addition each, which is what keeps a
 * full check affordable where every instruction is emulated, and nothing that compresses. */
static uint64_t start_of(uint64_t page, uint32_t generation)
{
	return mixed(mixed(settings.seed + page * GOLDEN) + generation);
}

static uint64_t expected_word(uint64_t page, uint32_t generation, unsigned word)
{
	uint64_t start = start_of(page, generation);

	switch (word) {
	case 0:
		return MAGIC;
	case 1:
		return page;
	case 2:
		return generation;
	case 3:
		return mixed(start);
	default:
		return start + word * GOLDEN;
	}
}

static void write_page(uint64_t page)
{
	uint64_t *word = memory + page * WORDS;
	uint32_t generation = ++generations[page];
	uint64_t start = start_of(page, generation);
	pair *at = (pair *)(word + HEADER), *end = (pair *)(word + WORDS);
	pair value = { start + HEADER * GOLDEN, start + (HEADER + 1) * GOLDEN };
	const pair step = { 2 * GOLDEN, 2 * GOLDEN };

	word[0] = MAGIC;
	word[1] = page;
	word[2] = generation;
	word[3] = mixed(start);
	for (; at < end; value += step)
		*at++ = value;
}

/* Reports the first wrong word of a page; there is one. The page is rewritten, or one fault would be told for ever. */
static void report(uint64_t page)
{
	const uint64_t *found = memory + page * WORDS;

	for (unsigned word = 0; word < WORDS; word++) {
		uint64_t expected = expected_word(page, generations[page], word);

		if (found[word] == expected)
			continue;
		if (bad_lines++ < MAX_BAD_LINES)
			serial_line("QM BAD page=%llu expected=0x%llx found=0x%llx offset=%u", (unsigned long long)page,
				    (unsigned long long)expected, (unsigned long long)found[word], word * 8);
		break;
	}
	write_page(page);
	written_one();
}

static bool header_right(uint64_t page, uint64_t start)
{
	const uint64_t *word = memory + page * WORDS;

	return word[0] == MAGIC && word[1] == page && word[2] == generations[page] && word[3] == mixed(start);
}

/* The header and SAMPLES words, other ones in each generation. */
static bool sample_right(uint64_t page)
{
	const uint64_t *word = memory + page * WORDS;
	uint64_t start = start_of(page, generations[page]), wrong = 0;
	unsigned at = HEADER + (unsigned)(start % (WORDS / SAMPLES - HEADER));

	for (unsigned i = 0; i < SAMPLES; i++, at += WORDS / SAMPLES)
		wrong |= word[at] ^ (start + at * GOLDEN);
	return !wrong && header_right(page, start);
}

static bool page_right(uint64_t page)
{
	const uint64_t *word = memory + page * WORDS;
	uint64_t start = start_of(page, generations[page]);
	const pair *at = (const pair *)(word + HEADER), *end = (const pair *)(word + WORDS);
	pair value = { start + HEADER * GOLDEN, start + (HEADER + 1) * GOLDEN };
	const pair step = { 2 * GOLDEN, 2 * GOLDEN };
	pair wrong = { 0, 0 };

	for (; at < end; value += step)
		wrong |= *at++ ^ value;
	return !(wrong[0] | wrong[1]) && header_right(page, start);
}

static uint64_t gcd(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

static void *map(uint64_t bytes, const char *what)
{
	void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (at == MAP_FAILED)
		die("%s: %s", what, strerror(errno));
	return at;
}

/* Allocates the working set and writes generation 1 of every page. */
void memory_fill(void)
{
	struct sysinfo info;
	uint64_t bytes = (uint64_t)settings.ws_mib << 20, table;

	pages = bytes / PAGE_BYTES;
	table = pages * sizeof(*generations);
	/* Asked first: an init that runs the kernel out of memory ends in a panic that explains nothing. */
	sysinfo(&info);
	if (bytes + table + (UINT64_C(16) << 20) > (uint64_t)info.freeram * info.mem_unit)
		die("qm.ws=%u does not fit: %llu MiB are free", settings.ws_mib,
		    (unsigned long long)((uint64_t)info.freeram * info.mem_unit >> 20));
	memory = map(bytes, "working set");
	generations = map(table, "table of generations");
	/* Scattered, yet each page once a round: neither a neighbour's prefetch nor chance decides what is dirty. */
	for (stride = pages * 5 / 8 | 1; gcd(stride, pages) != 1; stride += 2)
		;
	for (uint64_t page = 0; page < pages; page++)
		write_page(page);
	atomic_store(&written, pages);
	atomic_store(&rate_mib_s, settings.rate_mib_s);
}

/* Adds what has become due since the last call to *owed, bounded; the fraction of a page is carried over. */
static void owe(uint64_t *owed, uint64_t now)
{
	static uint64_t since, counted;
	static unsigned rate = UINT32_MAX;
	unsigned wanted = atomic_load(&rate_mib_s);
	uint64_t total, most;

	if (wanted != rate) {
		rate = wanted;
		since = now;
		counted = 0;
		*owed = 0;
	}
	total = (uint64_t)((unsigned __int128)(now - since) * rate * PAGES_PER_MIB / NS_PER_S);
	most = (uint64_t)rate * PAGES_PER_MIB * MAX_DEBT_NS / NS_PER_S;
	*owed += total - counted;
	counted = total;
	if (*owed > most)
		*owed = most;
}

static void write_next(uint64_t count)
{
	static uint64_t next;

	while (count--) {
		if (settings.verify && !sample_right(next)) {
			report(next);
		} else {
			write_page(next);
			written_one();
		}
		next += stride;
		if (next >= pages)
			next -= pages;
	}
}

/* Of the whole table: a stale page of it does not hide behind stale pages of the working set. */
static bool table_right(void)
{
	uint64_t sum = 0;

	for (uint64_t page = 0; page < pages; page++)
		sum += generations[page];
	if (sum == memory_pages_written())
		return true;
	serial_line("QM BAD table=0 expected=0x%llx found=0x%llx offset=0", (unsigned long long)memory_pages_written(),
		    (unsigned long long)sum);
	atomic_store(&written, sum);
	return false;
}

static void sweep_some(uint64_t quantum_ns)
{
	static uint64_t next, bad, sweep, since_tick, not_before;
	bool at_once = atomic_exchange(&hurry, false);
	uint64_t now = mono_ns(), stop = at_once ? UINT64_MAX : now + quantum_ns / SWEEP_SHARE;
	uint64_t most = at_once ? pages : pages * quantum_ns / SWEEP_PERIOD_NS + 1;

	if (at_once)
		next = 0; /* asked for now: what was read before does not count */
	if (!next) {
		if (now < not_before && !at_once)
			return;
		since_tick = tick_now();
		bad = 0;
		not_before = now + SWEEP_PERIOD_NS / 2;
	}
	for (; most && next < pages; most--, next++) {
		if (!page_right(next)) {
			bad++;
			report(next);
		}
		if (!(next % 8) && mono_ns() > stop)
			most = 1;
	}
	if (next < pages)
		return;
	bad += !table_right();
	next = 0;
	if (bad)
		serial_line("QM V %llu bad pages=%llu since=%llu bad=%llu", (unsigned long long)++sweep,
			    (unsigned long long)pages, (unsigned long long)since_tick, (unsigned long long)bad);
	else
		serial_line("QM V %llu ok pages=%llu since=%llu", (unsigned long long)++sweep, (unsigned long long)pages,
			    (unsigned long long)since_tick);
}

static void *write_and_sweep(void *unused)
{
	uint64_t next = mono_ns(), owed = 0;

	(void)unused;
	for (;;) {
		uint64_t quantum_ns = atomic_load(&rate_mib_s) ? QUANTUM_NS : IDLE_QUANTUM_NS;
		uint64_t now = mono_ns(), count;

		owe(&owed, now);
		/* In portions, so that the sweep gets its share also where the rate is more than the machine can do. */
		count = owed < PORTION ? owed : PORTION;
		write_next(count);
		owed -= count;
		if (settings.verify)
			sweep_some(quantum_ns);
		next += quantum_ns;
		now = mono_ns();
		if (owed || next <= now)
			next = now;
		else
			sleep_until(next);
	}
	return NULL;
}

void memory_start(void)
{
	thread_start(write_and_sweep, 0);
}
