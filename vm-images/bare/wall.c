/* The blackout as the guest can see it: the machine's CMOS clock goes on while the guest stands still, for QEMU takes it
 * from the host's. The moment at which its seconds change is looked for and printed against the guest's own clock
 * (../wall.c has the whole story). */
#include "bare.h"
#include "ports.h"

#define CMOS_INDEX 0x70
#define CMOS_DATA 0x71
enum { SECONDS = 0, MINUTES = 2, HOURS = 4 };

/* How closely a change is looked for near the expected moment, and otherwise (after a jump). */
#define FINE_NS (NS_PER_MS / 4)
#define COARSE_NS NS_PER_MS
#define LEAD_NS (4 * NS_PER_MS) /* more than the Linux guest: here nothing interrupts a portion of work */
/* A change is told of when it was seen to happen, this closely; on a busy host that must do. */
#define MOST_UNCERTAIN_NS (5 * NS_PER_MS)
#define NEVER_LOOKED 0xff

static unsigned cmos(uint8_t index)
{
	outb(CMOS_INDEX, index);
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

/* Looks at the clock if it is time to. Returns when to look again. */
uint64_t wall_step(uint64_t now)
{
	static uint64_t looked, expected, next;
	static unsigned before = NEVER_LOOKED;
	unsigned seconds;

	if (now < next)
		return next;
	seconds = cmos(SECONDS);
	now = mono_ns();
	if (before != NEVER_LOOKED && seconds != before) {
		/* After a jump that is the next one. */
		if (now - looked <= MOST_UNCERTAIN_NS) {
			serial_line("QM W %u %llu %llu", second_of_day(seconds), (unsigned long long)now,
				    (unsigned long long)(now - looked) / 1000);
			expected = now + NS_PER_S;
			before = NEVER_LOOKED;
			return next = expected - LEAD_NS;
		}
		expected = 0;
	}
	before = seconds;
	looked = now;
	return next = now + (now < expected + LEAD_NS ? FINE_NS : COARSE_NS);
}
