/* What the guest is told from outside: command lines on the serial input, and the power button. */
#include "bare.h"

/* Each command that is understood is answered by QM CMD, any other by QM ERR, before it is carried out. */
static void obey(const char *line)
{
	uint32_t rate;

	if (!*line)
		return;
	if (text_begins(line, "rate ") && rate_read(line + 5, &rate)) {
		serial_line("QM CMD %s", line);
		memory_set_rate(rate);
	} else if (text_equal(line, "verify")) {
		serial_line("QM CMD %s", line);
		memory_verify_now();
	} else if (text_equal(line, "poweroff")) {
		request_end(END_POWEROFF);
	} else if (text_equal(line, "reboot")) {
		request_end(END_REBOOT);
	} else if (text_equal(line, "panic")) {
		request_end(END_PANIC);
	} else {
		serial_line("QM ERR unknown command");
	}
}

void control_step(void)
{
	static char line[64];
	static unsigned length;
	int byte;

	while ((byte = serial_byte()) >= 0) {
		if (byte != '\n' && byte != '\r') {
			if (length < sizeof(line) - 1)
				line[length++] = (char)byte;
			continue;
		}
		line[length] = '\0';
		length = 0;
		obey(line);
	}
	if (machine_power_button())
		request_end(END_POWEROFF);
}
