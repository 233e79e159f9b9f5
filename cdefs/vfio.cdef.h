/* The part of <linux/vfio.h> and <linux/iommufd.h> that pyvmm uses. "...": ask the compiler. */

/* --- ioctls on a container (/dev/vfio/vfio) and its IOMMU ------------------------------------ */
#define VFIO_API_VERSION ...
#define VFIO_TYPE1v2_IOMMU ...
#define VFIO_GET_API_VERSION ...
#define VFIO_CHECK_EXTENSION ...
#define VFIO_SET_IOMMU ...
#define VFIO_IOMMU_GET_INFO ...
#define VFIO_IOMMU_MAP_DMA ...
#define VFIO_IOMMU_UNMAP_DMA ...
#define VFIO_IOMMU_INFO_CAPS ...
#define VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE ...
#define VFIO_DMA_MAP_FLAG_READ ...
#define VFIO_DMA_MAP_FLAG_WRITE ...

struct vfio_info_cap_header {
    uint16_t id;
    uint16_t version;
    uint32_t next;
};

struct vfio_iommu_type1_info {
    uint32_t argsz;
    uint32_t flags;
    uint64_t iova_pgsizes;
    uint32_t cap_offset;
    ...;
};

struct vfio_iova_range {
    uint64_t start;
    uint64_t end;
};

struct vfio_iommu_type1_info_cap_iova_range {
    struct vfio_info_cap_header header;
    uint32_t nr_iovas;
    uint32_t reserved;
    struct vfio_iova_range iova_ranges[];
};

struct vfio_iommu_type1_dma_map {
    uint32_t argsz;
    uint32_t flags;
    uint64_t vaddr;
    uint64_t iova;
    uint64_t size;
};

struct vfio_iommu_type1_dma_unmap {
    uint32_t argsz;
    uint32_t flags;
    uint64_t iova;
    uint64_t size;
    ...;
};

/* --- ioctls on a group (/dev/vfio/N) --------------------------------------------------------- */
#define VFIO_GROUP_GET_STATUS ...
#define VFIO_GROUP_SET_CONTAINER ...
#define VFIO_GROUP_UNSET_CONTAINER ...
#define VFIO_GROUP_GET_DEVICE_FD ...
#define VFIO_GROUP_FLAGS_VIABLE ...

struct vfio_group_status {
    uint32_t argsz;
    uint32_t flags;
};

/* --- ioctls on a device ---------------------------------------------------------------------- */
#define VFIO_DEVICE_GET_INFO ...
#define VFIO_DEVICE_GET_REGION_INFO ...
#define VFIO_DEVICE_GET_IRQ_INFO ...
#define VFIO_DEVICE_SET_IRQS ...
#define VFIO_DEVICE_RESET ...
#define VFIO_DEVICE_BIND_IOMMUFD ...
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT ...
#define VFIO_DEVICE_DETACH_IOMMUFD_PT ...

#define VFIO_DEVICE_FEATURE ...
#define VFIO_DEVICE_FEATURE_GET ...
#define VFIO_DEVICE_FEATURE_DMA_BUF ...
#define VFIO_DEVICE_FEATURE_MIGRATION ...
#define VFIO_MIGRATION_STOP_COPY ...
#define VFIO_MIGRATION_P2P ...
#define VFIO_MIGRATION_PRE_COPY ...

struct vfio_device_feature_migration {
    unsigned long long flags;
};

struct vfio_device_feature {
    uint32_t argsz;
    uint32_t flags;
    uint8_t data[];
};

struct vfio_region_dma_range {
    uint64_t offset;
    uint64_t length;
};

struct vfio_device_feature_dma_buf {
    uint32_t region_index;
    uint32_t open_flags;
    uint32_t flags;
    uint32_t nr_ranges;
    struct vfio_region_dma_range dma_ranges[];
};

#define VFIO_DEVICE_FLAGS_RESET ...
#define VFIO_DEVICE_FLAGS_PCI ...

struct vfio_device_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t num_regions;
    uint32_t num_irqs;
    ...;
};

#define VFIO_REGION_INFO_FLAG_READ ...
#define VFIO_REGION_INFO_FLAG_WRITE ...
#define VFIO_REGION_INFO_FLAG_MMAP ...
#define VFIO_REGION_INFO_FLAG_CAPS ...
#define VFIO_REGION_INFO_CAP_SPARSE_MMAP ...
#define VFIO_REGION_INFO_CAP_TYPE ...
#define VFIO_REGION_INFO_CAP_MSIX_MAPPABLE ...

