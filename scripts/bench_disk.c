// SPDX-License-Identifier: Apache-2.0
/*
 * How fast a disk is, seen from a guest: as little as can be beside the disk's own work, since
 * in a guest on an emulated host a benchmark like fio takes longer for a request than the disk.
 *
 *     bench-disk DEVICE read|write random|sequential BLOCK-SIZE DEPTH SECONDS
 *
 * keeps DEPTH requests under way (O_DIRECT, by the kernel's native asynchronous I/O), and prints
 *
 *     bench-disk MODE PATTERN BLOCK-SIZE DEPTH: N requests in S seconds
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 256

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(int argc, char **argv)
{
	static struct iocb requests[MOST];
	struct iocb *again[MOST];
	struct io_event done[MOST];
	aio_context_t context = 0;
	uint64_t size, blocks, at = 0, seed = 0x9e3779b97f4a7c15, count = 0;
	int file, writing, randomly, depth;
	double began, seconds;
	uint8_t *memory;
	size_t block;
	long turn;

	if (argc != 7)
		return 2;
	writing = !strcmp(argv[2], "write");
	randomly = !strcmp(argv[3], "random");
	block = strtoul(argv[4], NULL, 0);
	depth = atoi(argv[5]);
	seconds = atof(argv[6]);
	if (depth < 1 || depth > MOST)
		return 2;
	file = open(argv[1], O_DIRECT | (writing ? O_RDWR : O_RDONLY));
	if (file < 0)
		fail(argv[1]);
	if (ioctl(file, BLKGETSIZE64, &size))
		fail("BLKGETSIZE64");
	blocks = size / block;
	memory = aligned_alloc(4096, block * (size_t)depth);
	if (!memory)
		fail("memory");
	memset(memory, 0xa5, block * (size_t)depth);
	if (syscall(__NR_io_setup, depth, &context))
		fail("io_setup");
	for (int i = 0; i < depth; i++) {
		requests[i].aio_fildes = (uint32_t)file;
		requests[i].aio_lio_opcode = writing ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
		requests[i].aio_buf = (uintptr_t)(memory + block * (size_t)i);
		requests[i].aio_nbytes = block;
		again[i] = &requests[i];
	}
	turn = depth;
	began = now();
	for (;;) {
		for (long i = 0; i < turn; i++) {
			if (randomly) { /* xorshift64 */
				seed ^= seed << 13;
				seed ^= seed >> 7;
				seed ^= seed << 17;
				at = seed;
			}
			again[i]->aio_offset = (int64_t)(at++ % blocks * block);
		}
		if (turn && syscall(__NR_io_submit, context, turn, again) != turn)
			fail("io_submit");
		turn = syscall(__NR_io_getevents, context, 1, depth, done, NULL);
		if (turn < 1)
			fail("io_getevents");
		for (long i = 0; i < turn; i++) {
			if (done[i].res != (int64_t)block) {
				fprintf(stderr, "a request ended with %lld\n", (long long)done[i].res);
				return 1;
			}
			again[i] = (struct iocb *)(uintptr_t)done[i].obj;
		}
		count += (uint64_t)turn;
		if (now() - began >= seconds)
			break;
	}
	printf("bench-disk %s %s %s %s: %llu requests in %.6f seconds\n", argv[2], argv[3], argv[4],
	       argv[5], (unsigned long long)count, now() - began);
	return 0;
}
