/* The parts of <linux/virtio_fs.h> and <linux/fuse.h> that pyvmm uses. */

struct virtio_fs_config {
    uint8_t tag[...];
    uint32_t num_request_queues;
};

#define FUSE_INIT ...
#define FUSE_FORGET ...
#define FUSE_BATCH_FORGET ...

struct fuse_in_header {
    uint32_t len;
    uint32_t opcode;
    uint64_t unique;
    ...;
};

struct fuse_out_header {
    uint32_t len;
    int32_t error;
    uint64_t unique;
};
