// SPDX-License-Identifier: Apache-2.0
/*
 * Map files, above all devices' memory, at host addresses that allow huge pages.
 *
 * The kernel maps memory that it does not manage (PFNMAP) in blocks - 2 MiB and 1 GiB with pages of
 * 4 KiB - only where virtual and physical address agree in the bits below the block, and mmap(2)
 * aligns to pages only. So: reserve more than is needed, map at the right place in it, and unmap
 * the rest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <fcntl.h>
#include <linux/stat.h>
#include <sys/mman.h>
#include <sys/stat.h>

/*
 * Map size bytes of the file at offset, where address % alignment == phase % alignment.
 * alignment is a power of two and at least a page; offset, size and phase are multiples of pages.
 * Returns 0 and sets *address, or returns -errno with nothing left mapped.
 */
int pyvmm_map_aligned(int fd, uint64_t offset, uint64_t size, int writable, uint64_t alignment,
		      uint64_t phase, uintptr_t *address)
{
	int protection = PROT_READ | (writable ? PROT_WRITE : 0);
	uint64_t room = size + alignment;
	uintptr_t base, start;
	void *got;
	int error;

	if (room < size)
		return -ENOMEM;
	got = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (got == MAP_FAILED)
		return -errno;
	base = (uintptr_t)got;
	start = base + ((phase - base) & (alignment - 1));
	got = mmap((void *)start, size, protection, MAP_SHARED | MAP_FIXED, fd, (off_t)offset);
	if (got == MAP_FAILED) {
		error = errno;
		munmap((void *)base, room);
		return -error;
	}
	if (start > base)
		munmap((void *)base, start - base);
	if (start + size < base + room)
		munmap((void *)(start + size), base + room - (start + size));
	*address = start;
	return 0;
}

/*
 * Replace the mapping at address by a private one of size bytes of the file at offset: stores do
 * not reach the file. All three are multiples of pages. Returns 0 or -errno.
 */
int pyvmm_map_private(uintptr_t address, int fd, uint64_t offset, uint64_t size)
{
	int anonymous = fd < 0 ? MAP_ANONYMOUS : 0;
	void *got = mmap((void *)address, size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE | anonymous, fd, (off_t)offset);

	return got == MAP_FAILED ? -errno : 0;
}

int pyvmm_madvise(uintptr_t address, uint64_t size, int advice)
{
	return madvise((void *)address, size, advice) ? -errno : 0;
}

int pyvmm_unmap(uintptr_t address, uint64_t size)
{
	return munmap((void *)address, size) ? -errno : 0;
}

/* Give the mapping at address the protection PROT_*. Returns 0 or -errno. */
int pyvmm_protect(uintptr_t address, uint64_t size, int protection)
{
	return mprotect((void *)address, size, protection) ? -errno : 0;
}

/*
 * Move the mapping of size bytes at from to the address to, over what is mapped there. Addresses
 * without access are left at from, so that nothing else is mapped there. Returns 0 or -errno.
 */
int pyvmm_move(uintptr_t from, uint64_t size, uintptr_t to)
{
	void *got = mremap((void *)from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)to);

	if (got == MAP_FAILED)
		return -errno;
	got = mmap((void *)from, size, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
	return got == MAP_FAILED ? -errno : 0;
}

/*
 * Give size bytes of the file their blocks, which what is in the file leaves as it is. Returns 0 or
 * -errno: EOPNOTSUPP if the file system cannot.
 */
int pyvmm_allocate(int fd, uint64_t size)
{
	int result;

	do
		result = fallocate(fd, 0, 0, (off_t)size);
	while (result && errno == EINTR);
	return result ? -errno : 0;
}

/*
 * Tell whether the file is on persistent memory and mapped from it directly (DAX), page cache aside:
 * statx(2), STATX_ATTR_DAX, Linux 5.8. Returns 1 or 0; -1 where the kernel does not tell.
 */
int pyvmm_is_dax(int fd)
{
	struct statx about;

	if (statx(fd, "", AT_EMPTY_PATH, 0, &about))
		return -1;
	if (!(about.stx_attributes_mask & STATX_ATTR_DAX))
		return -1;
	return !!(about.stx_attributes & STATX_ATTR_DAX);
}
