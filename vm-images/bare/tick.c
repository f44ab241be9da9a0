/* The tick: a number that must go on without a gap, and the guest's own measure of how long it did not run. */
#include "bare.h"

/* At most this often a line; ticks in between are covered by the next one. A 1 ms tick printed one by one would
 * need 40 kB/s, a 115200 baud line carries 11. */
#define LINE_PERIOD_NS (50 * NS_PER_MS)

static uint64_t tick, first = 1, last, next, line_due, largest_gap;

/* The last tick that was counted; 0 before the first. */
uint64_t tick_now(void)
{
	return tick;
}

static void end_when_due(void)
{
	if (tick == settings.poweroff_after_ticks)
		request_end(END_POWEROFF);
	if (tick == settings.reboot_after_ticks)
		request_end(END_REBOOT);
	if (tick == settings.panic_after_ticks)
		request_end(END_PANIC);
}

static bool print(uint64_t now)
{
	unsigned long long gap_us = (largest_gap + 999) / 1000, at = now, written = memory_pages_written();

	if (first == tick)
		return serial_try("QM T %llu %llu %llu %llu", (unsigned long long)tick, at, written, gap_us);
	return serial_try("QM T %llu-%llu %llu %llu %llu", (unsigned long long)first, (unsigned long long)tick, at,
			  written, gap_us);
}

void tick_begin(uint64_t now)
{
	last = now;
	next = line_due = now + settings.tick_ms * NS_PER_MS;
}

/* Counts a tick if it is due. Returns when the next one is. */
uint64_t tick_step(uint64_t now)
{
	const uint64_t period = settings.tick_ms * NS_PER_MS;

	if (now < next)
		return next;
	tick++;
	if (now - last > largest_gap)
		largest_gap = now - last;
	last = now;
	if (now >= line_due && print(now)) {
		first = tick + 1;
		largest_gap = 0;
		line_due += ((now - line_due) / LINE_PERIOD_NS + 1) * LINE_PERIOD_NS;
	}
	end_when_due();
	/* Deadlines that passed while we did not run are skipped, not made up for: the gap says it. */
	next += period;
	if (next <= now)
		next += (now - next) / period * period + period;
	return next;
}
