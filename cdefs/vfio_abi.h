/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of the VFIO and iommufd ABIs that the build machine's headers may lack: device files
 * and iommufd came with Linux 6.6 and 6.2, and Debian 12 has 6.1's headers.
 *
 * As in kvm_abi.h, macros have the very tokens of the kernel's, so that a definition that differs
 * does not compile with -Werror; structs are guarded by the ioctl that came with them, and the
 * assertions at the end hold for ours and for the system's.
 */
#ifndef PYVMM_VFIO_ABI_H
#define PYVMM_VFIO_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <linux/types.h>
#include <linux/vfio.h>
#if defined(__has_include)
#if __has_include(<linux/iommufd.h>)
#include <linux/iommufd.h>
#endif
#endif

/* --- Device files (Linux 6.6) ---------------------------------------------------------------- */
#ifndef VFIO_DEVICE_BIND_IOMMUFD
struct vfio_device_bind_iommufd {
	uint32_t argsz;
	uint32_t flags;
	int32_t iommufd;
	uint32_t out_devid;
	__aligned_u64 token_uuid_ptr;
};
#endif
#define VFIO_DEVICE_BIND_IOMMUFD	_IO(VFIO_TYPE, VFIO_BASE + 18)

#ifndef VFIO_DEVICE_ATTACH_IOMMUFD_PT
struct vfio_device_attach_iommufd_pt {
	uint32_t argsz;
	uint32_t flags;
	uint32_t pt_id;
};
#endif
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT		_IO(VFIO_TYPE, VFIO_BASE + 19)

#ifndef VFIO_DEVICE_DETACH_IOMMUFD_PT
struct vfio_device_detach_iommufd_pt {
	uint32_t argsz;
	uint32_t flags;
};
#endif
#define VFIO_DEVICE_DETACH_IOMMUFD_PT		_IO(VFIO_TYPE, VFIO_BASE + 20)

/* --- Regions as dma-bufs (Linux 6.19) -------------------------------------------------------- */
#ifndef VFIO_DEVICE_FEATURE_DMA_BUF
struct vfio_region_dma_range {
	__u64 offset;
	__u64 length;
};

struct vfio_device_feature_dma_buf {
	__u32 region_index;
	__u32 open_flags;
	__u32 flags;
	__u32 nr_ranges;
	struct vfio_region_dma_range dma_ranges[];
};
#endif
#define VFIO_DEVICE_FEATURE_DMA_BUF 11

/* --- Migration: before-copying of a running device (Linux 6.2) ------------------------------- */
#define VFIO_MIGRATION_PRE_COPY	(1 << 2)

/* --- iommufd (Linux 6.2) --------------------------------------------------------------------- */
#define IOMMUFD_TYPE (';')

#ifndef IOMMU_IOAS_MAP /* no <linux/iommufd.h> */
enum {
	IOMMUFD_CMD_DESTROY = 0x80,
	IOMMUFD_CMD_IOAS_ALLOC = 0x81,
	IOMMUFD_CMD_IOAS_IOVA_RANGES = 0x84,
	IOMMUFD_CMD_IOAS_MAP = 0x85,
	IOMMUFD_CMD_IOAS_UNMAP = 0x86,
};

enum iommufd_ioas_map_flags {
	IOMMU_IOAS_MAP_FIXED_IOVA = 1 << 0,
	IOMMU_IOAS_MAP_WRITEABLE = 1 << 1,
	IOMMU_IOAS_MAP_READABLE = 1 << 2,
};

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
	__aligned_u64 start;
	__aligned_u64 last;
};

struct iommu_ioas_iova_ranges {
	uint32_t size;
	uint32_t ioas_id;
	uint32_t num_iovas;
	uint32_t __reserved;
	__aligned_u64 allowed_iovas;
	__aligned_u64 out_iova_alignment;
};

struct iommu_ioas_map {
	uint32_t size;
	uint32_t flags;
	uint32_t ioas_id;
	uint32_t __reserved;
	__aligned_u64 user_va;
	__aligned_u64 length;
	__aligned_u64 iova;
};

