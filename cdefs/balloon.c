// SPDX-License-Identifier: Apache-2.0
/*
 * Memory that a guest gives back: page by page into the balloon, or as ranges that it reports free
 * (VIRTIO 1.2, 5.5). The guest counts in pages of 4 KiB, whatever the host's size is. So each page
 * is recorded, and a host page goes back when all of it was given.
 */
#include <errno.h>
#include <linux/virtio_balloon.h>
#include <string.h>
#include <sys/mman.h>

#include "balloon.h"

#define PAGE (UINT64_C(1) << VIRTIO_BALLOON_PFN_SHIFT)
#define AT_ONCE 256 /* page numbers copied from a chain at a time; Linux sends as many */

static struct pyvmm_balloon_range *find(struct pyvmm_balloon *balloon, uint64_t address)
{
	for (uint32_t i = 0; i < balloon->count; i++) {
		struct pyvmm_balloon_range *range = &balloon->ranges[i];

		if (address >= range->base && address - range->base < range->size)
			return range;
	}
	return NULL;
}

static void give_back(struct pyvmm_balloon *balloon, const struct pyvmm_balloon_range *range,
		      uint64_t offset, uint64_t size)
{
	if (balloon->keep || !size)
		return;
	if (!madvise(range->host + offset, size, range->advice))
		balloon->returned += size;
	else if (!balloon->error)
		balloon->error = errno;
	pyvmm_dirty_mark(balloon->dirty, range->host + offset, size);
}

/* --- The balloon ----------------------------------------------------------------------------- */

/* Adjacent host pages that go back with one call. */
struct run {
	struct pyvmm_balloon_range *range;
	uint64_t start, end; /* offsets into the range */
};

static void end_run(struct pyvmm_balloon *balloon, struct run *run)
{
	if (run->range)
		give_back(balloon, run->range, run->start, run->end - run->start);
	run->range = NULL;
}

/* Guests give pages upwards or downwards. */
static void extend(struct pyvmm_balloon *balloon, struct run *run,
		   struct pyvmm_balloon_range *range, uint64_t offset)
{
	if (run->range == range && offset == run->end) {
		run->end += balloon->page;
	} else if (run->range == range && offset + balloon->page == run->start) {
		run->start = offset;
	} else {
		end_run(balloon, run);
		*run = (struct run){ range, offset, offset + balloon->page };
	}
}

/* Return whether all of the host page at this offset was given. */
static int is_whole(const struct pyvmm_balloon *balloon, const struct pyvmm_balloon_range *range,
		    uint64_t offset)
{
	for (uint64_t at = offset; at < offset + balloon->page; at += PAGE)
		if (!(range->given[at / PAGE / 64] >> at / PAGE % 64 & 1))
			return 0;
	return 1;
}

/* Find the range of a page and its number there. Counts a page that is not RAM: NULL. */
static struct pyvmm_balloon_range *locate(struct pyvmm_balloon *balloon, uint32_t pfn,
					  uint64_t *number)
{
	uint64_t address = (uint64_t)pfn << VIRTIO_BALLOON_PFN_SHIFT;
	struct pyvmm_balloon_range *range = find(balloon, address);

	if (range)
		*number = (address - range->base) / PAGE;
	else
		balloon->foreign++;
	return range;
}

static void take(struct pyvmm_balloon *balloon, uint32_t pfn, struct run *run)
{
	uint64_t number, bit, offset;
	struct pyvmm_balloon_range *range = locate(balloon, pfn, &number);

	if (!range)
		return;
	bit = UINT64_C(1) << number % 64;
	if (range->given[number / 64] & bit)
		return;
	range->given[number / 64] |= bit;
	balloon->given++;
	offset = number * PAGE & ~(balloon->page - 1);
	if (is_whole(balloon, range, offset))
		extend(balloon, run, range, offset);
}

static void leave(struct pyvmm_balloon *balloon, uint32_t pfn)
{
	uint64_t number, bit;
	struct pyvmm_balloon_range *range = locate(balloon, pfn, &number);

	if (!range)
		return;
	bit = UINT64_C(1) << number % 64;
	if (range->given[number / 64] & bit) {
		range->given[number / 64] &= ~bit;
		balloon->given--;
	}
}

/* Copy the next page numbers from the chain, up to MOST_PFNS in all. Returns how many. */
static uint32_t next(const struct pyvmm_chain *chain, uint64_t done, uint32_t *pfns)
{
	if (done >= PYVMM_BALLOON_MOST_PFNS)
		return 0;
	return (uint32_t)(pyvmm_chain_read(chain, done * sizeof(*pfns), pfns,
					   AT_ONCE * sizeof(*pfns)) / sizeof(*pfns));
}

/* Take the pages that the chain names. */
void pyvmm_balloon_inflate(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain)
{
	uint32_t pfns[AT_ONCE], count;
	struct run run = { NULL, 0, 0 };

	for (uint64_t done = 0; (count = next(chain, done, pfns)); done += count)
		for (uint32_t i = 0; i < count; i++)
			take(balloon, pfns[i], &run);
	end_run(balloon, &run);
}

/* Return the named pages to the guest: those that the host took read as zeroes. */
void pyvmm_balloon_deflate(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain)
{
	uint32_t pfns[AT_ONCE], count;

	for (uint64_t done = 0; (count = next(chain, done, pfns)); done += count)
		for (uint32_t i = 0; i < count; i++)
			leave(balloon, pfns[i]);
}

/* Forget all given pages: the driver is gone, and its successor may use any. */
void pyvmm_balloon_forget(struct pyvmm_balloon *balloon)
{
	for (uint32_t i = 0; i < balloon->count; i++)
		memset(balloon->ranges[i].given, 0, (balloon->ranges[i].size / PAGE + 63) / 64 * 8);
	balloon->given = 0;
}

/* --- Free page reporting (5.5.6.7) ----------------------------------------------------------- */

/* Give back the whole pages of the chain's buffers, which are free until the chain is used. */
void pyvmm_balloon_report(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain)
{
	for (uint32_t i = 0; i < chain->writable; i++) {
		uint64_t address = chain->addresses[chain->readable + i];
		uint64_t length = chain->segments[chain->readable + i].iov_len;
		struct pyvmm_balloon_range *range = find(balloon, address);
		uint64_t start, end;

		if (!range) {
			balloon->foreign++;
			continue;
		}
		start = address - range->base;
		end = start + length > range->size ? range->size : start + length;
		start = (start + balloon->page - 1) & ~(balloon->page - 1);
		end &= ~(balloon->page - 1);
		if (start < end)
			give_back(balloon, range, start, end - start);
	}
}
