/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The part of the KVM ABI that the build machine's headers may lack: what is newer (up to Linux
 * 7.3) and, on other architectures, arm64's own part.
 *
 * Include it after <linux/kvm.h>. Macros have the kernel's own tokens. C lets a macro be defined
 * twice if both definitions are the same, so compiling this file with -Werror on a machine whose
 * headers know a name checks that it is right (tests/cdefs/test_abi.py, for x86-64 and arm64).
 * Structs are guarded by a macro that came with them, and checked by the assertions at the end.
 */
#ifndef PYVMM_KVM_ABI_H
#define PYVMM_KVM_ABI_H

#include <stddef.h>
#include <stdint.h>
#include <linux/kvm.h>

/* --- Newer than some headers; capabilities include those a header hides from other
 * architectures. ------------------------------------------------------------------------- */
#define KVM_CAP_REINJECT_CONTROL 24
#define KVM_CAP_MCE 31
#define KVM_CAP_PIT2 33
#define KVM_CAP_PIT_STATE2 35
#define KVM_CAP_XEN_HVM 38
#define KVM_CAP_DEBUGREGS 50
#define KVM_CAP_XSAVE 55
#define KVM_CAP_XCRS 56
#define KVM_CAP_S390_PROTECTED_ASYNC_DISABLE 224
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#define KVM_CAP_PMU_EVENT_MASKED_EVENTS 226
#define KVM_CAP_COUNTER_OFFSET 227
#define KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE 228
#define KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES 229
#define KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES 230
#define KVM_CAP_USER_MEMORY2 231
#define KVM_CAP_MEMORY_FAULT_INFO 232
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#define KVM_CAP_GUEST_MEMFD 234
#define KVM_CAP_VM_TYPES 235
#define KVM_CAP_PRE_FAULT_MEMORY 236
#define KVM_CAP_X86_APIC_BUS_CYCLES_NS 237
#define KVM_CAP_X86_GUEST_MODE 238
#define KVM_CAP_ARM_WRITABLE_IMP_ID_REGS 239
#define KVM_CAP_ARM_EL2 240
#define KVM_CAP_ARM_EL2_E2H0 241
#define KVM_CAP_RISCV_MP_STATE_RESET 242
#define KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED 243
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#define KVM_CAP_ARM_SEA_TO_USER 245
#define KVM_CAP_S390_USER_OPEREXEC 246
#define KVM_CAP_S390_KEYOP 247
#define KVM_CAP_S390_VSIE_ESAMODE 248
#define KVM_CAP_S390_HPAGE_2G 249
#define KVM_CAP_PPC_COMPAT_CAPS 250
#define KVM_CAP_ARM_PMU_V3_STRICT 251

#define KVM_MEM_GUEST_MEMFD	(1UL << 2)

#define KVM_EXIT_MEMORY_FAULT     39
#define KVM_EXIT_ARM_SEA          41

#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
	uint32_t slot;
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd;
	uint32_t pad1;
	uint64_t pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif

#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
	uint64_t size;
	uint64_t flags;
	uint64_t reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif

/* Members of kvm_run's exit union that older headers lack; they lie where `mmio` does. */
struct pyvmm_exit_memory_fault {
	uint64_t flags;
	uint64_t gpa;
	uint64_t size;
};

struct pyvmm_exit_arm_sea {
	uint64_t flags;
	uint64_t esr;
	uint64_t gva;
	uint64_t gpa;
};

/* Proposed, and in no released kernel: the memory-slot flag that asks for Write-Back at stage 2
 * (KVM_MEM_ENABLE_CACHEABLE_PFNMAP of the series "KVM: arm64: Map GPU device memory as
 * cacheable", v4 to v6, May 2025). Others use bit 3 for other things: see vmm/coherence. */
#define PYVMM_MEM_WRITE_BACK (1U << 3)

/* --- arm64 only ---------------------------------------------------------------------------- */
/* The arm64 header spells sizes with SZ_64K and does not define it. */
#ifndef SZ_64K
#define SZ_64K 0x10000
#endif

#define KVM_ARM_VCPU_POWER_OFF		0
#define KVM_ARM_VCPU_EL1_32BIT		1
#define KVM_ARM_VCPU_PSCI_0_2		2
#define KVM_ARM_VCPU_PMU_V3		3
#define KVM_ARM_VCPU_SVE		4
#define KVM_ARM_VCPU_PTRAUTH_ADDRESS	5
#define KVM_ARM_VCPU_PTRAUTH_GENERIC	6
#define KVM_ARM_VCPU_PMU_V3_STRICT	9

#define KVM_ARM_VCPU_PMU_V3_CTRL	0
#define KVM_ARM_VCPU_PMU_V3_IRQ		0
#define KVM_ARM_VCPU_PMU_V3_INIT	1
#define KVM_ARM_VCPU_PVTIME_CTRL	2
#define KVM_ARM_VCPU_PVTIME_IPA		0

