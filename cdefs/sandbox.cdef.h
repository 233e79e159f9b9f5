/* cdefs/sandbox.h as cffi reads it; see there for what things mean. */

#define PYVMM_SANDBOX_OFF ...
#define PYVMM_SANDBOX_LOG ...
#define PYVMM_SANDBOX_ON ...
#define PYVMM_SANDBOX_CENSUS ...
#define PYVMM_THREAD_LOOP ...
#define PYVMM_THREAD_VCPU ...
#define PYVMM_THREAD_QUEUE ...

struct pyvmm_denial {
    int number;
    int thread;
    uint32_t ioctl;
    uint64_t arguments[...];
    ...;
};

int pyvmm_sandbox(int wanted);
int pyvmm_sandbox_thread(int kind);
void pyvmm_sandbox_tell(int eventfd);
const struct pyvmm_denial *pyvmm_sandbox_denial(uint32_t index);
const char *pyvmm_call_name(uint32_t number);
const char *pyvmm_ioctl_name(uint32_t number);
