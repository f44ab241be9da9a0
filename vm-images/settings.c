/* The kernel command line: qm.NAME=VALUE words. A word we do not know ends the guest: a misspelt setting that is
 * silently ignored makes a test that proves nothing. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workload.h"

static uint64_t number(const char *name, const char *text, uint64_t least, uint64_t most)
{
	char *end;
	uint64_t value;

	errno = 0;
	value = strtoull(text, &end, 0);
	if (errno || end == text || *end || *text == '-' || value < least || value > most)
		die("qm.%s=%s is not a number from %llu to %llu", name, text, (unsigned long long)least,
		    (unsigned long long)most);
	return value;
}

static void set(const char *name, const char *value)
{
	if (!strcmp(name, "rate"))
		settings.rate_mib_s = (unsigned)number(name, value, 0, 65536);
	else if (!strcmp(name, "ws"))
		settings.ws_mib = (unsigned)number(name, value, 1, 1u << 20);
	else if (!strcmp(name, "tick"))
		settings.tick_ms = (unsigned)number(name, value, 1, 10000);
	else if (!strcmp(name, "verify"))
		settings.verify = number(name, value, 0, 1);
	else if (!strcmp(name, "seed"))
		settings.seed = number(name, value, 0, UINT64_MAX);
	else if (!strcmp(name, "poweroff_after_ticks"))
		settings.poweroff_after_ticks = number(name, value, 1, UINT64_MAX);
	else if (!strcmp(name, "reboot_after_ticks"))
		settings.reboot_after_ticks = number(name, value, 1, UINT64_MAX);
	else if (!strcmp(name, "panic_after_ticks"))
		settings.panic_after_ticks = number(name, value, 1, UINT64_MAX);
	else if (!strcmp(name, "disk") && !strncmp(value, "/dev/", 5) && strlen(value) < sizeof(settings.disk))
		strcpy(settings.disk, value);
	else
		die("unknown setting qm.%s=%s", name, value);
}

void settings_read(void)
{
	static char line[4096];
	FILE *file = fopen("/proc/cmdline", "re");

	settings = (struct settings){ .rate_mib_s = 0, .ws_mib = 16, .tick_ms = 100, .verify = true, .seed = 1 };
	if (!file || !fgets(line, sizeof(line), file))
		die("/proc/cmdline: %s", strerror(errno));
	fclose(file);
	for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
		char *equals;

		if (strncmp(word, "qm.", 3))
			continue;
		equals = strchr(word, '=');
		if (!equals)
			die("setting %s has no value", word);
		*equals = '\0';
		set(word + 3, equals + 1);
	}
}