struct vfio_region_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t cap_offset;
    uint64_t size;
    uint64_t offset;
};

struct vfio_region_sparse_mmap_area {
    uint64_t offset;
    uint64_t size;
};

struct vfio_region_info_cap_sparse_mmap {
    struct vfio_info_cap_header header;
    uint32_t nr_areas;
    uint32_t reserved;
    struct vfio_region_sparse_mmap_area areas[];
};

struct vfio_region_info_cap_type {
    struct vfio_info_cap_header header;
    uint32_t type;
    uint32_t subtype;
};

#define VFIO_PCI_BAR0_REGION_INDEX ...
#define VFIO_PCI_BAR5_REGION_INDEX ...
#define VFIO_PCI_ROM_REGION_INDEX ...
#define VFIO_PCI_CONFIG_REGION_INDEX ...
#define VFIO_PCI_VGA_REGION_INDEX ...

#define VFIO_IRQ_INFO_MASKABLE ...
#define VFIO_IRQ_INFO_AUTOMASKED ...
#define VFIO_IRQ_INFO_NORESIZE ...
#define VFIO_IRQ_SET_DATA_NONE ...
#define VFIO_IRQ_SET_DATA_EVENTFD ...
#define VFIO_IRQ_SET_ACTION_MASK ...
#define VFIO_IRQ_SET_ACTION_UNMASK ...
#define VFIO_IRQ_SET_ACTION_TRIGGER ...
#define VFIO_PCI_INTX_IRQ_INDEX ...
#define VFIO_PCI_MSI_IRQ_INDEX ...
#define VFIO_PCI_MSIX_IRQ_INDEX ...
#define VFIO_PCI_ERR_IRQ_INDEX ...
#define VFIO_PCI_REQ_IRQ_INDEX ...

struct vfio_irq_info {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t count;
};

struct vfio_irq_set {
    uint32_t argsz;
    uint32_t flags;
    uint32_t index;
    uint32_t start;
    uint32_t count;
    uint8_t data[];
};

struct vfio_device_bind_iommufd {
    uint32_t argsz;
    uint32_t flags;
    int32_t iommufd;
    uint32_t out_devid;
    ...;
};

struct vfio_device_attach_iommufd_pt {
    uint32_t argsz;
    uint32_t flags;
    uint32_t pt_id;
    ...;
};

struct vfio_device_detach_iommufd_pt {
    uint32_t argsz;
    uint32_t flags;
    ...;
};

/* --- ioctls on an iommufd (/dev/iommu) ------------------------------------------------------- */
#define IOMMU_DESTROY ...
#define IOMMU_IOAS_ALLOC ...
#define IOMMU_IOAS_IOVA_RANGES ...
#define IOMMU_IOAS_MAP ...
#define IOMMU_IOAS_MAP_FILE ...
#define IOMMU_IOAS_UNMAP ...
#define IOMMU_IOAS_MAP_FIXED_IOVA ...
#define IOMMU_IOAS_MAP_WRITEABLE ...
#define IOMMU_IOAS_MAP_READABLE ...

struct iommu_destroy {
    uint32_t size;
    uint32_t id;
};

struct iommu_ioas_alloc {
    uint32_t size;
    uint32_t flags;
    uint32_t out_ioas_id;
};

struct iommu_iova_range {
    uint64_t start;
    uint64_t last;
};

struct iommu_ioas_iova_ranges {
    uint32_t size;
    uint32_t ioas_id;
    uint32_t num_iovas;
    uint64_t allowed_iovas;
    uint64_t out_iova_alignment;
    ...;
};

struct iommu_ioas_map {
    uint32_t size;
    uint32_t flags;
    uint32_t ioas_id;
    uint64_t user_va;
    uint64_t length;
    uint64_t iova;
    ...;
};

struct iommu_ioas_map_file {
    uint32_t size;
    uint32_t flags;
    uint32_t ioas_id;
    int32_t fd;
    uint64_t start;
    uint64_t length;
    uint64_t iova;
};

struct iommu_ioas_unmap {
    uint32_t size;
    uint32_t ioas_id;
    uint64_t iova;
    uint64_t length;
};
