/* cdefs/copy.c as cffi reads it. */

void pyvmm_copy(void *to, const void *from, size_t size);
uint64_t pyvmm_zero_prefix(const void *from, size_t size);
uint64_t pyvmm_nonzero_pages(const void *from, uint64_t pages, size_t page, uint64_t *bitmap);
uint64_t pyvmm_bitmap_count(const uint64_t *bitmap, uint64_t bits);
uint64_t pyvmm_bitmap_runs(const uint64_t *bitmap, uint64_t bits, uint64_t *from,
    uint64_t *runs, uint64_t max);

uint64_t pyvmm_ctr_el0(void);
uint64_t pyvmm_cntfrq_el0(void);
void pyvmm_dc_cvac(const void *from, size_t size);
void pyvmm_dc_civac(const void *from, size_t size);
void pyvmm_sync_code(void *from, size_t size);
