/* The serial line: whole lines, each with a check code, each in one write(), in the order they were posted.
 *
 * A thread of its own writes them, so that a line that moves slowly (or a host that does not read) never delays a
 * tick. Its queue is the only buffer: serial_try() refuses when it is full and the tick thread then lets its next
 * line cover more ticks, so nothing is ever dropped. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "workload.h"

#define QUEUE_LINES 64u
#define LINE_BYTES 256u

static int serial = -1;
static char queue[QUEUE_LINES][LINE_BYTES];
static unsigned head, count;
static bool started, closed;
static pthread_mutex_t lock;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static uint32_t crc_table[256];

static void crc_prepare(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		crc_table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			crc_table[i] = crc_table[i] & 1 ? crc_table[i] >> 1 ^ UINT32_C(0xedb88320) : crc_table[i] >> 1;
	}
}

/* The CRC-32 of zlib and Ethernet. Needs serial_open() first. */
uint32_t crc32_of(const void *data, size_t length)
{
	const uint8_t *byte = data;
	uint32_t crc = UINT32_MAX;

	while (length--)
		crc = crc >> 8 ^ crc_table[(crc ^ *byte++) & 0xff];
	return ~crc;
}

static void write_whole(const char *line)
{
	size_t length = strlen(line);

	while (length) {
		ssize_t done = write(serial, line, length);

		if (done < 0) {
			if (errno != EINTR)
				_exit(1);
			continue;
		}
		line += done;
		length -= (size_t)done;
	}
}

void serial_open(void)
{
	struct termios line;
	pthread_mutexattr_t attributes;

	crc_prepare();
	/* The tick thread takes this lock: whoever holds it then runs at the tick's priority. */
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&lock, &attributes);

	serial = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (serial < 0 || tcgetattr(serial, &line))
		_exit(1); /* nobody to tell: the kernel panic is the message */
	cfmakeraw(&line);
	line.c_lflag |= ICANON; /* commands arrive as lines */
	line.c_iflag |= ICRNL;
	line.c_cflag |= CLOCAL | CREAD; /* no modem: the other end may come and go */
	cfsetspeed(&line, B115200);
	tcsetattr(serial, TCSANOW, &line);
	write_whole("\n"); /* whatever stood on the line before us ends here */
}

/* Appends the check code: " #" and the low 16 bits of the CRC-32 of all before it, then LF. */
static void compose(char *line, const char *format, va_list arguments)
{
	int length = vsnprintf(line, LINE_BYTES - 8, format, arguments);

	if (length > (int)LINE_BYTES - 9)
		length = (int)LINE_BYTES - 9;
	sprintf(line + length, " #%04x\n", (unsigned)(crc32_of(line, (size_t)length) & 0xffff));
}

static void *write_lines(void *unused)
{
	char line[LINE_BYTES];

	(void)unused;
	pthread_mutex_lock(&lock);
	for (;;) {
		while (!count)
			pthread_cond_wait(&changed, &lock);
		memcpy(line, queue[head], LINE_BYTES);
		pthread_mutex_unlock(&lock);
		write_whole(line);
		pthread_mutex_lock(&lock);
		/* Only now: an empty queue means that everything has been written. */
		head = (head + 1) % QUEUE_LINES;
		count--;
		pthread_cond_broadcast(&changed);
	}
	return NULL;
}

void serial_start(void)
{
	started = true;
	thread_start(write_lines, PRIORITY_SERIAL);
}

static bool post(const char *line, bool wait)
{
	bool posted = false;

	pthread_mutex_lock(&lock);
	while (wait && count == QUEUE_LINES)
		pthread_cond_wait(&changed, &lock);
	if (!closed && count < QUEUE_LINES) {
		memcpy(queue[(head + count++) % QUEUE_LINES], line, LINE_BYTES);
		pthread_cond_broadcast(&changed);
		posted = true;
	}
	pthread_mutex_unlock(&lock);
	return posted;
}

/* Posts a line unless the queue is full; never waits for the wire. */
bool serial_try(const char *format, ...)
{
	char line[LINE_BYTES];
	va_list arguments;

	va_start(arguments, format);
	compose(line, format, arguments);
	va_end(arguments);
	return post(line, false);
}

void serial_line(const char *format, ...)
{
	char line[LINE_BYTES];
	va_list arguments;

	va_start(arguments, format);
	compose(line, format, arguments);
	va_end(arguments);
	post(line, true);
}

/* Writes a line after all that were posted, waits until it has left, and lets no other follow. */
void serial_last_line(const char *format, ...)
{
	char line[LINE_BYTES];
	va_list arguments;

	if (serial < 0)
		return;
	va_start(arguments, format);
	compose(line, format, arguments);
	va_end(arguments);
	pthread_mutex_lock(&lock);
	closed = true;
	while (started && count)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	write_whole(line);
	tcdrain(serial);
}
