/* The disk journal: a record that the guest was told is on the disk must be there, wherever the guest runs now.
 *
 * A ring of fixed slots at the start of the raw block device, written with O_DIRECT | O_DSYNC; QM J is printed only
 * after the write has returned. Each record says all that is needed to check the ring from outside (README.md).
 * After each write an older record is read back, so that a destination that sees another disk, or an old state of
 * it, is found out by the guest itself. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "workload.h"

#define RING_BYTES (UINT64_C(8) << 20)
#define MAGIC UINT64_C(0x314c4e524a4d51) /* "QMJRNL1" */
#define PERIOD_NS (50 * NS_PER_MS)

struct record {
	uint64_t magic;
	uint64_t seq; /* from 1; lies in slot seq % slots */
	uint64_t mono_ns;
	uint64_t seed;
	uint32_t slot_bytes;
	uint32_t slots;
	/* then filler up to slot_bytes - 4, then the CRC-32 of all before it: a torn record does not pass */
};

static int disk = -1;
static uint8_t *buffer;
static uint32_t slot_bytes, slots;
static uint64_t last_seq, first_seq;

static void compose(uint64_t seq, uint64_t now)
{
	struct record record = { MAGIC, seq, now, settings.seed, slot_bytes, slots };
	uint32_t crc;

	for (uint32_t at = 0; at < slot_bytes; at += 8)
		memcpy(buffer + at, &seq, 8);
	memcpy(buffer, &record, sizeof(record));
	crc = crc32_of(buffer, slot_bytes - 4);
	memcpy(buffer + slot_bytes - 4, &crc, 4);
}

/* The sequence number of the record in the buffer, or 0 where there is none that is whole and in its place. */
static uint64_t seq_in_buffer(const uint8_t *at, uint64_t slot)
{
	struct record record;
	uint32_t crc;

	memcpy(&record, at, sizeof(record));
	memcpy(&crc, at + slot_bytes - 4, 4);
	if (record.magic != MAGIC || record.slot_bytes != slot_bytes || record.slots != slots || !record.seq ||
	    record.seq % slots != slot || crc != crc32_of(at, slot_bytes - 4))
		return 0;
	return record.seq;
}

/* Goes on where an earlier boot of the guest stopped. */
static void find_last(void)
{
	const uint32_t chunk = 1u << 20;

	for (uint64_t offset = 0; offset < (uint64_t)slots * slot_bytes; offset += chunk) {
		ssize_t length = pread(disk, buffer, chunk, (off_t)offset);

		if (length < 0)
			die("%s: %s", settings.disk, strerror(errno));
		for (uint32_t at = 0; at + slot_bytes <= (uint32_t)length; at += slot_bytes) {
			uint64_t slot = (offset + at) / slot_bytes, seq;

			seq = slot < slots ? seq_in_buffer(buffer + at, slot) : 0;
			if (seq > last_seq)
				last_seq = seq;
		}
	}
	first_seq = last_seq + 1;
}

void journal_open(void)
{
	uint64_t bytes, give_up = mono_ns() + 5 * NS_PER_S;
	int block_bytes;

	if (!settings.disk[0])
		return;
	/* The driver finds its disks in its own time. */
	while ((disk = open(settings.disk, O_RDWR | O_DIRECT | O_DSYNC | O_CLOEXEC)) < 0 && mono_ns() < give_up)
		sleep_until(mono_ns() + 10 * NS_PER_MS);
	if (disk < 0 || ioctl(disk, BLKSSZGET, &block_bytes) || ioctl(disk, BLKGETSIZE64, &bytes))
		die("%s: %s", settings.disk, strerror(errno));
	slot_bytes = block_bytes > 512 ? (uint32_t)block_bytes : 512;
	slots = (uint32_t)((bytes < RING_BYTES ? bytes : RING_BYTES) / slot_bytes);
	if (slots < 2)
		die("%s is too small for a journal", settings.disk);
	if (posix_memalign((void **)&buffer, 4096, 1u << 20))
		die("no memory for the journal");
	find_last();
}

static bool stop_with(const char *what, uint64_t seq)
{
	serial_line("QM ERR journal %s seq=%llu: %s", what, (unsigned long long)seq, strerror(errno));
	return false;
}

static bool append(uint64_t seq)
{
	uint64_t started = mono_ns();

	compose(seq, started);
	if (pwrite(disk, buffer, slot_bytes, (off_t)(seq % slots * slot_bytes)) != (ssize_t)slot_bytes)
		return stop_with("write", seq);
	serial_line("QM J %llu %llu", (unsigned long long)seq, (unsigned long long)(mono_ns() - started) / 1000);
	return true;
}

/* Reads one of the records that this boot has written and that the ring still holds. */
static bool read_back(uint64_t last)
{
	uint64_t oldest = last >= first_seq + slots ? last - slots + 1 : first_seq;
	uint64_t seq = oldest + mono_ns() / 1000 % (last - oldest + 1), found;

	if (pread(disk, buffer, slot_bytes, (off_t)(seq % slots * slot_bytes)) != (ssize_t)slot_bytes)
		return stop_with("read", seq);
	found = seq_in_buffer(buffer, seq % slots);
	if (found != seq)
		serial_line("QM BAD journal=%llu expected=0x%llx found=0x%llx offset=%llu", (unsigned long long)seq,
			    (unsigned long long)seq, (unsigned long long)found,
			    (unsigned long long)(seq % slots * slot_bytes));
	return true;
}

static void *keep_journal(void *unused)
{
	uint64_t next = mono_ns();

	(void)unused;
	while (append(++last_seq) && read_back(last_seq)) {
		next += PERIOD_NS;
		if (next < mono_ns())
			next = mono_ns();
		sleep_until(next);
	}
	return NULL;
}

void journal_start(void)
{
	if (disk >= 0)
		thread_start(keep_journal, PRIORITY_JOURNAL);
}
