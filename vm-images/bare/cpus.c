/* The other processors: they write parts of the working set of their own, or (qm.compute) only compute. */
#include "bare.h"

#define TO_OTHERS 0xc0000
#define INIT (TO_OTHERS | 0x4500)
#define STARTUP (TO_OTHERS | 0x4600 | TRAMPOLINE >> 12)
#define START_NS (10 * NS_PER_S)
#define REPORT_PERIOD_NS (200 * NS_PER_MS)
#define ROUNDS 100000u

extern volatile uint32_t cpus_started;
extern const char trampoline[], trampoline_end[];

unsigned cpus, cpus_writing;

static volatile bool go;
static volatile uint32_t filled;
static struct {
	volatile uint64_t rounds;
	uint64_t room[7]; /* a cache line each */
} computed[MAX_CPUS];

/* What went wrong on a processor that may not write to the serial line. */
static volatile struct {
	bool happened;
	uint64_t vector, error, rip, address;
} failure;

void cpus_count(void)
{
	cpus = machine_cpus();
	if (cpus > MAX_CPUS)
		die("%u vCPUs: the bare guest knows at most %u", cpus, MAX_CPUS);
	if (settings.compute >= cpus)
		die("qm.compute=%u needs %u vCPUs, there is %u", settings.compute, settings.compute + 1, cpus);
	cpus_writing = cpus - settings.compute;
}

static void wait_ns(uint64_t ns)
{
	for (uint64_t end = mono_ns() + ns; mono_ns() < end;)
		sleep_until(end);
}

/* Starts them, and waits until they have filled their parts of the working set. */
void cpus_start(void)
{
	uint64_t end;

	if (cpus < 2)
		return;
	memcpy((void *)(uintptr_t)TRAMPOLINE, trampoline, (size_t)(trampoline_end - trampoline));
	machine_send(INIT);
	wait_ns(10 * NS_PER_MS);
	machine_send(STARTUP);
	for (end = mono_ns() + START_NS; cpus_started < cpus && mono_ns() < end;)
		;
	if (cpus_started < cpus)
		die("%u of %u vCPUs started", cpus_started, cpus);
}

/* Lets the others work, once they all have filled their parts. */
void cpus_let_go(void)
{
	while (filled < cpus - 1)
		if (failure.happened)
			cpus_report(mono_ns());
	go = true;
}

static _Noreturn void compute(unsigned cpu)
{
	uint64_t x = cpu + 1;

	for (;;) {
		for (unsigned i = 0; i < ROUNDS; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			__asm__ volatile("" : "+r"(x));
		}
		computed[cpu].rounds += ROUNDS;
	}
}

_Noreturn void other_main(unsigned cpu)
{
	machine_prepare_cpu();
	if (cpu < cpus_writing)
		memory_fill(cpu);
	__atomic_add_fetch(&filled, 1, __ATOMIC_SEQ_CST);
	while (!go)
		__asm__ volatile("pause");
	if (cpu >= cpus_writing)
		compute(cpu);
	for (;;)
		sleep_until(memory_step(cpu, mono_ns()));
}

/* What the first processor has to tell for the others. */
void cpus_report(uint64_t now)
{
	static uint64_t due;

	if (failure.happened)
		die("exception %llu at 0x%llx error 0x%llx address 0x%llx on another vCPU",
		    (unsigned long long)failure.vector, (unsigned long long)failure.rip,
		    (unsigned long long)failure.error, (unsigned long long)failure.address);
	if (!settings.compute || now < due)
		return;
	due = now + REPORT_PERIOD_NS;
	for (unsigned cpu = cpus_writing; cpu < cpus; cpu++) {
		uint64_t rounds = computed[cpu].rounds;

		serial_line("QM C %u %llu %llu", cpu, (unsigned long long)mono_ns(), (unsigned long long)rounds);
	}
}

/* start.S comes here, in ring 3, from an exception. */
_Noreturn void fault(uint64_t vector, uint64_t error, uint64_t rip, uint64_t address)
{
	if (machine_is_first_cpu())
		die("exception %llu at 0x%llx error 0x%llx address 0x%llx", (unsigned long long)vector,
		    (unsigned long long)rip, (unsigned long long)error, (unsigned long long)address);
	failure.vector = vector;
	failure.error = error;
	failure.rip = rip;
	failure.address = address;
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	failure.happened = true;
	for (;;)
		sleep_until(UINT64_MAX);
}