struct iommu_ioas_unmap {
	uint32_t size;
	uint32_t ioas_id;
	__aligned_u64 iova;
	__aligned_u64 length;
};
#endif
#define IOMMU_DESTROY _IO(IOMMUFD_TYPE, IOMMUFD_CMD_DESTROY)
#define IOMMU_IOAS_ALLOC _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_ALLOC)
#define IOMMU_IOAS_IOVA_RANGES _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_IOVA_RANGES)
#define IOMMU_IOAS_MAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_MAP)
#define IOMMU_IOAS_UNMAP _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_UNMAP)

/* --- Mapping files (Linux 6.13), of which dma-bufs came later -------------------------------- */
#ifndef IOMMU_IOAS_MAP_FILE
enum {
	IOMMUFD_CMD_IOAS_MAP_FILE = 0x8f,
};

struct iommu_ioas_map_file {
	uint32_t size;
	uint32_t flags;
	uint32_t ioas_id;
	int32_t fd;
	__aligned_u64 start;
	__aligned_u64 length;
	__aligned_u64 iova;
};
#endif
#define IOMMU_IOAS_MAP_FILE _IO(IOMMUFD_TYPE, IOMMUFD_CMD_IOAS_MAP_FILE)

/* --- Checks: true of the kernel's structs and of ours ---------------------------------------- */
#define PYVMM_AT(type, member, offset) \
	_Static_assert(offsetof(struct type, member) == (offset), #type "." #member)

PYVMM_AT(vfio_device_bind_iommufd, iommufd, 8);
PYVMM_AT(vfio_device_bind_iommufd, out_devid, 12);
PYVMM_AT(vfio_device_attach_iommufd_pt, pt_id, 8);
PYVMM_AT(vfio_region_dma_range, length, 8);
PYVMM_AT(vfio_device_feature_dma_buf, nr_ranges, 12);
PYVMM_AT(vfio_device_feature_dma_buf, dma_ranges, 16);
PYVMM_AT(iommu_ioas_map_file, fd, 12);
PYVMM_AT(iommu_ioas_map_file, start, 16);
PYVMM_AT(iommu_ioas_map_file, iova, 32);
PYVMM_AT(iommu_destroy, id, 4);
PYVMM_AT(iommu_ioas_alloc, out_ioas_id, 8);
PYVMM_AT(iommu_iova_range, last, 8);
PYVMM_AT(iommu_ioas_iova_ranges, num_iovas, 8);
PYVMM_AT(iommu_ioas_iova_ranges, allowed_iovas, 16);
PYVMM_AT(iommu_ioas_iova_ranges, out_iova_alignment, 24);
PYVMM_AT(iommu_ioas_map, ioas_id, 8);
PYVMM_AT(iommu_ioas_map, user_va, 16);
PYVMM_AT(iommu_ioas_map, length, 24);
PYVMM_AT(iommu_ioas_map, iova, 32);
PYVMM_AT(iommu_ioas_unmap, ioas_id, 4);
PYVMM_AT(iommu_ioas_unmap, iova, 8);
PYVMM_AT(iommu_ioas_unmap, length, 16);
_Static_assert(sizeof(struct iommu_ioas_alloc) == 12, "iommu_ioas_alloc");
_Static_assert(sizeof(struct iommu_ioas_iova_ranges) == 32, "iommu_ioas_iova_ranges");
_Static_assert(sizeof(struct iommu_ioas_map) == 40, "iommu_ioas_map");
_Static_assert(sizeof(struct iommu_ioas_unmap) == 24, "iommu_ioas_unmap");
_Static_assert(IOMMUFD_CMD_DESTROY == 0x80 && IOMMUFD_CMD_IOAS_ALLOC == 0x81 &&
	       IOMMUFD_CMD_IOAS_IOVA_RANGES == 0x84 && IOMMUFD_CMD_IOAS_MAP == 0x85 &&
	       IOMMUFD_CMD_IOAS_UNMAP == 0x86, "iommufd's commands");
_Static_assert(IOMMU_IOAS_MAP_FIXED_IOVA == 1 && IOMMU_IOAS_MAP_WRITEABLE == 2 &&
	       IOMMU_IOAS_MAP_READABLE == 4, "iommufd_ioas_map_flags");

#endif
