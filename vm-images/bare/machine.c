/* The machine (QEMU's q35 and pc): clock, sleep, power.
 *
 * The clock is the HPET's counter. QEMU derives it from its virtual clock, with KVM and without: it stands still while
 * the guest is stopped and goes on where the guest goes on. The TSC is not used: where KVM has no hardware below it,
 * ring 3 reads the host's own. */
#include "bare.h"
#include "ports.h"

#define HPET UINT64_C(0xfed00000)
#define HPET_CONFIGURATION 0x10
#define HPET_COUNTER 0xf0
#define LOCAL_APIC UINT64_C(0xfee00000)
enum { APIC_ID = 0x20, APIC_SPURIOUS = 0xf0, APIC_COMMAND = 0x300, APIC_TIMER = 0x320, APIC_INITIAL = 0x380, APIC_DIVIDE = 0x3e0 };
#define TIMER_VECTOR 0x40
#define SPURIOUS_VECTOR 0x4f
#define TIMER_PERIODIC 0x20000
/* KVM makes shorter periods longer, and says so in the host's log. */
#define MIN_SLEEP_NS (NS_PER_MS / 5)
#define MAX_SLEEP_NS (50 * NS_PER_MS)

#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
enum { PCI_ID = 0, PCI_COMMAND = 4, PCI_BAR0 = 0x10, PM_BASE = 0x40 };
#define PCI_MEMORY 2
#define FREE_ADDRESS UINT32_C(0xfe000000) /* nothing of q35 or pc is there */
#define INTEL 0x8086
#define ICH9_LPC (UINT32_C(0x2918) << 16 | INTEL)
#define PIIX4_PM (UINT32_C(0x7113) << 16 | INTEL)
/* From the ACPI base on: */
enum { PM1_STATUS = 0, PM1_ENABLE = 2, PM1_CONTROL = 4 };
#define POWER_BUTTON 0x100
#define SLEEP_NOW 0x2000 /* with type 0, which is S5 in QEMU */

#define FW_CFG_SELECTOR 0x510
#define FW_CFG_DATA 0x511
#define FW_CFG_CPUS 5
#define PVPANIC 0x505
#define PVPANIC_PCI (UINT32_C(0x0011) << 16 | 0x1b36)
#define PVPANIC_PANICKED 1

static volatile uint32_t *const apic = (volatile uint32_t *)LOCAL_APIC;
static uint64_t ns_per_count;
static uint16_t acpi;

static void pci_write(unsigned device, unsigned function, unsigned offset, uint32_t value)
{
	outl(PCI_ADDRESS, UINT32_C(0x80000000) | device << 11 | function << 8 | offset);
	outl(PCI_DATA, value);
}

static uint32_t pci(unsigned device, unsigned function, unsigned offset)
{
	outl(PCI_ADDRESS, UINT32_C(0x80000000) | device << 11 | function << 8 | offset);
	return inl(PCI_DATA);
}

void machine_prepare(void)
{
	uint32_t period_fs = *(volatile uint32_t *)(HPET + 4);

	if (!period_fs || period_fs > 100000000 || period_fs % 1000000)
		die("no HPET: run the bare guest without hpet=off");
	ns_per_count = period_fs / 1000000;
	*(volatile uint32_t *)(HPET + HPET_CONFIGURATION) = 1;

	if (pci(0x1f, 0, PCI_ID) == ICH9_LPC)
		acpi = pci(0x1f, 0, PM_BASE) & 0xff80;
	else if (pci(1, 3, PCI_ID) == PIIX4_PM)
		acpi = pci(1, 3, PM_BASE) & 0xffc0;
	else
		die("not a q35 nor a pc machine: the bare guest knows no other");
	outw(acpi + PM1_STATUS, POWER_BUTTON);
	outw(acpi + PM1_ENABLE, POWER_BUTTON);

	/* No interrupt but the local APIC's timer. */
	outb(0x21, 0xff);
	outb(0xa1, 0xff);
}

/* For each processor, before it sleeps. */
void machine_prepare_cpu(void)
{
	apic[APIC_SPURIOUS / 4] = 0x100 | SPURIOUS_VECTOR;
	apic[APIC_DIVIDE / 4] = 0xb; /* by 1 */
	apic[APIC_TIMER / 4] = TIMER_PERIODIC | TIMER_VECTOR;
}

uint64_t mono_ns(void)
{
	volatile uint64_t *counter = (volatile uint64_t *)(HPET + HPET_COUNTER);
	uint64_t count = *counter;

	/* QEMU reads it as two halves, one after the other: near the carry, look again. */
	while ((uint32_t)count >= UINT32_C(0xff000000)) {
		uint64_t again = *counter;

		if (again >= count && again >> 32 == count >> 32)
			return again * ns_per_count;
		count = again;
	}
	return count * ns_per_count;
}

/* Sleeps at most until then. The local APIC's timer counts nanoseconds, with KVM and without. It is left running: should
 * one of its interrupts be lost on the way to another host, the next one ends the sleep. */
void sleep_until(uint64_t deadline_ns)
{
	uint64_t now = mono_ns(), ns = deadline_ns > now ? deadline_ns - now : 0;

	if (ns < MIN_SLEEP_NS)
		return;
	apic[APIC_INITIAL / 4] = (uint32_t)(ns < MAX_SLEEP_NS ? ns : MAX_SLEEP_NS);
	cpu_sleep();
}

/* To all other processors. */
void machine_send(uint32_t command)
{
	apic[APIC_COMMAND / 4] = command;
}

bool machine_is_first_cpu(void)
{
	return !(apic[APIC_ID / 4] >> 24);
}

unsigned machine_cpus(void)
{
	unsigned low;

	outw(FW_CFG_SELECTOR, FW_CFG_CPUS);
	low = inb(FW_CFG_DATA);
	return low | (unsigned)inb(FW_CFG_DATA) << 8;
}

/* QMP system_powerdown arrives here. */
bool machine_power_button(void)
{
	return inw(acpi + PM1_STATUS) & POWER_BUTTON;
}

/* Tells the pvpanic device, as ISA (-device pvpanic) or as PCI (pvpanic-pci), where there is one. */
static void tell_panic(void)
{
	uint8_t known = inb(PVPANIC);

	if (known != 0xff && known & PVPANIC_PANICKED)
		outb(PVPANIC, PVPANIC_PANICKED);
	for (unsigned device = 0; device < 32; device++) {
		if (pci(device, 0, PCI_ID) != PVPANIC_PCI)
			continue;
		/* Not all firmware gives it an address. */
		pci_write(device, 0, PCI_BAR0, FREE_ADDRESS);
		pci_write(device, 0, PCI_COMMAND, PCI_MEMORY);
		*(volatile uint8_t *)(uintptr_t)FREE_ADDRESS = PVPANIC_PANICKED;
	}
}

_Noreturn void machine_end(enum ending how)
{
	if (how == END_PANIC)
		tell_panic();
	if (how == END_REBOOT || (how == END_PANIC && settings.reset_on_panic))
		outb(0xcf9, 6);
	if (how == END_POWEROFF && acpi)
		outw(acpi + PM1_CONTROL, SLEEP_NOW);
	apic[APIC_TIMER / 4] = 0x10000; /* masked: nothing wakes this processor any more */
	for (;;)
		cpu_sleep();
}
