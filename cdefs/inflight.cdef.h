/* cdefs/inflight.h as cffi reads it; see there for what things mean. */

struct pyvmm_inflight {
    uint16_t size;
    uint8_t *driver;
    uint8_t *device;
    uint64_t *since;
    uint8_t *count;
    uint16_t avail;
    uint16_t used;
    uint64_t seen;
    uint8_t exact;
    int doorbell;
    int kick;
    int stop;
};

void pyvmm_inflight_run(struct pyvmm_inflight *inflight);
void pyvmm_inflight_look(struct pyvmm_inflight *inflight);
int32_t pyvmm_inflight_requeue(struct pyvmm_inflight *inflight, uint16_t *heads);
