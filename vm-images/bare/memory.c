/* The working set: written at the set rate, and verified so that any lost or stale page is found. A page looks as in
 * the Linux guest (../memory.c says why): a header {magic, page, generation, check} and 508 words that follow from
 * (seed, page, generation); what generation each page must have is kept in a table apart.
 *
 * Each writing processor has a part of its own, which nobody else writes or reads. A part may have a hot and a cold
 * piece. What a processor other than the first finds damaged it leaves to the first to tell. */
#include "bare.h"

#define WORDS (PAGE_BYTES / 8)
#define HEADER 4u
#define SAMPLES 8u
#define MAGIC UINT64_C(0x4547415050474d51) /* "QMGPPAGE" */
#define GOLDEN UINT64_C(0x9e3779b97f4a7c15)

#define QUANTUM_NS (5 * NS_PER_MS)
/* With nothing to write: most of what an idle guest costs its host is waking up. */
#define IDLE_QUANTUM_NS (50 * NS_PER_MS)
/* A sweep takes about this long, but never more than this share of the time: it must not eat the rate. */
#define SWEEP_PERIOD_NS (2 * NS_PER_S)
#define SWEEP_SHARE 8u
/* Behind by more than this, the writer forgets the rest: no burst after a pause. */
#define MAX_DEBT_NS (100 * NS_PER_MS)
/* Work is done in portions that take about this long, so that a tick is not late. Not shorter: while dirty pages are
 * logged a page takes 100 us and more where KVM is software, and looking at the clocks between portions takes longer. */
#define PORTION_NS (4 * NS_PER_MS)
#define MIN_PORTION 128u
#define MAX_PORTION 4096u
/* After so many QM BAD lines the sweep's count must do: the first ones tell, the rest only fill the log. */
#define MAX_BAD_LINES 32u

typedef uint64_t pair __attribute__((vector_size(16)));

/* Pages that are written in turn, scattered, each once a round. */
struct piece {
	uint64_t first, pages, stride, next;
};

struct damage {
	uint64_t page, expected, found;
	unsigned offset;
};

struct part {
	uint64_t first, pages;
	struct piece hot, cold;
	unsigned turn;      /* of 100 writes so many have not gone to the hot piece yet */
	uint64_t since;     /* when it was last counted what is due */
	uint64_t owed;      /* pages to write, */
	uint64_t fraction;  /* and what is not yet a page */
	unsigned portion;   /* pages written at a time */
	volatile uint64_t written;

	uint64_t sweep, next, bad; /* the sweep that runs or was finished, and how far it is */
	int64_t sweep_ns;          /* time it may take */
	uint64_t sweep_fraction, sweep_due;
	unsigned sweep_portion;
	volatile uint64_t sweep_done;
	volatile uint64_t sweep_bad;

	struct damage damage[MAX_BAD_LINES];
	volatile unsigned damaged;
	unsigned told;
} __attribute__((aligned(64)));

static uint64_t *memory;
static uint32_t *generations;
static struct part parts[MAX_CPUS];
static uint64_t pages;
static volatile uint32_t rate_mib_s;
/* Which sweep all processors make, and whether it goes before everything else. */
static volatile uint64_t sweep_wanted;
static volatile bool hurry;

uint64_t memory_pages_written(void)
{
	uint64_t sum = 0;

	for (unsigned cpu = 0; cpu < cpus_writing; cpu++)
		sum += parts[cpu].written;
	return sum;
}

void memory_set_rate(uint32_t rate)
{
	rate_mib_s = rate;
}

static uint64_t mixed(uint64_t value)
{
	value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
	return value ^ value >> 31;
}

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

static void write_page(struct part *part, uint64_t page)
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
	part->written++;
}

