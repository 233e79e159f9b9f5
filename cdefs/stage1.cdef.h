/* cdefs/stage1.h and parts of <signal.h> as cffi reads them. */

struct pyvmm_fault {
    int number;
    int code;
};

struct pyvmm_walks {
    uint64_t cold;
    uint64_t warm;
};

int pyvmm_stage1_load(uintptr_t address, struct pyvmm_fault *fault);
int pyvmm_stage1_walk(uintptr_t address, struct pyvmm_walks *walks, struct pyvmm_fault *fault);

#define BUS_ADRALN ...
#define BUS_ADRERR ...
#define BUS_OBJERR ...
