/* The parts of <linux/vhost.h> that pyvmm uses. "..." means: ask the compiler. */

#define VHOST_GET_FEATURES ...
#define VHOST_SET_FEATURES ...
#define VHOST_SET_OWNER ...
#define VHOST_SET_MEM_TABLE ...
#define VHOST_SET_VRING_NUM ...
#define VHOST_SET_VRING_ADDR ...
#define VHOST_SET_VRING_BASE ...
#define VHOST_SET_VRING_KICK ...
#define VHOST_SET_VRING_CALL ...
#define VHOST_SET_VRING_ERR ...
#define VHOST_NET_SET_BACKEND ...
#define VHOST_VSOCK_SET_GUEST_CID ...
#define VHOST_VSOCK_SET_RUNNING ...

struct vhost_vring_state {
    unsigned int index;
    unsigned int num;
};

struct vhost_vring_file {
    unsigned int index;
    int fd;
};

struct vhost_vring_addr {
    unsigned int index;
    unsigned int flags;
    uint64_t desc_user_addr;
    uint64_t used_user_addr;
    uint64_t avail_user_addr;
    uint64_t log_guest_addr;
};

struct vhost_memory_region {
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
    uint64_t flags_padding;
};

struct vhost_memory {
    uint32_t nregions;
    uint32_t padding;
    struct vhost_memory_region regions[];
};

/* --- vsock (virtio_vsock.h, virtio_ids.h, vm_sockets.h) ------------------------------------ */
#define VIRTIO_ID_VSOCK ...
#define VIRTIO_VSOCK_F_SEQPACKET ...

struct virtio_vsock_config {
    uint64_t guest_cid;
    ...;
};
