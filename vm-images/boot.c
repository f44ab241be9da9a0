/* What an init does before the work: mounts, and the drivers in the order that the build worked out. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "workload.h"

static void mount_at(const char *type, const char *path)
{
	mkdir(path, 0755);
	if (mount(type, path, type, 0, NULL) && errno != EBUSY)
		die("mount %s: %s", path, strerror(errno));
}

void boot_mount(void)
{
	mount_at("devtmpfs", "/dev");
	mount_at("proc", "/proc");
	mount_at("sysfs", "/sys");
	/* Only emergencies may still write to the serial line: kernel text in the middle of ours costs evidence. */
	klogctl(8 /* SYSLOG_ACTION_CONSOLE_LEVEL */, NULL, 1);
}

void boot_load_modules(void)
{
	char name[128], path[160];
	FILE *order = fopen("/modules/order", "re");

	if (!order)
		die("/modules/order: %s", strerror(errno));
	while (fgets(name, sizeof(name), order)) {
		int module;

		name[strcspn(name, "\n")] = '\0';
		snprintf(path, sizeof(path), "/modules/%s", name);
		module = open(path, O_RDONLY | O_CLOEXEC);
		if (module < 0)
			die("%s: %s", path, strerror(errno));
		/* ENODEV: the driver's machine part is not there, which is for the command line to decide. */
		if (syscall(SYS_finit_module, module, "", 0) && errno != EEXIST && errno != ENODEV)
			die("module %s: %s", name, strerror(errno));
		close(module);
	}
	fclose(order);
}
