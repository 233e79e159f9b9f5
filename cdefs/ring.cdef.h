/* cdefs/ring.h as cffi reads it; see there for what things mean. */

struct pyvmm_range {
    uint64_t base;
    uint64_t size;
    uint8_t *host;
};

struct pyvmm_memory {
    uint32_t count;
    struct pyvmm_range *ranges;
    struct pyvmm_dirty *dirty;
};

#define PYVMM_RING_SIZE ...
#define PYVMM_RING_ALIGNMENT ...
#define PYVMM_RING_ADDRESS ...
#define PYVMM_RING_INDEX ...
#define PYVMM_RING_DESCRIPTOR ...
#define PYVMM_RING_LOOP ...
#define PYVMM_RING_EMPTY ...
#define PYVMM_RING_ORDER ...
#define PYVMM_RING_INDIRECT ...
#define PYVMM_RING_NESTED ...
#define PYVMM_RING_TABLE ...
#define PYVMM_RING_REUSED ...
#define PYVMM_RING_SEGMENTS ...
#define PYVMM_RING_LENGTH ...
#define PYVMM_RING_REQUEST ...

struct iovec {
    void *iov_base;
    size_t iov_len;
};

struct pyvmm_chain {
    uint32_t capacity;
    struct iovec *segments;
    uint64_t *addresses;
    uint32_t readable;
    uint32_t writable;
    uint64_t readable_bytes;
    uint64_t writable_bytes;
    uint16_t id;
    struct pyvmm_dirty *dirty;
};

struct pyvmm_queue {
    struct pyvmm_memory *memory;
    uint16_t *taken;
    uint32_t taken_count;
    uint16_t size;
    uint8_t packed;
    uint8_t event_idx;
    uint8_t indirect;
    uint8_t *descriptors;
    uint8_t *driver;
    uint8_t *device;
    uint16_t next_avail;
    uint16_t next_used;
    uint8_t avail_wrap;
    uint8_t used_wrap;
    uint32_t in_flight;
    struct pyvmm_queue_observer *observer;
    ...;
};

struct pyvmm_interrupt {
    uint32_t status;
    uint32_t standing;
    int eventfd;
    uint64_t raised;
    struct pyvmm_trace_ring *ring;
};

int pyvmm_queue_configure(struct pyvmm_queue *queue, uint64_t descriptors, uint64_t driver,
    uint64_t device);
int pyvmm_queue_pop(struct pyvmm_queue *queue, struct pyvmm_chain *chain);
int pyvmm_queue_push(struct pyvmm_queue *queue, uint16_t id, uint32_t length);
int pyvmm_queue_enable_notify(struct pyvmm_queue *queue);
void pyvmm_queue_disable_notify(struct pyvmm_queue *queue);
int pyvmm_queue_should_interrupt(struct pyvmm_queue *queue);

uint64_t pyvmm_chain_read(const struct pyvmm_chain *chain, uint64_t offset, void *to,
    uint64_t size);
uint64_t pyvmm_chain_write(struct pyvmm_chain *chain, uint64_t offset, const void *from,
    uint64_t size);
int64_t pyvmm_chain_fill_random(struct pyvmm_chain *chain, uint64_t most);
int64_t pyvmm_chain_to_file(const struct pyvmm_chain *chain, uint64_t offset, int fd,
    uint64_t most);
int64_t pyvmm_chain_from_file(const struct pyvmm_chain *chain, int fd, uint64_t most);

void pyvmm_interrupt_raise(struct pyvmm_interrupt *interrupt, uint32_t bits);
void pyvmm_interrupt_acknowledge(struct pyvmm_interrupt *interrupt, uint32_t bits);
uint32_t pyvmm_interrupt_status(struct pyvmm_interrupt *interrupt);
void pyvmm_interrupt_stand(struct pyvmm_interrupt *interrupt, uint32_t bits);
