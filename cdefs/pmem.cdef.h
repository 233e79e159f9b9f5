/* The parts of <linux/virtio_pmem.h> that pyvmm uses. */

struct virtio_pmem_config {
    uint64_t start;
    uint64_t size;
};

#define VIRTIO_PMEM_REQ_TYPE_FLUSH ...
