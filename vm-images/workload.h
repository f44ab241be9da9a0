/* The test guest's workload: what its parts share. See README.md for the whole contract. */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

/* Real-time priorities; the memory writer is an ordinary thread below them all. The tick must see nothing but the
 * hypervisor's own pauses, so it preempts whatever else runs. */
enum priority { PRIORITY_JOURNAL = 10, PRIORITY_SERIAL = 20, PRIORITY_WALL = 40, PRIORITY_TICK = 50 };

enum ending { END_NONE = 0, END_POWEROFF, END_REBOOT, END_PANIC };

/* Everything that the kernel command line sets (qm.NAME=VALUE). */
struct settings {
	unsigned rate_mib_s;
	unsigned ws_mib;
	unsigned tick_ms;
	bool verify;
	uint64_t seed;
	char disk[64];
	uint64_t poweroff_after_ticks;
	uint64_t reboot_after_ticks;
	uint64_t panic_after_ticks;
};

extern struct settings settings;

/* settings.c: reads /proc/cmdline; an unknown qm.* word or a bad value ends the guest with QM PANIC. */
void settings_read(void);

/* boot.c */
void boot_mount(void);
void boot_load_modules(void);

/* workload.c */
uint64_t mono_ns(void);
void sleep_until(uint64_t deadline_ns);
void thread_start(void *(*body)(void *), int priority);
void request_end(enum ending how);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* serial.c: whole lines only; each gets its check code and goes out in one write. */
void serial_open(void);
void serial_start(void);
bool serial_try(const char *format, ...) __attribute__((format(printf, 1, 2)));
void serial_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
void serial_last_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint32_t crc32_of(const void *data, size_t length);

/* memory.c */
void memory_fill(void);
void memory_start(void);
void memory_set_rate(unsigned mib_s);
void memory_verify_now(void);
uint64_t memory_pages_written(void);

/* tick.c */
void tick_start(void);
uint64_t tick_now(void);

/* journal.c */
void journal_open(void);
void journal_start(void);

/* wall.c, control.c */
void wall_start(void);
void control_start(void);

#endif
