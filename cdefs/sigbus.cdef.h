/* cdefs/sigbus.c as cffi reads it. */

int pyvmm_sigbus_watch(uintptr_t address, uint64_t size);
void pyvmm_sigbus_forget(int entry);
int64_t pyvmm_sigbus_lost(int entry);
void pyvmm_sigbus_tell(int eventfd);
