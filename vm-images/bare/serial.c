/* The serial line: whole lines, each with its check code, in the order they were posted. Bytes wait in a ring until the
 * port takes them, so that a host that does not read never delays a tick: serial_try() refuses when the ring is full,
 * and the next line of ticks covers more of them. Only the first processor writes. */
#include "bare.h"
#include "ports.h"

#define PORT 0x3f8
enum { DATA = PORT, INTERRUPTS = PORT + 1, FIFO = PORT + 2, LINE = PORT + 3, MODEM = PORT + 4, STATUS = PORT + 5 };
#define STATUS_RECEIVED 0x01
#define STATUS_HOLDING_EMPTY 0x20
#define STATUS_ALL_SENT 0x40
#define FIFO_BYTES 16

#define RING_BYTES 8192u /* a power of two */
#define LINE_BYTES 256

static char ring[RING_BYTES];
static uint32_t put, sent; /* counts of bytes */
static uint32_t crc_table[256];

void serial_open(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		crc_table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			crc_table[i] = crc_table[i] & 1 ? crc_table[i] >> 1 ^ UINT32_C(0xedb88320) : crc_table[i] >> 1;
	}
	outb(INTERRUPTS, 0);
	outb(LINE, 0x80);
	outb(DATA, 1); /* 115200 baud */
	outb(INTERRUPTS, 0);
	outb(LINE, 3);
	outb(FIFO, 7);
	outb(MODEM, 3);
	ring[put++] = '\n'; /* whatever stood on the line before us ends here */
}

/* Hands the port what it takes now. */
void serial_pump(void)
{
	while (sent != put && inb(STATUS) & STATUS_HOLDING_EMPTY)
		for (int i = 0; i < FIFO_BYTES && sent != put; i++)
			outb(DATA, (uint8_t)ring[sent++ % RING_BYTES]);
}

/* A byte of the input, or -1. */
int serial_byte(void)
{
	return inb(STATUS) & STATUS_RECEIVED ? inb(DATA) : -1;
}

/* Appends the check code: " #" and the low 16 bits of the CRC-32 of all before it, then LF. Returns the length. */
static uint32_t compose(char *line, const char *format, va_list arguments)
{
	uint32_t length = (uint32_t)text_format(line, LINE_BYTES - 8, format, arguments), crc = UINT32_MAX;

	for (uint32_t i = 0; i < length; i++)
		crc = crc >> 8 ^ crc_table[(crc ^ (uint8_t)line[i]) & 0xff];
	crc = ~crc;
	line[length++] = ' ';
	line[length++] = '#';
	for (int shift = 12; shift >= 0; shift -= 4)
		line[length++] = "0123456789abcdef"[crc >> shift & 15];
	line[length++] = '\n';
	return length;
}

static bool post(const char *line, uint32_t length)
{
	if (RING_BYTES - (put - sent) < length)
		return false;
	for (uint32_t i = 0; i < length; i++)
		ring[put++ % RING_BYTES] = line[i];
	return true;
}

/* Posts a line unless the ring is full; never waits for the port. */
bool serial_try(const char *format, ...)
{
	char line[LINE_BYTES];
	va_list arguments;
	uint32_t length;

	va_start(arguments, format);
	length = compose(line, format, arguments);
	va_end(arguments);
	return post(line, length);
}

static void post_waiting(const char *line, uint32_t length)
{
	while (!post(line, length))
		serial_pump();
}

void serial_line(const char *format, ...)
{
	char line[LINE_BYTES];
	va_list arguments;
	uint32_t length;

	va_start(arguments, format);
	length = compose(line, format, arguments);
	va_end(arguments);
	post_waiting(line, length);
}

/* Writes a line after all that were posted, and waits until it has left. */
void serial_last_line(const char *format, ...)
{
	char line[LINE_BYTES];
	va_list arguments;
	uint32_t length;

	va_start(arguments, format);
	length = compose(line, format, arguments);
	va_end(arguments);
	post_waiting(line, length);
	while (sent != put)
		serial_pump();
	while (!(inb(STATUS) & STATUS_ALL_SENT))
		;
}
