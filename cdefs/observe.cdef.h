/* cdefs/observe.h as cffi reads it; see there for what things mean. */

#define PYVMM_EXIT_REASONS ...
#define PYVMM_BLOCK_SHIFT ...
#define PYVMM_BLOCKS ...

struct pyvmm_record {
    uint64_t begin;
    uint64_t end;
    uint64_t address;
    uint64_t value;
    uint32_t size;
    uint16_t reason;
    uint8_t kind;
    ...;
};

#define PYVMM_RECORD_EXIT ...
#define PYVMM_RECORD_CHAIN ...
#define PYVMM_RECORD_INTERRUPT ...

struct pyvmm_trace_ring {
    struct pyvmm_record *records;
    uint32_t size;
    uint32_t head;
    uint32_t tail;
    int wake;
    ...;
};

struct pyvmm_block {
    uint64_t number;
    uint64_t loads;
    uint64_t stores;
    uint64_t answered;
};

struct pyvmm_exit_observer {
    uint64_t reasons[...];
    uint64_t kicks;
    uint64_t failures;
    struct pyvmm_block blocks[...];
    struct pyvmm_block elsewhere;
    struct pyvmm_trace_ring *ring;
    ...;
};

struct pyvmm_flight {
    uint64_t begin;
    uint64_t readable;
};

struct pyvmm_queue_observer {
    uint64_t chains;
    uint64_t readable;
    uint64_t written;
    uint64_t service;
    struct pyvmm_flight *flights;
    uint32_t flight_count;
    struct pyvmm_trace_ring *ring;
};

struct pyvmm_named {
    uint64_t base;
    uint64_t end;
    const char *name;
};

struct pyvmm_names {
    uint32_t count;
    const struct pyvmm_named *entries;
};

struct pyvmm_trace_source {
    struct pyvmm_trace_ring *ring;
    uint64_t origin;
    uint32_t process;
    uint32_t track;
    const char *name;
    const struct pyvmm_names *names;
    uint32_t reason_count;
    const char *const *reasons;
};

uint64_t pyvmm_observe_now(void);
void pyvmm_observe_time(struct pyvmm_queue_observer *observer, struct pyvmm_flight *flights,
    uint32_t count);
int pyvmm_trace_put(struct pyvmm_trace_ring *ring, const struct pyvmm_record *record);
int64_t pyvmm_trace_format(struct pyvmm_trace_source *source, char *out, uint64_t size,
    uint32_t *taken);
uint64_t pyvmm_trace_lost(struct pyvmm_trace_ring *ring);