/* Notes the first wrong word of a page; there is one. The page is rewritten, or one fault would be told for ever. */
static void note_damage(struct part *part, uint64_t page)
{
	const uint64_t *found = memory + page * WORDS;

	for (unsigned word = 0; word < WORDS && part->damaged < MAX_BAD_LINES; word++) {
		uint64_t expected = expected_word(page, generations[page], word);

		if (found[word] == expected)
			continue;
		part->damage[part->damaged] = (struct damage){ page, expected, found[word], word * 8 };
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		part->damaged++;
		break;
	}
	write_page(part, page);
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

static struct piece piece_of(uint64_t first, uint64_t count)
{
	struct piece piece = { .first = first, .pages = count, .stride = count * 5 / 8 | 1 };

	for (;; piece.stride += 2) {
		uint64_t a = piece.stride, b = count;

		while (b) {
			uint64_t rest = a % b;

			a = b;
			b = rest;
		}
		if (a == 1)
			break;
	}
	return piece;
}

void memory_prepare(void)
{
	uint64_t bytes = (uint64_t)settings.ws_mib << 20;

	pages = bytes / PAGE_BYTES;
	generations = ram_take(pages * sizeof(*generations));
	memory = ram_map_working_set(bytes);
	memset(generations, 0, pages * sizeof(*generations));
	for (unsigned cpu = 0; cpu < cpus_writing; cpu++) {
		struct part *part = &parts[cpu];
		uint64_t hot;

		part->first = pages * cpu / cpus_writing;
		part->pages = pages * (cpu + 1) / cpus_writing - part->first;
		hot = part->pages * settings.hot / 100;
		if (settings.hot && !hot)
			hot = 1;
		part->hot = piece_of(part->first, hot ? hot : 1);
		part->cold = piece_of(part->first + hot, part->pages - hot);
		part->portion = part->sweep_portion = MIN_PORTION;
	}
	rate_mib_s = settings.rate_mib_s;
}

/* Writes generation 1 of every page of a part. */
void memory_fill(unsigned cpu)
{
	struct part *part = &parts[cpu];

	for (uint64_t page = part->first; page < part->first + part->pages; page++)
		write_page(part, page);
	part->since = mono_ns();
}

static uint64_t next_of(struct piece *piece)
{
	uint64_t page = piece->first + piece->next;

	piece->next += piece->stride;
	if (piece->next >= piece->pages)
		piece->next %= piece->pages;
	return page;
}

static void write_next(struct part *part, uint64_t count)
{
	while (count--) {
		struct piece *piece = &part->cold;
		uint64_t page;

		if (settings.hot) {
			part->turn += settings.hot_writes;
			if (part->turn >= 100) {
				part->turn -= 100;
				piece = &part->hot;
			}
		}
		page = next_of(piece);
		if (settings.verify && !sample_right(page))
			note_damage(part, page);
		else
			write_page(part, page);
	}
}

/* Adds what has become due in so much time. */
static void owe(struct part *part, uint32_t rate, uint64_t elapsed)
{
	const uint64_t a_page = NS_PER_S * cpus_writing;
	uint64_t most = (uint64_t)rate * PAGES_PER_MIB * MAX_DEBT_NS / a_page + 1;

	if (rate == RATE_UNLIMITED) {
		part->owed = MAX_PORTION;
		return;
	}
	if (!rate)
		part->owed = 0;
	part->fraction += (elapsed < MAX_DEBT_NS ? elapsed : MAX_DEBT_NS) * rate * PAGES_PER_MIB;
	part->owed += part->fraction / a_page;
	part->fraction %= a_page;
	if (part->owed > most)
		part->owed = most;
}

static void adapt(unsigned *portion, uint64_t took)
{
	if (took < PORTION_NS / 2 && *portion < MAX_PORTION)
		*portion *= 2;
	else if (took > PORTION_NS * 3 / 2 && *portion > MIN_PORTION)
		*portion /= 2;
}

/* A stale page of the table does not hide behind stale pages of the working set. */
static bool table_right(struct part *part)
{
	uint64_t sum = 0;

	for (uint64_t page = part->first; page < part->first + part->pages; page++)
		sum += generations[page];
	if (sum == part->written)
		return true;
	if (part->damaged < MAX_BAD_LINES) {
		part->damage[part->damaged] = (struct damage){ UINT64_MAX, part->written, sum, 0 };
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		part->damaged++;
	}
	part->written = sum;
	return false;
}

/* Verifies a portion if one is due; true if more could follow at once. */
static bool sweep_some(struct part *part, uint64_t now, uint64_t elapsed)
{
	bool at_once = hurry;
	uint64_t count, took;

	if (part->sweep != sweep_wanted) {
		part->sweep = sweep_wanted;
		part->next = part->bad = part->sweep_due = 0;
		part->sweep_ns = 0;
	}
	if (part->sweep == part->sweep_done)
		return false;
	part->sweep_ns += (int64_t)(elapsed / SWEEP_SHARE);
	if (part->sweep_ns > (int64_t)IDLE_QUANTUM_NS)
		part->sweep_ns = IDLE_QUANTUM_NS;
	part->sweep_fraction += (elapsed < NS_PER_S ? elapsed : NS_PER_S) * part->pages;
	part->sweep_due += part->sweep_fraction / SWEEP_PERIOD_NS + (part->sweep_fraction > 0 && !part->next);
	part->sweep_fraction %= SWEEP_PERIOD_NS;
	if (!at_once && (part->sweep_ns <= 0 || !part->sweep_due))
		return false;
	count = part->pages - part->next;
	if (count > part->sweep_portion)
		count = part->sweep_portion;
	if (!at_once && count > part->sweep_due)
		count = part->sweep_due;
	for (uint64_t end = part->next + count; part->next < end; part->next++)
		if (!page_right(part->first + part->next)) {
			part->bad++;
			note_damage(part, part->first + part->next);
		}
	part->sweep_due -= count < part->sweep_due ? count : part->sweep_due;
	if (part->next == part->pages) {
		part->sweep_bad = part->bad + !table_right(part);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		part->sweep_done = part->sweep;
		return false;
	}
	took = mono_ns() - now;
	part->sweep_ns -= (int64_t)took;
	if (count == part->sweep_portion || took > PORTION_NS)
		adapt(&part->sweep_portion, took);
	return at_once || (part->sweep_due && part->sweep_ns > 0);
}

/* Does a portion of what is due now. Returns when more is. */
uint64_t memory_step(unsigned cpu, uint64_t now)
{
	struct part *part = &parts[cpu];
	uint32_t rate = rate_mib_s;
	uint64_t elapsed = now - part->since, began = now, count;
	bool more = false;

	part->since = now;
	owe(part, rate, elapsed);
	count = part->owed < part->portion ? part->owed : part->portion;
	if (count) {
		write_next(part, count);
		part->owed -= count;
		now = mono_ns();
		if (count == part->portion || now - began > PORTION_NS)
			adapt(&part->portion, now - began);
		more = part->owed > 0;
	}
	if (settings.verify)
		more |= sweep_some(part, now, elapsed);
	return more ? began : began + (rate ? QUANTUM_NS : IDLE_QUANTUM_NS);
}

static uint64_t sweeps, since_tick, not_before;

static void sweep_begin(uint64_t now)
{
	since_tick = tick_now();
	not_before = now + SWEEP_PERIOD_NS / 2;
	sweep_wanted++;
}

void memory_verify_now(void)
{
	sweep_begin(mono_ns()); /* what was read before does not count */
	hurry = true;
}

/* Tells of what the processors found; the first one does that for all. */
void memory_report(uint64_t now)
{
	static unsigned lines;
	uint64_t bad = 0;
	bool done = true;

	for (unsigned cpu = 0; cpu < cpus_writing; cpu++) {
		struct part *part = &parts[cpu];

		done &= part->sweep_done == sweep_wanted;
		for (; part->told < part->damaged; part->told++) {
			const struct damage *damage = &part->damage[part->told];

			if (lines++ >= MAX_BAD_LINES)
				continue;
			if (damage->page == UINT64_MAX)
				serial_line("QM BAD table=%u expected=0x%llx found=0x%llx offset=0", cpu,
					    (unsigned long long)damage->expected, (unsigned long long)damage->found);
			else
				serial_line("QM BAD page=%llu expected=0x%llx found=0x%llx offset=%u",
					    (unsigned long long)damage->page, (unsigned long long)damage->expected,
					    (unsigned long long)damage->found, damage->offset);
		}
		bad += part->sweep_bad;
	}
	if (!settings.verify || !done)
		return;
	if (sweep_wanted > sweeps) {
		sweeps = sweep_wanted;
		hurry = false;
		if (bad)
			serial_line("QM V %llu bad pages=%llu since=%llu bad=%llu", (unsigned long long)sweeps,
				    (unsigned long long)pages, (unsigned long long)since_tick, (unsigned long long)bad);
		else
			serial_line("QM V %llu ok pages=%llu since=%llu", (unsigned long long)sweeps,
				    (unsigned long long)pages, (unsigned long long)since_tick);
	}
	if (now >= not_before)
		sweep_begin(now);
}
