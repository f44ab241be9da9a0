/* The bare test guest: brings itself up, then does what is due, in turn, for ever. Nothing is left to interrupts: ring 0
 * is interpreted where KVM has no hardware below it, and a handler there costs more than looking at the clock. */
#include "bare.h"

#define CONTROL_PERIOD_NS (10 * NS_PER_MS)

static enum ending wanted_end;

_Noreturn void other_main(unsigned cpu);
_Noreturn void cpu_main(unsigned cpu);

/* The first request wins. */
void request_end(enum ending how)
{
	if (!wanted_end)
		wanted_end = how;
}

/* Our own error, not the hypervisor's: say so and power off, so that whoever waits sees an end at once. */
_Noreturn void die(const char *format, ...)
{
	char text[160];
	va_list arguments;

	va_start(arguments, format);
	text_format(text, sizeof(text), format, arguments);
	va_end(arguments);
	serial_last_line("QM PANIC %s", text);
	machine_end(END_POWEROFF);
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static _Noreturn void work(void)
{
	static const char *const names[] = { "none", "poweroff", "reboot", "panic" };
	uint64_t control_due = 0;

	tick_begin(mono_ns());
	while (!wanted_end) {
		uint64_t now = mono_ns(), next = tick_step(now);

		next = earlier(next, wall_step(now));
		if (now >= control_due) {
			control_step();
			control_due = now + CONTROL_PERIOD_NS;
		}
		next = earlier(next, memory_step(0, now));
		memory_report(now);
		cpus_report(now);
		serial_pump();
		sleep_until(next);
	}
	serial_last_line("QM END %s", names[wanted_end]);
	machine_end(wanted_end);
}

/* start.S comes here, on every processor. */
_Noreturn void cpu_main(unsigned cpu)
{
	if (cpu)
		other_main(cpu);
	serial_open();
	machine_prepare();
	machine_prepare_cpu();
	ram_read_map();
	settings_read();
	cpus_count();
	memory_prepare();
	cpus_start();
	memory_fill(0);
	cpus_let_go();
	serial_line("QM READY v=1 ws=%u rate=%s tick=%u seed=%llu verify=%u disk=- guest=bare cpus=%u compute=%u hot=%u",
		    settings.ws_mib, rate_text(settings.rate_mib_s), settings.tick_ms,
		    (unsigned long long)settings.seed, settings.verify, cpus, settings.compute, settings.hot);
	work();
}
