/* The tick: a number that must go on without a gap, and the guest's own measure of how long it did not run. */
#include <stdatomic.h>
#include <stdio.h>

#include "workload.h"

/* At most this often a line; ticks in between are covered by the next one. A 1 ms tick printed one by one would
 * need 40 kB/s, a 115200 baud line carries 11. */
#define LINE_PERIOD_NS (50 * NS_PER_MS)

static atomic_ullong ticks;

/* The last tick that was counted; 0 before the first. */
uint64_t tick_now(void)
{
	return atomic_load_explicit(&ticks, memory_order_relaxed);
}

static void end_when_due(uint64_t tick)
{
	if (tick == settings.poweroff_after_ticks)
		request_end(END_POWEROFF);
	if (tick == settings.reboot_after_ticks)
		request_end(END_REBOOT);
	if (tick == settings.panic_after_ticks)
		request_end(END_PANIC);
}

static bool print(uint64_t first, uint64_t last, uint64_t now, uint64_t gap_ns)
{
	char covered[48];
	unsigned long long gap_us = (gap_ns + 999) / 1000;

	if (first == last)
		snprintf(covered, sizeof(covered), "%llu", (unsigned long long)last);
	else
		snprintf(covered, sizeof(covered), "%llu-%llu", (unsigned long long)first, (unsigned long long)last);
	return serial_try("QM T %s %llu %llu %llu", covered, (unsigned long long)now,
			  (unsigned long long)memory_pages_written(), gap_us);
}

static void *tick_forever(void *unused)
{
	const uint64_t period = settings.tick_ms * NS_PER_MS;
	uint64_t last = mono_ns(), next = last + period, line_due = next;
	uint64_t tick = 0, first = 1, largest_gap = 0;

	(void)unused;
	for (;;) {
		uint64_t now;

		sleep_until(next);
		now = mono_ns();
		tick++;
		atomic_store_explicit(&ticks, tick, memory_order_relaxed);
		if (now - last > largest_gap)
			largest_gap = now - last;
		last = now;
		if (now >= line_due && print(first, tick, now, largest_gap)) {
			first = tick + 1;
			largest_gap = 0;
			line_due += ((now - line_due) / LINE_PERIOD_NS + 1) * LINE_PERIOD_NS;
		}
		end_when_due(tick);
		/* Deadlines that passed while we did not run are skipped, not made up for: the gap says it. */
		next += period;
		if (next <= now)
			next += (now - next) / period * period + period;
	}
	return NULL;
}

void tick_start(void)
{
	thread_start(tick_forever, PRIORITY_TICK);
}
