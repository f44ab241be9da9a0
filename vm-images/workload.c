/* The test guest's init: brings the machine up, starts the threads, and ends the guest when it is told to.
 *
 * It is PID 1 itself: no shell, no scripts, nothing between the kernel and the checks that could fail on its own. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

#include "workload.h"

struct settings settings;

static atomic_int wanted_end = END_NONE;
static sem_t end_requested;

uint64_t mono_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void sleep_until(uint64_t deadline_ns)
{
	struct timespec at = { .tv_sec = (time_t)(deadline_ns / NS_PER_S), .tv_nsec = (long)(deadline_ns % NS_PER_S) };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
		;
}

/* priority 0: an ordinary thread. */
void thread_start(void *(*body)(void *), int priority)
{
	struct sched_param parameter = { .sched_priority = priority };
	pthread_attr_t attributes;
	pthread_t thread;
	int error;

	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	/* mlockall() makes every byte of every stack resident: keep them small. */
	pthread_attr_setstacksize(&attributes, 64 * 1024);
	pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attributes, priority ? SCHED_FIFO : SCHED_OTHER);
	pthread_attr_setschedparam(&attributes, &parameter);
	error = pthread_create(&thread, &attributes, body, NULL);
	pthread_attr_destroy(&attributes);
	if (error)
		die("thread: %s", strerror(error));
}

/* The first request wins; the main thread carries it out. */
void request_end(enum ending how)
{
	int none = END_NONE;

	if (atomic_compare_exchange_strong(&wanted_end, &none, how))
		sem_post(&end_requested);
}

static _Noreturn void end_guest(enum ending how)
{
	if (how == END_PANIC)
		_exit(1); /* the end of PID 1 is a kernel panic */
	reboot(how == END_REBOOT ? RB_AUTOBOOT : RB_POWER_OFF);
	for (;;)
		pause();
}

/* Our own error, not the hypervisor's: say so and power off, so that whoever waits sees an end at once. */
_Noreturn void die(const char *format, ...)
{
	char text[160];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	serial_last_line("QM PANIC %s", text);
	end_guest(END_POWEROFF);
}

int main(void)
{
	static const char *const names[] = { "none", "poweroff", "reboot", "panic" };

	sem_init(&end_requested, 0, 0);
	boot_mount();
	serial_open();
	settings_read();
	boot_load_modules();
	journal_open();
	memory_fill();
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		die("mlockall: %s", strerror(errno));

	serial_start();
	serial_line("QM READY v=1 ws=%u rate=%u tick=%u seed=%llu verify=%d disk=%s", settings.ws_mib,
		    settings.rate_mib_s, settings.tick_ms, (unsigned long long)settings.seed, settings.verify,
		    settings.disk[0] ? settings.disk : "-");
	tick_start();
	memory_start();
	journal_start();
	wall_start();
	control_start();

	while (sem_wait(&end_requested))
		;
	serial_last_line("QM END %s", names[wanted_end]);
	end_guest((enum ending)wanted_end);
}
