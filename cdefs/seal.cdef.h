/* cdefs/seal.h as cffi reads it; see there for what things mean. */

int pyvmm_seal(void);
