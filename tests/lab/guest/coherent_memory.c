// SPDX-License-Identifier: Apache-2.0
/*
 * A guest's view of coherent device memory: find it in the device tree, map it Normal through
 * /dev/mem, and use it as only Normal Write-Back memory can be used.
 *
 * Fills all of it with a pattern that depends on the address, reads it back, makes unaligned and
 * atomic accesses, and leaves a known word in every page for whoever looks through VFIO.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RESERVED "/proc/device-tree/reserved-memory/"
#define PAGE 4096ul

static uint64_t big_endian(const uint8_t *bytes)
{
	uint64_t value = 0;

	for (int i = 0; i < 8; i++)
		value = value << 8 | bytes[i];
	return value;
}

static int find(uint64_t *base, uint64_t *size)
{
	DIR *directory = opendir(RESERVED);
	struct dirent *entry;
	uint8_t reg[16];
	char path[512];

	while (directory && (entry = readdir(directory))) {
		int fd, got;

		if (strncmp(entry->d_name, "coherent@", 9))
			continue;
		snprintf(path, sizeof(path), RESERVED "%s/reg", entry->d_name);
		fd = open(path, O_RDONLY);
		got = read(fd, reg, sizeof(reg));
		close(fd);
		if (got != sizeof(reg))
			continue;
		*base = big_endian(reg);
		*size = big_endian(reg + 8);
		closedir(directory);
		return 0;
	}
	return -1;
}

static uint64_t pattern(uint64_t at)
{
	return (at + 1) * 0x9E3779B97F4A7C15ull;
}

int main(void)
{
	uint64_t base, size, errors = 0;
	uint8_t *memory;
	int fd;

	if (find(&base, &size)) {
		puts("no coherent memory in the device tree");
		return 1;
	}
	fd = open("/dev/mem", O_RDWR); /* without O_SYNC: as cacheable as the kernel has it */
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, base);
	if (memory == MAP_FAILED) {
		perror("mmap /dev/mem");
		return 1;
	}
	for (uint64_t at = 0; at < size; at += 8)
		*(volatile uint64_t *)(memory + at) = pattern(at);
	for (uint64_t at = 0; at < size; at += 8)
		errors += *(volatile uint64_t *)(memory + at) != pattern(at);
	for (uint64_t at = 0; at < size; at += PAGE) {
		_Atomic uint64_t *counter = (_Atomic uint64_t *)(memory + at + 64);
		uint64_t odd = ~pattern(at), found;

		memcpy(memory + at + 33, &odd, sizeof(odd)); /* unaligned */
		memcpy(&found, memory + at + 33, sizeof(found));
		errors += found != odd;
		atomic_store(counter, at);
		atomic_fetch_add(counter, 3);
		errors += atomic_load(counter) != at + 3;
		*(volatile uint64_t *)(memory + at) = at ^ 0x434F4845524E5421ull;
	}
	/* DC ZVA, which Device memory does not take */
	__asm__ volatile("dc zva, %0" : : "r"(memory + PAGE / 2) : "memory");
	errors += *(volatile uint64_t *)(memory + PAGE / 2) != 0;
	printf("coherent memory at %#llx: %llu MiB, %llu errors\n", (unsigned long long)base,
	       (unsigned long long)size >> 20, (unsigned long long)errors);
	return errors != 0;
}
