/* Which memory there is, and where the working set lies: on q35 a part of it is above 4 GiB from about 2.75 GiB on, so
 * the working set has addresses of its own, in 2 MiB pages. */
#include "bare.h"

#define MULTIBOOT_MAGIC UINT32_C(0x2badb002)
#define HAS_COMMAND_LINE 0x4
#define HAS_MAP 0x40
#define USABLE 1
#define MAX_PIECES 8
#define LARGE_PAGE_BYTES UINT64_C(0x200000)
#define MIB (UINT64_C(1) << 20)
#define WS_ADDRESS (UINT64_C(1) << 39)
#define PRESENT_WRITE_USER 7
#define LARGE 0x80

struct multiboot {
	uint32_t flags, low, high, boot_device, command_line, modules[2], symbols[4], map_bytes, map;
};

struct entry {
	uint32_t bytes;
	uint64_t base, length;
	uint32_t type;
} __attribute__((packed));

struct piece {
	uint64_t base, end;
};

extern uint32_t multiboot_magic, multiboot_info;
extern char image_end[];

static struct piece pieces[MAX_PIECES];
static unsigned count;

/* Copies what the loader left in memory that is ours from now on: the command line, the memory map. */
void ram_read_map(void)
{
	const struct multiboot *info = (const struct multiboot *)(uintptr_t)multiboot_info;
	uint64_t image = (uint64_t)(uintptr_t)image_end;

	if (multiboot_magic != MULTIBOOT_MAGIC || !(info->flags & HAS_MAP))
		die("not started by a multiboot loader that gives a memory map");
	if (info->flags & HAS_COMMAND_LINE) {
		const char *text = (const char *)(uintptr_t)info->command_line;

		if (text_length(text) >= sizeof(command_line))
			die("the command line is longer than %u bytes", (unsigned)sizeof(command_line) - 1);
		memcpy(command_line, text, text_length(text) + 1);
	}
	for (uint32_t at = 0; at < info->map_bytes;) {
		const struct entry *entry = (const struct entry *)(uintptr_t)(info->map + at);
		uint64_t base = entry->base, end = entry->base + entry->length;

		at += entry->bytes + 4;
		if (base < image)
			base = image;
		if (entry->type == USABLE && end > base && count < MAX_PIECES)
			pieces[count++] = (struct piece){ base, end };
	}
}

/* Takes whole pages out of the memory below 4 GiB. */
void *ram_take(uint64_t bytes)
{
	for (unsigned i = 0; i < count; i++) {
		uint64_t base = (pieces[i].base + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;

		if (base + bytes > pieces[i].end || base + bytes > UINT64_C(4) << 30)
			continue;
		pieces[i].base = base + bytes;
		return (void *)(uintptr_t)base;
	}
	die("no room for %llu KiB of tables: give the guest more memory", (unsigned long long)bytes >> 10);
}

/* Maps so much memory, wherever it lies, to addresses that follow each other. */
void *ram_map_working_set(uint64_t bytes)
{
	volatile uint64_t *directory = (volatile uint64_t *)WS_PDS, *pointers = (volatile uint64_t *)WS_PDPT;
	uint64_t wanted = (bytes + LARGE_PAGE_BYTES - 1) / LARGE_PAGE_BYTES, mapped = 0;

	memset((void *)(uintptr_t)WS_PDS, 0, 4 * PAGE_BYTES);
	for (unsigned i = 0; i < count; i++) {
		uint64_t base = (pieces[i].base + LARGE_PAGE_BYTES - 1) / LARGE_PAGE_BYTES * LARGE_PAGE_BYTES;

		for (; mapped < wanted && base + LARGE_PAGE_BYTES <= pieces[i].end; base += LARGE_PAGE_BYTES)
			directory[mapped++] = base | LARGE | PRESENT_WRITE_USER;
		/* An odd number of MiB may end in a piece that is not whole. */
		if (mapped + 1 == wanted && base + bytes % LARGE_PAGE_BYTES <= pieces[i].end && bytes % LARGE_PAGE_BYTES &&
		    base < pieces[i].end)
			directory[mapped++] = base | LARGE | PRESENT_WRITE_USER;
	}
	if (mapped < wanted)
		die("qm.ws=%u does not fit: %llu MiB are free", settings.ws_mib,
		    (unsigned long long)(mapped * LARGE_PAGE_BYTES / MIB));
	for (unsigned i = 0; i < 4; i++)
		pointers[i] = (WS_PDS + i * PAGE_BYTES) | PRESENT_WRITE_USER;
	return (void *)(uintptr_t)WS_ADDRESS;
}
