/* The bare test guest: what its parts share. ../README.md has the contract, which is that of the Linux guest. */
#ifndef BARE_H
#define BARE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "layout.h"

#define NS_PER_S UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_US UINT64_C(1000)
#define PAGE_BYTES 4096u
#define PAGES_PER_MIB 256u
#define RATE_UNLIMITED UINT32_MAX

enum ending { END_NONE = 0, END_POWEROFF, END_REBOOT, END_PANIC };

/* Everything that the command line sets (qm.NAME=VALUE). */
struct settings {
	uint32_t rate_mib_s; /* of all processors together, or RATE_UNLIMITED */
	uint32_t ws_mib;
	uint32_t tick_ms;
	bool verify;
	uint64_t seed;
	uint32_t hot;        /* percent of the working set that is hot */
	uint32_t hot_writes; /* percent of the writes that go there */
	uint32_t compute;    /* so many of the processors, the last ones, compute and do not write */
	bool reset_on_panic; /* panic=-1 */
	uint64_t poweroff_after_ticks;
	uint64_t reboot_after_ticks;
	uint64_t panic_after_ticks;
};

extern struct settings settings;
extern char command_line[4096];

/* start.S */
void cpu_sleep(void);

/* settings.c: an unknown word or a bad value ends the guest with QM PANIC. */
void settings_read(void);
bool rate_read(const char *text, uint32_t *rate);
const char *rate_text(uint32_t rate);

/* text.c: what a C library would have. */
int text_format(char *at, size_t bytes, const char *format, va_list arguments);
bool text_equal(const char *a, const char *b);
bool text_begins(const char *text, const char *with);
size_t text_length(const char *text);
void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int byte, size_t bytes);

/* machine.c */
void machine_prepare(void);
void machine_prepare_cpu(void);
uint64_t mono_ns(void);
void sleep_until(uint64_t deadline_ns);
unsigned machine_cpus(void);
void machine_send(uint32_t interrupt_command);
bool machine_is_first_cpu(void);
bool machine_power_button(void);
_Noreturn void machine_end(enum ending how);

/* ports.h is for those that talk to devices. */

/* ram.c */
void ram_read_map(void);
void *ram_take(uint64_t bytes);
void *ram_map_working_set(uint64_t bytes);

/* cpus.c */
extern unsigned cpus, cpus_writing;
void cpus_count(void);
void cpus_start(void);
void cpus_let_go(void);
void cpus_report(uint64_t now);

/* serial.c: whole lines only, each with its check code. */
void serial_open(void);
void serial_pump(void);
bool serial_try(const char *format, ...) __attribute__((format(printf, 1, 2)));
void serial_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
void serial_last_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
int serial_byte(void);

/* memory.c: each writing processor has a part of the working set of its own. */
void memory_prepare(void);
void memory_fill(unsigned cpu);
void memory_set_rate(uint32_t rate);
void memory_verify_now(void);
uint64_t memory_step(unsigned cpu, uint64_t now);
uint64_t memory_pages_written(void);
void memory_report(uint64_t now);

/* tick.c */
void tick_begin(uint64_t now);
uint64_t tick_step(uint64_t now);
uint64_t tick_now(void);

/* wall.c */
uint64_t wall_step(uint64_t now);

/* control.c */
void control_step(void);

/* main.c */
void request_end(enum ending how);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
