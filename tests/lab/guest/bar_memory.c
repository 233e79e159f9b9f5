// SPDX-License-Identifier: Apache-2.0
/*
 * In a guest that was given a device: write and read back a BAR that is memory.
 *
 *     bar-memory /sys/bus/pci/devices/BDF/resource4_wc STRIDE [normal]
 *
 * Leaves in each page that it touches, one each STRIDE bytes, a word that depends on the offset,
 * for whoever looks from the host. A STRIDE of 8 fills all of it. With "normal" it also makes
 * accesses that memory takes and Device memory does not.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MARK 0x434F4845524E5421ull

int main(int argc, char **argv)
{
	uint64_t stride, size, errors = 0;
	struct stat status;
	uint8_t *memory;
	int fd;

	if (argc < 3)
		return 2;
	stride = strtoull(argv[2], NULL, 0);
	fd = open(argv[1], O_RDWR);
	if (fd < 0 || fstat(fd, &status)) {
		perror(argv[1]);
		return 1;
	}
	size = status.st_size;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	for (uint64_t at = 0; at < size; at += stride)
		*(volatile uint64_t *)(memory + at) = at ^ MARK;
	for (uint64_t at = 0; at < size; at += stride)
		errors += *(volatile uint64_t *)(memory + at) != (at ^ MARK);
	if (argc > 3) {
		uint64_t odd = ~MARK, found;

		for (uint64_t at = 0; at < size; at += 2 << 20) {
			uint8_t *end = memory + at + (2 << 20) - 4096;

			memcpy(end + 33, &odd, sizeof(odd)); /* unaligned */
			memcpy(&found, end + 33, sizeof(found));
			errors += found != odd;
			__asm__ volatile("dc zva, %0" : : "r"(end + 2048) : "memory");
			errors += *(volatile uint64_t *)(end + 2048) != 0;
		}
	}
	printf("bar-memory: %llu MiB, %llu errors\n", (unsigned long long)size >> 20,
	       (unsigned long long)errors);
	return errors != 0;
}
