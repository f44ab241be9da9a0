/* What the guest is told from outside: command lines on the serial input, and the power button. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/input.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workload.h"

#define MAX_BUTTONS 8

/* Each command that is understood is answered by QM CMD, any other by QM ERR, before it is carried out. */
static void obey(char *line)
{
	char *end;
	unsigned long rate;

	line[strcspn(line, "\r\n")] = '\0';
	if (!*line)
		return;
	rate = !strncmp(line, "rate ", 5) && line[5] >= '0' && line[5] <= '9' ? strtoul(line + 5, &end, 10) : ULONG_MAX;
	if (rate <= 65536 && !*end) {
		serial_line("QM CMD %s", line);
		memory_set_rate((unsigned)rate);
	} else if (!strcmp(line, "verify")) {
		serial_line("QM CMD %s", line);
		memory_verify_now();
	} else if (!strcmp(line, "poweroff")) {
		request_end(END_POWEROFF);
	} else if (!strcmp(line, "reboot")) {
		request_end(END_REBOOT);
	} else if (!strcmp(line, "panic")) {
		request_end(END_PANIC);
	} else {
		serial_line("QM ERR unknown command");
	}
}

static void *obey_lines(void *unused)
{
	char line[64];
	FILE *serial = fopen("/dev/ttyS0", "re");

	(void)unused;
	while (serial && fgets(line, sizeof(line), serial))
		obey(line);
	serial_line("QM ERR serial input: %s", strerror(errno));
	return NULL;
}

/* QMP system_powerdown arrives here. */
static void *watch_buttons(void *unused)
{
	struct pollfd buttons[MAX_BUTTONS];
	struct input_event event;
	unsigned count = 0;
	char path[32];

	(void)unused;
	for (unsigned i = 0; i < MAX_BUTTONS; i++) {
		snprintf(path, sizeof(path), "/dev/input/event%u", i);
		buttons[count].fd = open(path, O_RDONLY | O_CLOEXEC);
		buttons[count].events = POLLIN;
		count += buttons[count].fd >= 0;
	}
	while (count && poll(buttons, count, -1) >= 0)
		for (unsigned i = 0; i < count; i++)
			if (buttons[i].revents && read(buttons[i].fd, &event, sizeof(event)) == sizeof(event) &&
			    event.type == EV_KEY && event.code == KEY_POWER && event.value == 1)
				request_end(END_POWEROFF);
	return NULL;
}

void control_start(void)
{
	thread_start(obey_lines, PRIORITY_SERIAL);
	thread_start(watch_buttons, PRIORITY_SERIAL);
}
