/* Where things are in the lowest megabyte, for start.S and C. The image itself is at 1 MiB; the working set has its
 * own addresses, from 512 GiB on. Kept out of the image, so that the loader need not carry zeros. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define MAX_CPUS 8

#define TRAMPOLINE 0x8000 /* where the other processors begin; QEMU's multiboot information is at 0x9000 */
#define PML4 0x10000
#define PDPT 0x11000
#define WS_PDPT 0x12000
#define PDS 0x13000    /* 4 pages: 4 GiB, one to one */
#define WS_PDS 0x17000 /* 4 pages: 4 GiB of working set */
#define KERNEL_STACKS 0x20000
#define KERNEL_STACK_BYTES 0x400
#define USER_STACKS 0x30000
#define USER_STACK_BYTES 0x4000

#endif
