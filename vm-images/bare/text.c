/* What a C library would have, as much of it as is needed. */
#include "bare.h"

void *memcpy(void *to, const void *from, size_t bytes)
{
	void *start = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
	return start;
}

void *memset(void *to, int byte, size_t bytes)
{
	void *start = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(byte) : "memory");
	return start;
}

size_t text_length(const char *text)
{
	size_t length = 0;

	while (text[length])
		length++;
	return length;
}

bool text_begins(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return false;
	return true;
}

bool text_equal(const char *a, const char *b)
{
	return text_begins(a, b) && text_length(a) == text_length(b);
}

/* As vsnprintf with %s, %u, %llu, %x, %04x and %llx, and the length that was written; what does not fit is left out. */
int text_format(char *at, size_t bytes, const char *format, va_list arguments)
{
	char *begin = at, *end = at + bytes - 1;

	for (; *format; format++) {
		char digits[24];
		const char *text = digits + sizeof(digits) - 1;
		uint64_t value;
		unsigned base, least = 1, longs = 0;

		if (*format != '%') {
			if (at < end)
				*at++ = *format;
			continue;
		}
		if (format[1] == '0') {
			least = (unsigned)(format[2] - '0');
			format += 2;
		}
		for (; format[1] == 'l'; format++)
			longs++;
		format++;
		if (*format == 's') {
			text = va_arg(arguments, const char *);
		} else {
			char *digit = digits + sizeof(digits) - 1;

			base = *format == 'x' ? 16 : 10;
			value = longs ? va_arg(arguments, unsigned long long) : va_arg(arguments, unsigned);
			*digit = '\0';
			for (; value || least; value /= base) {
				*--digit = "0123456789abcdef"[value % base];
				least -= least > 0;
			}
			text = digit;
		}
		while (*text && at < end)
			*at++ = *text++;
	}
	*at = '\0';
	return (int)(at - begin);
}