#define KVM_VGIC_V2_ADDR_TYPE_DIST	0
#define KVM_VGIC_V2_ADDR_TYPE_CPU	1
#define KVM_VGIC_V3_ADDR_TYPE_DIST	2
#define KVM_VGIC_V3_ADDR_TYPE_REDIST	3
#define KVM_VGIC_ITS_ADDR_TYPE		4
#define KVM_DEV_ARM_VGIC_GRP_ADDR	0
#define KVM_DEV_ARM_VGIC_GRP_DIST_REGS	1
#define KVM_DEV_ARM_VGIC_GRP_CPU_REGS	2
#define KVM_DEV_ARM_VGIC_GRP_NR_IRQS	3
#define KVM_DEV_ARM_VGIC_GRP_CTRL	4
#define KVM_DEV_ARM_VGIC_GRP_REDIST_REGS 5
#define KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS 6
#define KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO  7
#define KVM_DEV_ARM_VGIC_GRP_ITS_REGS 8
#define KVM_DEV_ARM_VGIC_CTRL_INIT		0
#define KVM_DEV_ARM_ITS_SAVE_TABLES		1
#define KVM_DEV_ARM_ITS_RESTORE_TABLES		2
#define KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES	3
#define KVM_DEV_ARM_ITS_CTRL_RESET		4

#define KVM_ARM_IRQ_VCPU2_SHIFT		28
#define KVM_ARM_IRQ_TYPE_SHIFT		24
#define KVM_ARM_IRQ_VCPU_SHIFT		16
#define KVM_ARM_IRQ_NUM_SHIFT		0
#define KVM_ARM_IRQ_TYPE_CPU		0
#define KVM_ARM_IRQ_TYPE_SPI		1

#define KVM_MP_STATE_SUSPENDED         10

#define KVM_DEV_ARM_VGIC_CPUID_SHIFT	32
#define KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT 32

#define KVM_REG_ARM_COPROC_MASK		0x000000000FFF0000
#define KVM_REG_ARM_COPROC_SHIFT	16
#define KVM_REG_ARM_CORE		(0x0010 << KVM_REG_ARM_COPROC_SHIFT)
#define KVM_REG_ARM_DEMUX		(0x0011 << KVM_REG_ARM_COPROC_SHIFT)
#define KVM_REG_ARM_FW			(0x0014 << KVM_REG_ARM_COPROC_SHIFT)
#define KVM_REG_ARM64_SVE		(0x15 << KVM_REG_ARM_COPROC_SHIFT)
#define KVM_REG_ARM_FW_FEAT_BMAP		(0x0016 << KVM_REG_ARM_COPROC_SHIFT)
#define KVM_REG_ARM64_SYSREG		(0x0013 << KVM_REG_ARM_COPROC_SHIFT)
#define KVM_REG_ARM64_SYSREG_OP0_SHIFT	14
#define KVM_REG_ARM64_SYSREG_OP1_SHIFT	11
#define KVM_REG_ARM64_SYSREG_CRN_SHIFT	7
#define KVM_REG_ARM64_SYSREG_CRM_SHIFT	3
#define KVM_REG_ARM64_SYSREG_OP2_SHIFT	0

/* Which bits of ID registers KVM lets userspace write (Linux 6.7). The ioctl is every
 * architecture's, the struct is arm64's. */
#if !defined(__aarch64__) || !defined(KVM_ARM_FEATURE_ID_RANGE)
struct reg_mask_range {
	__u64 addr;
	__u32 range;
	__u32 reserved[13];
};
#endif
#define KVM_ARM_FEATURE_ID_RANGE	0
#define KVM_ARM_FEATURE_ID_RANGE_SIZE	(3 * 8 * 8)
#define KVM_ARM_GET_REG_WRITABLE_MASKS _IOR(KVMIO,  0xb6, struct reg_mask_range)

#ifndef __aarch64__
struct kvm_vcpu_init {
	uint32_t target;
	uint32_t features[7];
};
#endif

/* arm64's struct kvm_regs, under a name of our own: x86 has another. A core register's id is its
 * offset in here, in units of 32 bits. */
struct pyvmm_arm64_fpsimd {
	uint64_t v[32][2] __attribute__((aligned(16)));
	uint32_t fpsr;
	uint32_t fpcr;
};

struct pyvmm_arm64_regs {
	uint64_t x[31];
	uint64_t sp;
	uint64_t pc;
	uint64_t pstate;
	uint64_t sp_el1;
	uint64_t elr_el1;
	uint64_t spsr[5];
	struct pyvmm_arm64_fpsimd fp;
};

/* arm64's struct kvm_vcpu_events: exceptions that are pending for a vCPU. */
struct pyvmm_arm64_vcpu_events {
	uint8_t serror_pending;
	uint8_t serror_has_esr;
	uint8_t ext_dabt_pending;
	uint8_t pad[5];
	uint64_t serror_esr;
	uint32_t reserved[12];
};

/* arm64's struct kvm_guest_debug, and its member of kvm_run's exit union. */
#define PYVMM_ARM64_DEBUG_REGS 16

struct pyvmm_arm64_guest_debug {
	uint32_t control;
	uint32_t pad;
	uint64_t dbg_bcr[PYVMM_ARM64_DEBUG_REGS];
	uint64_t dbg_bvr[PYVMM_ARM64_DEBUG_REGS];
	uint64_t dbg_wcr[PYVMM_ARM64_DEBUG_REGS];
	uint64_t dbg_wvr[PYVMM_ARM64_DEBUG_REGS];
};

