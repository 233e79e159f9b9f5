/* cdefs/sanitizer.c as cffi reads it. */

int pyvmm_sanitize(const void *cache, void *memory, void *synced, size_t size);
void pyvmm_unsanitize(const void *cache);
