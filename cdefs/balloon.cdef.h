/* cdefs/balloon.h as cffi reads it, and the parts of <linux/virtio_balloon.h> that pyvmm uses. */

#define VIRTIO_BALLOON_F_STATS_VQ ...
#define VIRTIO_BALLOON_F_DEFLATE_ON_OOM ...
#define VIRTIO_BALLOON_F_PAGE_POISON ...
#define VIRTIO_BALLOON_F_REPORTING ...
#define VIRTIO_BALLOON_PFN_SHIFT ...

struct virtio_balloon_config {
    uint32_t num_pages;
    uint32_t actual;
    uint32_t poison_val;
    ...;
};

#define VIRTIO_BALLOON_S_SWAP_IN ...
#define VIRTIO_BALLOON_S_SWAP_OUT ...
#define VIRTIO_BALLOON_S_MAJFLT ...
#define VIRTIO_BALLOON_S_MINFLT ...
#define VIRTIO_BALLOON_S_MEMFREE ...
#define VIRTIO_BALLOON_S_MEMTOT ...
#define VIRTIO_BALLOON_S_AVAIL ...
#define VIRTIO_BALLOON_S_CACHES ...
#define VIRTIO_BALLOON_S_HTLB_PGALLOC ...
#define VIRTIO_BALLOON_S_HTLB_PGFAIL ...


struct pyvmm_balloon_range {
    uint64_t base;
    uint64_t size;
    uint8_t *host;
    int advice;
    uint64_t *given;
};

struct pyvmm_balloon {
    uint32_t count;
    struct pyvmm_balloon_range *ranges;
    uint64_t page;
    int keep;
    uint64_t given;
    uint64_t foreign;
    uint64_t returned;
    int error;
};

void pyvmm_balloon_inflate(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain);
void pyvmm_balloon_deflate(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain);
void pyvmm_balloon_report(struct pyvmm_balloon *balloon, const struct pyvmm_chain *chain);
void pyvmm_balloon_forget(struct pyvmm_balloon *balloon);
