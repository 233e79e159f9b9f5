/* cdefs/map.c as cffi reads it. */

int pyvmm_map_aligned(int fd, uint64_t offset, uint64_t size, int writable, uint64_t alignment,
    uint64_t phase, uintptr_t *address);
int pyvmm_map_private(uintptr_t address, int fd, uint64_t offset, uint64_t size);
int pyvmm_madvise(uintptr_t address, uint64_t size, int advice);
int pyvmm_unmap(uintptr_t address, uint64_t size);
int pyvmm_protect(uintptr_t address, uint64_t size, int protection);
int pyvmm_move(uintptr_t from, uint64_t size, uintptr_t to);
int pyvmm_allocate(int fd, uint64_t size);
int pyvmm_is_dax(int fd);
