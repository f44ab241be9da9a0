/* The command line: qm.NAME=VALUE words. A word that is not known ends the guest: a misspelt setting that is silently
 * ignored makes a test that proves nothing. */
#include "bare.h"

#define IMAGE_NAME "bare.elf "

struct settings settings = {
	.ws_mib = 16, .tick_ms = 100, .verify = true, .seed = 1, .hot = 0, .hot_writes = 90,
};
char command_line[4096];

/* As strtoull with base 0, the whole word or nothing. */
static bool number_read(const char *text, uint64_t *number)
{
	unsigned base = 10;
	uint64_t value = 0;

	if (*text == '0' && text[1]) {
		base = text[1] == 'x' || text[1] == 'X' ? 16 : 8;
		text += base == 16 ? 2 : 1;
	}
	if (!*text)
		return false;
	for (; *text; text++) {
		unsigned digit = 99;

		if (*text >= '0' && *text <= '9')
			digit = (unsigned)(*text - '0');
		else if ((*text | 32) >= 'a' && (*text | 32) <= 'f')
			digit = (unsigned)((*text | 32) - 'a' + 10);
		if (digit >= base || value > (UINT64_MAX - digit) / base)
			return false;
		value = value * base + digit;
	}
	*number = value;
	return true;
}

static uint64_t number(const char *name, const char *text, uint64_t least, uint64_t most)
{
	uint64_t value;

	if (!number_read(text, &value) || value < least || value > most)
		die("qm.%s=%s is not a number from %llu to %llu", name, text, (unsigned long long)least,
		    (unsigned long long)most);
	return value;
}

/* MiB per second, or "unlimited". */
bool rate_read(const char *text, uint32_t *rate)
{
	uint64_t value = RATE_UNLIMITED;

	if (!text_equal(text, "unlimited") && (!number_read(text, &value) || value > 65536))
		return false;
	*rate = (uint32_t)value;
	return true;
}

const char *rate_text(uint32_t rate)
{
	static char digits[12];
	char *digit = digits + sizeof(digits) - 1;

	if (rate == RATE_UNLIMITED)
		return "unlimited";
	do {
		*--digit = (char)('0' + rate % 10);
		rate /= 10;
	} while (rate);
	return digit;
}

static void set(const char *name, const char *value)
{
	if (text_equal(name, "rate")) {
		if (!rate_read(value, &settings.rate_mib_s))
			die("qm.rate=%s is not a number from 0 to 65536, nor unlimited", value);
	} else if (text_equal(name, "ws"))
		settings.ws_mib = (uint32_t)number(name, value, 1, 3072);
	else if (text_equal(name, "tick"))
		settings.tick_ms = (uint32_t)number(name, value, 1, 10000);
	else if (text_equal(name, "verify"))
		settings.verify = number(name, value, 0, 1);
	else if (text_equal(name, "seed"))
		settings.seed = number(name, value, 0, UINT64_MAX);
	else if (text_equal(name, "hot"))
		settings.hot = (uint32_t)number(name, value, 0, 99);
	else if (text_equal(name, "hot_writes"))
		settings.hot_writes = (uint32_t)number(name, value, 1, 100);
	else if (text_equal(name, "compute"))
		settings.compute = (uint32_t)number(name, value, 0, MAX_CPUS - 1);
	else if (text_equal(name, "poweroff_after_ticks"))
		settings.poweroff_after_ticks = number(name, value, 1, UINT64_MAX);
	else if (text_equal(name, "reboot_after_ticks"))
		settings.reboot_after_ticks = number(name, value, 1, UINT64_MAX);
	else if (text_equal(name, "panic_after_ticks"))
		settings.panic_after_ticks = number(name, value, 1, UINT64_MAX);
	else if (text_equal(name, "disk"))
		die("qm.disk=%s: the bare guest has no disk journal, the Linux guest has", value);
	else
		die("unknown setting qm.%s=%s", name, value);
}

static void take(char *word)
{
	char *equals = word;

	if (!text_begins(word, "qm.")) {
		/* What the Linux guest is given beside the settings may stand here, too. */
		if (text_equal(word, "panic=-1"))
			settings.reset_on_panic = true;
		else if (!text_begins(word, "console=") && !text_begins(word, "panic=") && !text_equal(word, "quiet") &&
			 !text_equal(word, "no_timer_check"))
			die("unknown word %s", word);
		return;
	}
	while (*equals && *equals != '=')
		equals++;
	if (!*equals)
		die("setting %s has no value", word);
	*equals = '\0';
	set(word + 3, equals + 1);
}

void settings_read(void)
{
	char *at = command_line;

	/* QEMU puts the image's path first, and a path may have spaces in it. */
	for (char *look = command_line; *look; look++)
		if (text_begins(look, IMAGE_NAME)) {
			at = look + sizeof(IMAGE_NAME) - 2;
			break;
		}
	if (at == command_line)
		while (*at && *at != ' ')
			at++;
	while (*at) {
		char *word;

		while (*at == ' ')
			*at++ = '\0';
		word = at;
		while (*at && *at != ' ')
			at++;
		if (*at)
			*at++ = '\0';
		if (*word)
			take(word);
	}
}
