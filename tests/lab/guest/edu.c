// SPDX-License-Identifier: Apache-2.0
/*
 * In a guest that was given QEMU's edu device: use all that it can do, by its registers, by DMA
 * from and to memory of ours, and by the interrupts of its pin (INTx) through UIO.
 * Source for the device: QEMU, docs/specs/edu.rst.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define COMMAND 4
#define COMMAND_MEMORY 0x2
#define COMMAND_MASTER 0x4
#define COMMAND_INTX_DISABLE 0x400

#define IDENTIFICATION 0x00
#define LIVENESS 0x04
#define FACTORIAL 0x08
#define STATUS 0x20
#define STATUS_BUSY 0x01
#define STATUS_INTERRUPT 0x80
#define RAISED 0x24
#define RAISE 0x60
#define ACKNOWLEDGE 0x64
#define DMA_FROM 0x80
#define DMA_TO 0x88
#define DMA_COUNT 0x90
#define DMA_COMMAND 0x98
#define DMA_START 1
#define DMA_TO_MEMORY 2
#define DMA_INTERRUPT 4
#define BUFFER 0x40000

static volatile uint8_t *registers;
static int config, uio;
static unsigned errors;

static uint32_t get(unsigned at)
{
	return *(volatile uint32_t *)(registers + at);
}

static void put(unsigned at, uint32_t value)
{
	*(volatile uint32_t *)(registers + at) = value;
}

static void put64(unsigned at, uint64_t value)
{
	*(volatile uint64_t *)(registers + at) = value;
}

static void check(const char *what, int good)
{
	printf("edu: %s: %s\n", what, good ? "good" : "WRONG");
	errors += !good;
}

static int open_file(const char *directory, const char *name)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, O_RDWR | O_SYNC);
	if (fd < 0) {
		perror(path);
		exit(1);
	}
	return fd;
}

static void set_command(uint16_t set, uint16_t clear)
{
	uint16_t value;

	pread(config, &value, sizeof(value), COMMAND);
	value = (value | set) & ~clear;
	pwrite(config, &value, sizeof(value), COMMAND);
}

/* Wait for an interrupt, whose handler has switched INTx off; return what the device raised. */
static uint32_t interrupt(void)
{
	struct pollfd waiting = { .fd = uio, .events = POLLIN };
	uint32_t count, raised;

	if (poll(&waiting, 1, 10000) != 1)
		return 0;
	read(uio, &count, sizeof(count));
	raised = get(RAISED);
	put(ACKNOWLEDGE, raised);
	set_command(0, COMMAND_INTX_DISABLE);
	return raised;
}

static uint64_t physical(void *address)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	pread(fd, &entry, sizeof(entry), (uintptr_t)address / PAGE * sizeof(entry));
	close(fd);
	return (entry & ((1ull << 55) - 1)) * PAGE;
}

static void transfer(uint64_t from, uint64_t to, uint32_t command)
{
	put64(DMA_FROM, from);
	put64(DMA_TO, to);
	put64(DMA_COUNT, PAGE);
	put64(DMA_COMMAND, command | DMA_START | DMA_INTERRUPT);
}

int main(int argc, char **argv)
{
	uint8_t *memory;

	if (argc != 3 && argc != 5) {
		fprintf(stderr, "usage: edu /sys/bus/pci/devices/BDF /dev/uioN [PEER ADDRESS]\n");
		return 1;
	}
	config = open_file(argv[1], "config");
	uio = open(argv[2], O_RDWR);
	set_command(COMMAND_MEMORY | COMMAND_MASTER, COMMAND_INTX_DISABLE);
	registers = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED,
			 open_file(argv[1], "resource0"), 0);
	memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_LOCKED, -1, 0);
	if (uio < 0 || registers == MAP_FAILED || memory == MAP_FAILED) {
		perror("edu");
		return 1;
	}

	check("identification", get(IDENTIFICATION) == 0x010000ed);
	put(LIVENESS, 0x12345678);
	check("liveness", get(LIVENESS) == ~0x12345678u);

	put(STATUS, STATUS_INTERRUPT);
	put(FACTORIAL, 10);
	check("interrupt when the factorial is there", interrupt() == 1);
	check("factorial", get(FACTORIAL) == 3628800 && !(get(STATUS) & STATUS_BUSY));

	for (unsigned bit = 4; bit < 12; bit++) {
		put(RAISE, 1u << bit);
		if (interrupt() != 1u << bit)
			check("an interrupt of ours", 0);
	}
	check("eight interrupts of ours", 1);

	for (unsigned i = 0; i < PAGE; i++)
		memory[i] = i * 7 + i / 256;
	memset(memory + PAGE, 0, PAGE);
	transfer(physical(memory), BUFFER, 0);
	check("interrupt after DMA from memory", interrupt() == 0x100);
	transfer(BUFFER, physical(memory + PAGE), DMA_TO_MEMORY);
	check("interrupt after DMA to memory", interrupt() == 0x100);
	check("what DMA copied", !memcmp(memory, memory + PAGE, PAGE));

	/* Memory of another device: PEER is its directory in sysfs, ADDRESS where its BAR 0 is. */
	if (argc == 5) {
		uint8_t *peer = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED,
				     open_file(argv[3], "resource0"), 0);

		if (peer == MAP_FAILED) {
			perror(argv[3]);
			return 1;
		}
		memset(peer + 0x80000, 0, PAGE);
		transfer(BUFFER, strtoull(argv[4], NULL, 0) + 0x80000, DMA_TO_MEMORY);
		check("interrupt after DMA to another device", interrupt() == 0x100);
		check("what it got", !memcmp(peer + 0x80000, memory, PAGE));
	}

	/* Where no memory is, DMA must reach nothing; the device does not tell. */
	transfer(BUFFER, 0x9000000, DMA_TO_MEMORY);
	check("interrupt after DMA to the console's registers", interrupt() == 0x100);
	printf("edu: %u errors\n", errors);
	return errors != 0;
}
