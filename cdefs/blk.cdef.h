/* cdefs/blk.h as cffi reads it, and the part of <linux/virtio_blk.h> that pyvmm uses. */

#define VIRTIO_BLK_F_SEG_MAX ...
#define VIRTIO_BLK_F_RO ...
#define VIRTIO_BLK_F_BLK_SIZE ...
#define VIRTIO_BLK_F_FLUSH ...
#define VIRTIO_BLK_F_MQ ...
#define VIRTIO_BLK_F_DISCARD ...
#define VIRTIO_BLK_F_WRITE_ZEROES ...

#define VIRTIO_BLK_T_IN ...
#define VIRTIO_BLK_T_OUT ...
#define VIRTIO_BLK_T_FLUSH ...
#define VIRTIO_BLK_T_DISCARD ...
#define VIRTIO_BLK_T_WRITE_ZEROES ...

struct virtio_blk_config {
    uint64_t capacity;
    uint32_t seg_max;
    uint32_t blk_size;
    uint16_t num_queues;
    uint32_t max_discard_sectors;
    uint32_t max_discard_seg;
    uint32_t discard_sector_alignment;
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap;
    ...;
};

#define PYVMM_BLK_SERIAL_BYTES ...
#define PYVMM_BLK_DISCARD_RANGES ...
#define PYVMM_BLK_DISCARD_SECTORS ...
#define PYVMM_BLK_ZEROES_RANGES ...
#define PYVMM_BLK_ZEROES_SECTORS ...
#define PYVMM_BLK_MAGIC_BYTES ...
#define PYVMM_BLK_DEPTH ...
#define PYVMM_BLK_PAUSE ...
#define PYVMM_BLK_STOP ...

struct pyvmm_blk_magic {
    uint32_t length;
    uint8_t bytes[...];
};

struct pyvmm_disk {
    int fd;
    int direct_fd;
    uint32_t direct_memory;
    uint32_t direct_offset;
    uint8_t read_only;
    uint8_t write_through;
    uint8_t no_flush;
    uint8_t one_by_one;
    uint64_t sectors;
    uint8_t serial[...];
    uint32_t magic_count;
    const struct pyvmm_blk_magic *magics;
};

struct pyvmm_blk_request {
    struct pyvmm_chain chain;
    ...;
};

struct pyvmm_blk_failure {
    uint32_t type;
    uint8_t refused;
    int error;
    int64_t offset;
    ...;
};

struct pyvmm_uring {
    int fd;
    ...;
};

struct io_uring_sqe {
    uint8_t opcode;
    uint8_t flags;
    int fd;
    uint64_t user_data;
    ...;
};

struct io_uring_cqe {
    uint64_t user_data;
    int res;
    uint32_t flags;
};

struct pyvmm_blk_queue {
    struct pyvmm_disk *disk;
    struct pyvmm_uring *uring;
    struct pyvmm_queue *queue;
    struct pyvmm_blk_request *slots;
    struct pyvmm_interrupt *interrupt;
    uint32_t bits;
    int doorbell;
    int stop;
    int trouble;
    uint64_t requests;
    uint64_t errors;
    uint8_t uses_uring;
    ...;
};

int pyvmm_blk_alignment(int fd, uint32_t *memory, uint32_t *offset);
int pyvmm_blk_run(struct pyvmm_blk_queue *blk);
void pyvmm_blk_stop(struct pyvmm_blk_queue *blk, uint32_t how);
int pyvmm_blk_take_failure(struct pyvmm_blk_queue *blk, struct pyvmm_blk_failure *failure);
int pyvmm_blk_open_uring(struct pyvmm_uring *uring);
struct io_uring_sqe *pyvmm_uring_entry(struct pyvmm_uring *uring);
int pyvmm_uring_enter(struct pyvmm_uring *uring, uint32_t wait_for);
int pyvmm_uring_next(struct pyvmm_uring *uring, struct io_uring_cqe *completion);
void pyvmm_uring_close(struct pyvmm_uring *uring);
