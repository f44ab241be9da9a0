/* The blackout as the guest can see it. While a guest does not run, its own clocks do not run either: no gap between
 * two ticks tells how long it was away. The battery-backed clock of the machine (CMOS RTC) does go on, because QEMU
 * derives it from the host's clock. So the moment at which its seconds change is looked for and printed against
 * CLOCK_MONOTONIC: when the difference of the two jumps, that is the time the guest has lost.
 *
 * The ports are read directly: the kernel's own interrupt for it is emulated by the HPET with 16 ms steps. Nothing
 * else reads the clock after the boot. */
#include <sys/io.h>

#include "workload.h"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
enum { SECONDS = 0, MINUTES = 2, HOURS = 4 };

/* How closely a change is looked for near the expected moment, and otherwise (after a jump). */
#define FINE_NS (NS_PER_MS / 4)
#define COARSE_NS NS_PER_MS
#define LEAD_NS (2 * NS_PER_MS)

static unsigned cmos(uint8_t index)
{
	outb(index, CMOS_INDEX);
	return inb(CMOS_DATA);
}

static unsigned from_bcd(unsigned value)
{
	return (value >> 4) * 10 + (value & 15);
}

/* Only right after a change of the second, when none of the three can change under us. */
static unsigned second_of_day(unsigned seconds)
{
	return (from_bcd(cmos(HOURS)) * 60 + from_bcd(cmos(MINUTES))) * 60 + from_bcd(seconds);
}

static void *watch(void *unused)
{
	uint64_t looked, expected = 0;
	unsigned before;

	(void)unused;
	if (ioperm(CMOS_INDEX, 2, 1))
		return NULL; /* no such clock: no QM W lines, and the oracle then has no blackout to tell */
	before = cmos(SECONDS);
	looked = mono_ns();
	for (;;) {
		uint64_t now;
		unsigned seconds;

		sleep_until(looked + (looked < expected + LEAD_NS ? FINE_NS : COARSE_NS));
		seconds = cmos(SECONDS);
		now = mono_ns();
		if (seconds == before) {
			looked = now;
			continue;
		}
		before = seconds;
		/* Only where the change was seen to happen; after a jump that is the next one. */
		if (now - looked <= 2 * COARSE_NS) {
			serial_line("QM W %u %llu %llu", second_of_day(seconds), (unsigned long long)now,
				    (unsigned long long)(now - looked) / 1000);
			expected = now + NS_PER_S;
			sleep_until(expected - LEAD_NS);
			before = cmos(SECONDS);
		} else {
			expected = 0;
		}
		looked = mono_ns();
	}
	return NULL;
}

void wall_start(void)
{
	thread_start(watch, PRIORITY_WALL);
}