struct pyvmm_exit_arm64_debug {
	uint32_t hsr;
	uint32_t hsr_high;
	uint64_t far;
};

/* KVM_SET_GUEST_DEBUG: its number has the size of arm64's struct. */
#define PYVMM_ARM64_SET_GUEST_DEBUG _IOW(KVMIO, 0x9b, struct pyvmm_arm64_guest_debug)
#define PYVMM_ARM64_GUESTDBG_USE_SW_BP (1 << 16)
#define PYVMM_ARM64_GUESTDBG_USE_HW (1 << 17)

/* --- Checks against the system's headers, where those have the name ------------------------ */
#define PYVMM_SAME_SIZE(a, b) _Static_assert(sizeof(a) == sizeof(b), #a)
#define PYVMM_SAME_OFFSET(a, ma, b, mb) \
	_Static_assert(offsetof(a, ma) == offsetof(b, mb), #a "." #ma)

_Static_assert(sizeof(struct kvm_userspace_memory_region2) == 160, "REGION2 is 160 bytes");
_Static_assert(offsetof(struct kvm_userspace_memory_region2, guest_memfd) == 40, "guest_memfd");
_Static_assert(sizeof(struct kvm_create_guest_memfd) == 64, "CREATE_GUEST_MEMFD is 64 bytes");
_Static_assert(sizeof(struct reg_mask_range) == 64, "reg_mask_range is 64 bytes");

#ifdef KVM_SYSTEM_EVENT_TDX_FATAL /* a header new enough to have both members */
PYVMM_SAME_SIZE(((struct kvm_run *)0)->memory_fault, struct pyvmm_exit_memory_fault);
PYVMM_SAME_OFFSET(struct kvm_run, memory_fault, struct kvm_run, mmio);
#endif
#ifdef KVM_EXIT_ARM_SEA_FLAG_GPA_VALID
PYVMM_SAME_SIZE(((struct kvm_run *)0)->arm_sea, struct pyvmm_exit_arm_sea);
PYVMM_SAME_OFFSET(struct kvm_run, arm_sea, struct kvm_run, mmio);
#endif

#ifdef __aarch64__
_Static_assert(PYVMM_ARM64_SET_GUEST_DEBUG == KVM_SET_GUEST_DEBUG, "KVM_SET_GUEST_DEBUG");
_Static_assert(PYVMM_ARM64_GUESTDBG_USE_SW_BP == KVM_GUESTDBG_USE_SW_BP, "USE_SW_BP");
_Static_assert(PYVMM_ARM64_GUESTDBG_USE_HW == KVM_GUESTDBG_USE_HW, "USE_HW");
PYVMM_SAME_SIZE(struct kvm_guest_debug, struct pyvmm_arm64_guest_debug);
PYVMM_SAME_OFFSET(struct kvm_guest_debug, arch.dbg_bcr, struct pyvmm_arm64_guest_debug, dbg_bcr);
PYVMM_SAME_OFFSET(struct kvm_guest_debug, arch.dbg_bvr, struct pyvmm_arm64_guest_debug, dbg_bvr);
PYVMM_SAME_OFFSET(struct kvm_guest_debug, arch.dbg_wcr, struct pyvmm_arm64_guest_debug, dbg_wcr);
PYVMM_SAME_OFFSET(struct kvm_guest_debug, arch.dbg_wvr, struct pyvmm_arm64_guest_debug, dbg_wvr);
PYVMM_SAME_OFFSET(struct kvm_run, debug.arch, struct kvm_run, mmio);
PYVMM_SAME_OFFSET(struct kvm_debug_exit_arch, far, struct pyvmm_exit_arm64_debug, far);
PYVMM_SAME_SIZE(struct kvm_vcpu_events, struct pyvmm_arm64_vcpu_events);
PYVMM_SAME_OFFSET(struct kvm_vcpu_events, exception.ext_dabt_pending,
		  struct pyvmm_arm64_vcpu_events, ext_dabt_pending);
PYVMM_SAME_OFFSET(struct kvm_vcpu_events, exception.serror_esr,
		  struct pyvmm_arm64_vcpu_events, serror_esr);
PYVMM_SAME_OFFSET(struct kvm_regs, regs.pc, struct pyvmm_arm64_regs, pc);
PYVMM_SAME_OFFSET(struct kvm_regs, regs.pstate, struct pyvmm_arm64_regs, pstate);
PYVMM_SAME_OFFSET(struct kvm_regs, sp_el1, struct pyvmm_arm64_regs, sp_el1);
PYVMM_SAME_OFFSET(struct kvm_regs, elr_el1, struct pyvmm_arm64_regs, elr_el1);
PYVMM_SAME_OFFSET(struct kvm_regs, spsr, struct pyvmm_arm64_regs, spsr);
PYVMM_SAME_OFFSET(struct kvm_regs, fp_regs.fpsr, struct pyvmm_arm64_regs, fp.fpsr);
#endif

#endif
