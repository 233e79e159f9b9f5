# Written by cdefs/stub.py from the built extension: do not edit.
from collections.abc import Callable
from typing import Any

class _FFI:
    CData: type[Any]
    NULL: Any
    def new(self, cdecl: str, init: object = ...) -> Any: ...
    def new_allocator(self, *, should_clear_after_alloc: bool) -> Any: ...
    def cast(self, cdecl: str, source: object) -> Any: ...
    def gc(self, cdata: Any, destructor: object) -> Any: ...
    def from_buffer(self, cdecl: str, buffer: object, require_writable: bool = ...) -> Any: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def sizeof(self, cdecl: object) -> int: ...
    def offsetof(self, cdecl: str, *fields: str | int) -> int: ...
    def addressof(self, cdata: Any, *fields: str | int) -> Any: ...
    def typeof(self, cdecl: object) -> Any: ...
    def memmove(self, dest: Any, src: Any, n: int) -> None: ...
    def list_types(self) -> tuple[list[str], list[str], list[str]]: ...

class _Lib:
    BUS_ADRALN: int
    BUS_ADRERR: int
    BUS_OBJERR: int
    FUSE_BATCH_FORGET: int
    FUSE_FORGET: int
    FUSE_INIT: int
    IFA_ADDRESS: int
    IFA_LOCAL: int
    IFF_ATTACH_QUEUE: int
    IFF_DETACH_QUEUE: int
    IFF_MULTI_QUEUE: int
    IFF_NO_PI: int
    IFF_TAP: int
    IFF_UP: int
    IFF_VNET_HDR: int
    IFLA_IFNAME: int
    IFLA_INFO_DATA: int
    IFLA_INFO_KIND: int
    IFLA_LINKINFO: int
    IFLA_MASTER: int
    IFLA_MTU: int
    IFLA_TUN_NUM_DISABLED_QUEUES: int
    IFLA_TUN_NUM_QUEUES: int
    IFNAMSIZ: int
    IOMMU_DESTROY: int
    IOMMU_IOAS_ALLOC: int
    IOMMU_IOAS_IOVA_RANGES: int
    IOMMU_IOAS_MAP: int
    IOMMU_IOAS_MAP_FILE: int
    IOMMU_IOAS_MAP_FIXED_IOVA: int
    IOMMU_IOAS_MAP_READABLE: int
    IOMMU_IOAS_MAP_WRITEABLE: int
    IOMMU_IOAS_UNMAP: int
    KVM_API_VERSION: int
    KVM_ARM_FEATURE_ID_RANGE: int
    KVM_ARM_FEATURE_ID_RANGE_SIZE: int
    KVM_ARM_GET_REG_WRITABLE_MASKS: int
    KVM_ARM_IRQ_TYPE_SHIFT: int
    KVM_ARM_IRQ_TYPE_SPI: int
    KVM_ARM_PREFERRED_TARGET: int
    KVM_ARM_VCPU_FINALIZE: int
    KVM_ARM_VCPU_INIT: int
    KVM_ARM_VCPU_PMU_V3: int
    KVM_ARM_VCPU_PMU_V3_CTRL: int
    KVM_ARM_VCPU_PMU_V3_INIT: int
    KVM_ARM_VCPU_PMU_V3_IRQ: int
    KVM_ARM_VCPU_POWER_OFF: int
    KVM_ARM_VCPU_PSCI_0_2: int
    KVM_ARM_VCPU_PTRAUTH_ADDRESS: int
    KVM_ARM_VCPU_PTRAUTH_GENERIC: int
    KVM_ARM_VCPU_SVE: int
    KVM_CAP_ADJUST_CLOCK: int
    KVM_CAP_ARM_CACHEABLE_PFNMAP_SUPPORTED: int
    KVM_CAP_ARM_EAGER_SPLIT_CHUNK_SIZE: int
    KVM_CAP_ARM_EL1_32BIT: int
    KVM_CAP_ARM_EL2: int
    KVM_CAP_ARM_EL2_E2H0: int
    KVM_CAP_ARM_INJECT_EXT_DABT: int
    KVM_CAP_ARM_INJECT_SERROR_ESR: int
    KVM_CAP_ARM_IRQ_LINE_LAYOUT_2: int
    KVM_CAP_ARM_MTE: int
    KVM_CAP_ARM_NISV_TO_USER: int
    KVM_CAP_ARM_PMU_V3: int
    KVM_CAP_ARM_PMU_V3_STRICT: int
    KVM_CAP_ARM_PSCI: int
    KVM_CAP_ARM_PSCI_0_2: int
    KVM_CAP_ARM_PTRAUTH_ADDRESS: int
    KVM_CAP_ARM_PTRAUTH_GENERIC: int
    KVM_CAP_ARM_SEA_TO_USER: int
    KVM_CAP_ARM_SET_DEVICE_ADDR: int
    KVM_CAP_ARM_SUPPORTED_BLOCK_SIZES: int
    KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES: int
    KVM_CAP_ARM_SVE: int
    KVM_CAP_ARM_SYSTEM_SUSPEND: int
    KVM_CAP_ARM_USER_IRQ: int
    KVM_CAP_ARM_VM_IPA_SIZE: int
    KVM_CAP_ARM_WRITABLE_IMP_ID_REGS: int
    KVM_CAP_ASSIGN_DEV_IRQ: int
    KVM_CAP_ASYNC_PF: int
    KVM_CAP_ASYNC_PF_INT: int
    KVM_CAP_BINARY_STATS_FD: int
    KVM_CAP_CHECK_EXTENSION_VM: int
    KVM_CAP_CLOCKSOURCE: int
    KVM_CAP_COALESCED_MMIO: int
    KVM_CAP_COALESCED_PIO: int
    KVM_CAP_COUNTER_OFFSET: int
    KVM_CAP_DEBUGREGS: int
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS: int
    KVM_CAP_DEVICE_CTRL: int
    KVM_CAP_DIRTY_LOG_RING: int
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL: int
    KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: int
    KVM_CAP_DISABLE_QUIRKS: int
    KVM_CAP_DISABLE_QUIRKS2: int
    KVM_CAP_ENABLE_CAP: int
    KVM_CAP_ENABLE_CAP_VM: int
    KVM_CAP_ENFORCE_PV_FEATURE_CPUID: int
    KVM_CAP_EXCEPTION_PAYLOAD: int
    KVM_CAP_EXIT_HYPERCALL: int
    KVM_CAP_EXIT_ON_EMULATION_FAILURE: int
    KVM_CAP_EXT_CPUID: int
    KVM_CAP_EXT_EMUL_CPUID: int
    KVM_CAP_GET_MSR_FEATURES: int
    KVM_CAP_GET_TSC_KHZ: int
    KVM_CAP_GUEST_DEBUG_HW_BPS: int
    KVM_CAP_GUEST_DEBUG_HW_WPS: int
    KVM_CAP_GUEST_MEMFD: int
    KVM_CAP_GUEST_MEMFD_FLAGS: int
    KVM_CAP_HALT_POLL: int
    KVM_CAP_HLT: int
    KVM_CAP_HYPERV: int
    KVM_CAP_HYPERV_CPUID: int
    KVM_CAP_HYPERV_DIRECT_TLBFLUSH: int
    KVM_CAP_HYPERV_ENFORCE_CPUID: int
    KVM_CAP_HYPERV_ENLIGHTENED_VMCS: int
    KVM_CAP_HYPERV_EVENTFD: int
    KVM_CAP_HYPERV_SEND_IPI: int
    KVM_CAP_HYPERV_SPIN: int
    KVM_CAP_HYPERV_SYNIC: int
    KVM_CAP_HYPERV_SYNIC2: int
    KVM_CAP_HYPERV_TIME: int
    KVM_CAP_HYPERV_TLBFLUSH: int
    KVM_CAP_HYPERV_VAPIC: int
    KVM_CAP_HYPERV_VP_INDEX: int
    KVM_CAP_IMMEDIATE_EXIT: int
    KVM_CAP_INTERNAL_ERROR_DATA: int
    KVM_CAP_INTR_SHADOW: int
    KVM_CAP_IOAPIC_POLARITY_IGNORED: int
    KVM_CAP_IOEVENTFD: int
    KVM_CAP_IOEVENTFD_ANY_LENGTH: int
    KVM_CAP_IOEVENTFD_NO_LENGTH: int
    KVM_CAP_IOMMU: int
    KVM_CAP_IRQCHIP: int
    KVM_CAP_IRQFD: int
    KVM_CAP_IRQFD_RESAMPLE: int
    KVM_CAP_IRQ_INJECT_STATUS: int
    KVM_CAP_IRQ_MPIC: int
    KVM_CAP_IRQ_ROUTING: int
    KVM_CAP_IRQ_XICS: int
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: int
    KVM_CAP_KVMCLOCK_CTRL: int
    KVM_CAP_LAST_CPU: int
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT: int
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: int
    KVM_CAP_MAX_VCPUS: int
    KVM_CAP_MAX_VCPU_ID: int
    KVM_CAP_MCE: int
    KVM_CAP_MEMORY_ATTRIBUTES: int
    KVM_CAP_MEMORY_FAULT_INFO: int
    KVM_CAP_MIPS_64BIT: int
    KVM_CAP_MIPS_FPU: int
    KVM_CAP_MIPS_MSA: int
    KVM_CAP_MIPS_TE: int
    KVM_CAP_MIPS_VZ: int
    KVM_CAP_MMU_SHADOW_CACHE_CONTROL: int
    KVM_CAP_MP_STATE: int
    KVM_CAP_MSI_DEVID: int
    KVM_CAP_MSR_PLATFORM_INFO: int
    KVM_CAP_MULTI_ADDRESS_SPACE: int
    KVM_CAP_NESTED_STATE: int
    KVM_CAP_NOP_IO_DELAY: int
    KVM_CAP_NR_MEMSLOTS: int
    KVM_CAP_NR_VCPUS: int
    KVM_CAP_ONE_REG: int
    KVM_CAP_PCI_2_3: int
    KVM_CAP_PCI_SEGMENT: int
    KVM_CAP_PIT: int
    KVM_CAP_PIT2: int
    KVM_CAP_PIT_STATE2: int
    KVM_CAP_PMU_CAPABILITY: int
    KVM_CAP_PMU_EVENT_FILTER: int
    KVM_CAP_PMU_EVENT_MASKED_EVENTS: int
    KVM_CAP_PPC_AIL_MODE_3: int
    KVM_CAP_PPC_ALLOC_HTAB: int
    KVM_CAP_PPC_BOOKE_SREGS: int
    KVM_CAP_PPC_BOOKE_WATCHDOG: int
    KVM_CAP_PPC_COMPAT_CAPS: int
    KVM_CAP_PPC_DAWR1: int
    KVM_CAP_PPC_ENABLE_HCALL: int
    KVM_CAP_PPC_EPR: int
    KVM_CAP_PPC_FIXUP_HCALL: int
    KVM_CAP_PPC_FWNMI: int
    KVM_CAP_PPC_GET_CPU_CHAR: int
    KVM_CAP_PPC_GET_PVINFO: int
    KVM_CAP_PPC_GET_SMMU_INFO: int
    KVM_CAP_PPC_GUEST_DEBUG_SSTEP: int
    KVM_CAP_PPC_HIOR: int
    KVM_CAP_PPC_HTAB_FD: int
    KVM_CAP_PPC_HTM: int
    KVM_CAP_PPC_HWRNG: int
    KVM_CAP_PPC_IRQ_LEVEL: int
    KVM_CAP_PPC_IRQ_XIVE: int
    KVM_CAP_PPC_MMU_HASH_V3: int
    KVM_CAP_PPC_MMU_RADIX: int
    KVM_CAP_PPC_NESTED_HV: int
    KVM_CAP_PPC_OSI: int
    KVM_CAP_PPC_PAIRED_SINGLES: int
    KVM_CAP_PPC_PAPR: int
    KVM_CAP_PPC_RMA: int
    KVM_CAP_PPC_RPT_INVALIDATE: int
    KVM_CAP_PPC_RTAS: int
    KVM_CAP_PPC_SECURE_GUEST: int
    KVM_CAP_PPC_SEGSTATE: int
    KVM_CAP_PPC_SMT: int
    KVM_CAP_PPC_SMT_POSSIBLE: int
    KVM_CAP_PPC_UNSET_IRQ: int
    KVM_CAP_PRE_FAULT_MEMORY: int
    KVM_CAP_PTP_KVM: int
    KVM_CAP_PV_MMU: int
    KVM_CAP_READONLY_MEM: int
    KVM_CAP_REINJECT_CONTROL: int
    KVM_CAP_RISCV_MP_STATE_RESET: int
    KVM_CAP_S390_AIS: int
    KVM_CAP_S390_AIS_MIGRATION: int
    KVM_CAP_S390_BPB: int
    KVM_CAP_S390_CMMA_MIGRATION: int
    KVM_CAP_S390_COW: int
    KVM_CAP_S390_CPU_TOPOLOGY: int
    KVM_CAP_S390_CSS_SUPPORT: int
    KVM_CAP_S390_DIAG318: int
    KVM_CAP_S390_GMAP: int
    KVM_CAP_S390_GS: int
    KVM_CAP_S390_HPAGE_1M: int
    KVM_CAP_S390_HPAGE_2G: int
    KVM_CAP_S390_INJECT_IRQ: int
    KVM_CAP_S390_IRQCHIP: int
    KVM_CAP_S390_IRQ_STATE: int
    KVM_CAP_S390_KEYOP: int
    KVM_CAP_S390_MEM_OP: int
    KVM_CAP_S390_MEM_OP_EXTENSION: int
    KVM_CAP_S390_PROTECTED: int
    KVM_CAP_S390_PROTECTED_ASYNC_DISABLE: int
    KVM_CAP_S390_PROTECTED_DUMP: int
    KVM_CAP_S390_PSW: int
    KVM_CAP_S390_RI: int
    KVM_CAP_S390_SKEYS: int
    KVM_CAP_S390_UCONTROL: int
    KVM_CAP_S390_USER_INSTR0: int
    KVM_CAP_S390_USER_OPEREXEC: int
    KVM_CAP_S390_USER_SIGP: int
    KVM_CAP_S390_USER_STSI: int
    KVM_CAP_S390_VCPU_RESETS: int
    KVM_CAP_S390_VECTOR_REGISTERS: int
    KVM_CAP_S390_VSIE_ESAMODE: int
    KVM_CAP_S390_ZPCI_OP: int
    KVM_CAP_SET_BOOT_CPU_ID: int
    KVM_CAP_SET_GUEST_DEBUG: int
    KVM_CAP_SET_GUEST_DEBUG2: int
    KVM_CAP_SET_IDENTITY_MAP_ADDR: int
    KVM_CAP_SET_TSS_ADDR: int
    KVM_CAP_SGX_ATTRIBUTE: int
    KVM_CAP_SIGNAL_MSI: int
    KVM_CAP_SMALLER_MAXPHYADDR: int
    KVM_CAP_SPAPR_MULTITCE: int
    KVM_CAP_SPAPR_RESIZE_HPT: int
    KVM_CAP_SPAPR_TCE: int
    KVM_CAP_SPAPR_TCE_64: int
    KVM_CAP_SPAPR_TCE_VFIO: int
    KVM_CAP_SPLIT_IRQCHIP: int
    KVM_CAP_SREGS2: int
    KVM_CAP_STEAL_TIME: int
    KVM_CAP_SW_TLB: int
    KVM_CAP_SYNC_MMU: int
    KVM_CAP_SYNC_REGS: int
    KVM_CAP_SYSTEM_EVENT_DATA: int
    KVM_CAP_SYS_ATTRIBUTES: int
    KVM_CAP_SYS_HYPERV_CPUID: int
    KVM_CAP_TSC_CONTROL: int
    KVM_CAP_TSC_DEADLINE_TIMER: int
    KVM_CAP_USER_MEMORY: int
    KVM_CAP_USER_MEMORY2: int
    KVM_CAP_USER_NMI: int
    KVM_CAP_VAPIC: int
    KVM_CAP_VCPU_ATTRIBUTES: int
    KVM_CAP_VCPU_EVENTS: int
    KVM_CAP_VM_ATTRIBUTES: int
    KVM_CAP_VM_COPY_ENC_CONTEXT_FROM: int
    KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: int
    KVM_CAP_VM_GPA_BITS: int
    KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM: int
    KVM_CAP_VM_TSC_CONTROL: int
    KVM_CAP_VM_TYPES: int
    KVM_CAP_X2APIC_API: int
    KVM_CAP_X86_APIC_BUS_CYCLES_NS: int
    KVM_CAP_X86_BUS_LOCK_EXIT: int
    KVM_CAP_X86_DISABLE_EXITS: int
    KVM_CAP_X86_GUEST_MODE: int
    KVM_CAP_X86_MSR_FILTER: int
    KVM_CAP_X86_NOTIFY_VMEXIT: int
    KVM_CAP_X86_ROBUST_SINGLESTEP: int
    KVM_CAP_X86_SMM: int
    KVM_CAP_X86_TRIPLE_FAULT_EVENT: int
    KVM_CAP_X86_USER_SPACE_MSR: int
    KVM_CAP_XCRS: int
    KVM_CAP_XEN_HVM: int
    KVM_CAP_XSAVE: int
    KVM_CAP_XSAVE2: int
    KVM_CHECK_EXTENSION: int
    KVM_CLEAR_DIRTY_LOG: int
    KVM_CREATE_DEVICE: int
    KVM_CREATE_DEVICE_TEST: int
    KVM_CREATE_GUEST_MEMFD: int
    KVM_CREATE_VCPU: int
    KVM_CREATE_VM: int
    KVM_DEV_ARM_ITS_RESTORE_TABLES: int
    KVM_DEV_ARM_ITS_SAVE_TABLES: int
    KVM_DEV_ARM_VGIC_CPUID_SHIFT: int
    KVM_DEV_ARM_VGIC_CTRL_INIT: int
    KVM_DEV_ARM_VGIC_GRP_ADDR: int
    KVM_DEV_ARM_VGIC_GRP_CPU_REGS: int
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS: int
    KVM_DEV_ARM_VGIC_GRP_CTRL: int
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS: int
    KVM_DEV_ARM_VGIC_GRP_ITS_REGS: int
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: int
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS: int
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS: int
    KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES: int
    KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT: int
    KVM_DEV_TYPE_ARM_VGIC_ITS: int
    KVM_DEV_TYPE_ARM_VGIC_V2: int
    KVM_DEV_TYPE_ARM_VGIC_V3: int
    KVM_DEV_TYPE_VFIO: int
    KVM_DEV_VFIO_GROUP: int
    KVM_DEV_VFIO_GROUP_ADD: int
    KVM_DEV_VFIO_GROUP_DEL: int
    KVM_DIRTY_LOG_INITIALLY_SET: int
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE: int
    KVM_ENABLE_CAP: int
    KVM_EXIT_ARM_NISV: int
    KVM_EXIT_ARM_SEA: int
    KVM_EXIT_DEBUG: int
    KVM_EXIT_DIRTY_RING_FULL: int
    KVM_EXIT_EXCEPTION: int
    KVM_EXIT_FAIL_ENTRY: int
    KVM_EXIT_HLT: int
    KVM_EXIT_HYPERCALL: int
    KVM_EXIT_INTERNAL_ERROR: int
    KVM_EXIT_INTR: int
    KVM_EXIT_IO: int
    KVM_EXIT_MEMORY_FAULT: int
    KVM_EXIT_MMIO: int
    KVM_EXIT_SHUTDOWN: int
    KVM_EXIT_SYSTEM_EVENT: int
    KVM_EXIT_UNKNOWN: int
    KVM_GET_API_VERSION: int
    KVM_GET_DEVICE_ATTR: int
    KVM_GET_DIRTY_LOG: int
    KVM_GET_MP_STATE: int
    KVM_GET_ONE_REG: int
    KVM_GET_REG_LIST: int
    KVM_GET_STATS_FD: int
    KVM_GET_VCPU_EVENTS: int
    KVM_GET_VCPU_MMAP_SIZE: int
    KVM_GUESTDBG_ENABLE: int
    KVM_GUESTDBG_SINGLESTEP: int
    KVM_IOEVENTFD: int
    KVM_IOEVENTFD_FLAG_DATAMATCH: int
    KVM_IOEVENTFD_FLAG_DEASSIGN: int
    KVM_IRQFD: int
    KVM_IRQFD_FLAG_DEASSIGN: int
    KVM_IRQFD_FLAG_RESAMPLE: int
    KVM_IRQ_LINE: int
    KVM_IRQ_ROUTING_IRQCHIP: int
    KVM_IRQ_ROUTING_MSI: int
    KVM_MEM_GUEST_MEMFD: int
    KVM_MEM_LOG_DIRTY_PAGES: int
    KVM_MEM_READONLY: int
    KVM_MP_STATE_RUNNABLE: int
    KVM_MP_STATE_STOPPED: int
    KVM_MP_STATE_SUSPENDED: int
    KVM_MSI_VALID_DEVID: int
    KVM_REG_ARM64: int
    KVM_REG_ARM64_SVE: int
    KVM_REG_ARM64_SYSREG: int
    KVM_REG_ARM64_SYSREG_CRM_SHIFT: int
    KVM_REG_ARM64_SYSREG_CRN_SHIFT: int
    KVM_REG_ARM64_SYSREG_OP0_SHIFT: int
    KVM_REG_ARM64_SYSREG_OP1_SHIFT: int
    KVM_REG_ARM64_SYSREG_OP2_SHIFT: int
    KVM_REG_ARM_COPROC_MASK: int
    KVM_REG_ARM_CORE: int
    KVM_REG_ARM_DEMUX: int
    KVM_REG_ARM_FW: int
    KVM_REG_ARM_FW_FEAT_BMAP: int
    KVM_REG_SIZE_MASK: int
    KVM_REG_SIZE_SHIFT: int
    KVM_REG_SIZE_U64: int
    KVM_RUN: int
    KVM_SET_DEVICE_ATTR: int
    KVM_SET_GSI_ROUTING: int
    KVM_SET_MP_STATE: int
    KVM_SET_ONE_REG: int
    KVM_SET_USER_MEMORY_REGION: int
    KVM_SET_USER_MEMORY_REGION2: int
    KVM_SET_VCPU_EVENTS: int
    KVM_STATS_TYPE_CUMULATIVE: int
    KVM_STATS_TYPE_INSTANT: int
    KVM_STATS_TYPE_MASK: int
    KVM_STATS_TYPE_PEAK: int
    KVM_SYSTEM_EVENT_CRASH: int
    KVM_SYSTEM_EVENT_RESET: int
    KVM_SYSTEM_EVENT_SEV_TERM: int
    KVM_SYSTEM_EVENT_SHUTDOWN: int
    KVM_SYSTEM_EVENT_SUSPEND: int
    KVM_SYSTEM_EVENT_WAKEUP: int
    KVM_VGIC_ITS_ADDR_TYPE: int
    KVM_VGIC_V2_ADDR_TYPE_CPU: int
    KVM_VGIC_V2_ADDR_TYPE_DIST: int
    KVM_VGIC_V3_ADDR_TYPE_DIST: int
    KVM_VGIC_V3_ADDR_TYPE_REDIST: int
    NETLINK_EXT_ACK: int
    NETLINK_ROUTE: int
    NLMSGERR_ATTR_MSG: int
    NLMSG_ERROR: int
    NLM_F_ACK: int
    NLM_F_ACK_TLVS: int
    NLM_F_CAPPED: int
    NLM_F_CREATE: int
    NLM_F_REPLACE: int
    NLM_F_REQUEST: int
    PCI_BASE_ADDRESS_0: int
    PCI_BASE_ADDRESS_MEM_PREFETCH: int
    PCI_BASE_ADDRESS_MEM_TYPE_64: int
    PCI_BASE_ADDRESS_MEM_TYPE_MASK: int
    PCI_BASE_ADDRESS_SPACE_IO: int
    PCI_CACHE_LINE_SIZE: int
    PCI_CAPABILITY_LIST: int
    PCI_CAP_ID_EA: int
    PCI_CAP_ID_EXP: int
    PCI_CAP_ID_MSI: int
    PCI_CAP_ID_MSIX: int
    PCI_CAP_ID_PM: int
    PCI_CAP_ID_VNDR: int
    PCI_CAP_LIST_NEXT: int
    PCI_CAP_MSIX_SIZEOF: int
    PCI_CFG_SPACE_EXP_SIZE: int
    PCI_CFG_SPACE_SIZE: int
    PCI_CLASS_REVISION: int
    PCI_COMMAND: int
    PCI_COMMAND_INTX_DISABLE: int
    PCI_COMMAND_IO: int
    PCI_COMMAND_MASTER: int
    PCI_COMMAND_MEMORY: int
    PCI_COMMAND_PARITY: int
    PCI_COMMAND_SERR: int
    PCI_DEVICE_ID: int
    PCI_EXP_DEVCAP: int
    PCI_EXP_DEVCAP_FLR: int
    PCI_EXP_DEVCAP_RBER: int
    PCI_EXP_DEVCTL: int
    PCI_EXP_DEVCTL_BCR_FLR: int
    PCI_EXP_FLAGS: int
    PCI_EXP_FLAGS_TYPE: int
    PCI_EXP_LNKCAP: int
    PCI_EXP_LNKCAP2: int
    PCI_EXP_LNKCTL: int
    PCI_EXP_LNKCTL2: int
    PCI_EXP_LNKSTA: int
    PCI_EXP_SLTCAP: int
    PCI_EXP_SLTCAP2: int
    PCI_EXP_TYPE_ENDPOINT: int
    PCI_EXP_TYPE_LEG_END: int
    PCI_EXP_TYPE_RC_END: int
    PCI_EXT_CAP_ID_ACS: int
    PCI_EXT_CAP_ID_ARI: int
    PCI_EXT_CAP_ID_ATS: int
    PCI_EXT_CAP_ID_DPC: int
    PCI_EXT_CAP_ID_L1SS: int
    PCI_EXT_CAP_ID_MCAST: int
    PCI_EXT_CAP_ID_MFVC: int
    PCI_EXT_CAP_ID_MRIOV: int
    PCI_EXT_CAP_ID_PASID: int
    PCI_EXT_CAP_ID_PRI: int
    PCI_EXT_CAP_ID_PTM: int
    PCI_EXT_CAP_ID_REBAR: int
    PCI_EXT_CAP_ID_SRIOV: int
    PCI_HEADER_TYPE: int
    PCI_HEADER_TYPE_MASK: int
    PCI_INTERRUPT_LINE: int
    PCI_INTERRUPT_PIN: int
    PCI_LATENCY_TIMER: int
    PCI_MSIX_ENTRY_CTRL_MASKBIT: int
    PCI_MSIX_ENTRY_DATA: int
    PCI_MSIX_ENTRY_LOWER_ADDR: int
    PCI_MSIX_ENTRY_SIZE: int
    PCI_MSIX_ENTRY_UPPER_ADDR: int
    PCI_MSIX_ENTRY_VECTOR_CTRL: int
    PCI_MSIX_FLAGS: int
    PCI_MSIX_FLAGS_ENABLE: int
    PCI_MSIX_FLAGS_MASKALL: int
    PCI_MSIX_FLAGS_QSIZE: int
    PCI_MSIX_PBA: int
    PCI_MSIX_PBA_BIR: int
    PCI_MSIX_PBA_OFFSET: int
    PCI_MSIX_TABLE: int
    PCI_MSIX_TABLE_BIR: int
    PCI_MSIX_TABLE_OFFSET: int
    PCI_MSI_ADDRESS_HI: int
    PCI_MSI_ADDRESS_LO: int
    PCI_MSI_DATA_32: int
    PCI_MSI_DATA_64: int
    PCI_MSI_FLAGS: int
    PCI_MSI_FLAGS_64BIT: int
    PCI_MSI_FLAGS_ENABLE: int
    PCI_MSI_FLAGS_MASKBIT: int
    PCI_MSI_FLAGS_QMASK: int
    PCI_MSI_FLAGS_QSIZE: int
    PCI_MSI_MASK_32: int
    PCI_MSI_MASK_64: int
    PCI_MSI_PENDING_32: int
    PCI_MSI_PENDING_64: int
    PCI_PM_CTRL: int
    PCI_PM_CTRL_NO_SOFT_RESET: int
    PCI_PM_CTRL_STATE_MASK: int
    PCI_PM_PMC: int
    PCI_PM_SIZEOF: int
    PCI_ROM_ADDRESS: int
    PCI_ROM_ADDRESS_ENABLE: int
    PCI_STATUS: int
    PCI_STATUS_CAP_LIST: int
    PCI_STATUS_INTERRUPT: int
    PCI_STD_HEADER_SIZEOF: int
    PCI_SUBSYSTEM_ID: int
    PCI_SUBSYSTEM_VENDOR_ID: int
    PCI_VENDOR_ID: int
    PYVMM_ANSWER_EVENTFD: int
    PYVMM_ANSWER_INTERRUPT_ACK: int
    PYVMM_ANSWER_INTERRUPT_STATUS: int
    PYVMM_ANSWER_SHADOW: int
    PYVMM_ANSWER_SINK: int
    PYVMM_ANSWER_UNCHANGED: int
    PYVMM_ARM64_DEBUG_REGS: int
    PYVMM_ARM64_GUESTDBG_USE_HW: int
    PYVMM_ARM64_GUESTDBG_USE_SW_BP: int
    PYVMM_ARM64_SET_GUEST_DEBUG: int
    PYVMM_BALLOON_MOST_PFNS: int
    PYVMM_BLK_DEPTH: int
    PYVMM_BLK_DISCARD_RANGES: int
    PYVMM_BLK_DISCARD_SECTORS: int
    PYVMM_BLK_MAGIC_BYTES: int
    PYVMM_BLK_PAUSE: int
    PYVMM_BLK_SERIAL_BYTES: int
    PYVMM_BLK_STOP: int
    PYVMM_BLK_ZEROES_RANGES: int
    PYVMM_BLK_ZEROES_SECTORS: int
    PYVMM_BLOCKS: int
    PYVMM_BLOCK_SHIFT: int
    PYVMM_EXIT_REASONS: int
    PYVMM_FIRST_USER: int
    PYVMM_FRAME_RAW: int
    PYVMM_FRAME_RUNS: int
    PYVMM_FRAME_TEXT: int
    PYVMM_FRAME_ZERO: int
    PYVMM_MEM_WRITE_BACK: int
    PYVMM_NET_HEADER: int
    PYVMM_NET_MOST: int
    PYVMM_NET_WINDOW: int
    PYVMM_PLACE_DIRECTORY: int
    PYVMM_PLACE_FILE: int
    PYVMM_PLACE_LINK: int
    PYVMM_PLACE_TREE: int
    PYVMM_PLACE_WRITABLE: int
    PYVMM_RECORD_CHAIN: int
    PYVMM_RECORD_EXIT: int
    PYVMM_RECORD_INTERRUPT: int
    PYVMM_RING_ADDRESS: int
    PYVMM_RING_ALIGNMENT: int
    PYVMM_RING_DESCRIPTOR: int
    PYVMM_RING_EMPTY: int
    PYVMM_RING_INDEX: int
    PYVMM_RING_INDIRECT: int
    PYVMM_RING_LENGTH: int
    PYVMM_RING_LOOP: int
    PYVMM_RING_NESTED: int
    PYVMM_RING_ORDER: int
    PYVMM_RING_REQUEST: int
    PYVMM_RING_REUSED: int
    PYVMM_RING_SEGMENTS: int
    PYVMM_RING_SIZE: int
    PYVMM_RING_TABLE: int
    PYVMM_RUN_LOAD: int
    PYVMM_RUN_STORE: int
    PYVMM_SANDBOX_CENSUS: int
    PYVMM_SANDBOX_LOG: int
    PYVMM_SANDBOX_OFF: int
    PYVMM_SANDBOX_ON: int
    PYVMM_STREAM_COUNT: int
    PYVMM_STREAM_KIND: int
    PYVMM_STREAM_LENGTH: int
    PYVMM_STREAM_OFFSET: int
    PYVMM_STREAM_SIZE: int
    PYVMM_THREAD_CONTROL: int
    PYVMM_THREAD_LOOP: int
    PYVMM_THREAD_QUEUE: int
    PYVMM_THREAD_VCPU: int
    PYVMM_WALL_FILES: int
    PYVMM_WALL_IPC: int
    PYVMM_WALL_LANDLOCK: int
    PYVMM_WALL_NETWORK: int
    PYVMM_WALL_SCOPE: int
    PYVMM_WALL_TCP: int
    PYVMM_WALL_USER: int
    RTM_GETLINK: int
    RTM_NEWADDR: int
    RTM_NEWLINK: int
    SOL_NETLINK: int
    TUNSETIFF: int
    TUNSETOFFLOAD: int
    TUNSETQUEUE: int
    TUNSETVNETHDRSZ: int
    TUN_F_CSUM: int
    TUN_F_TSO4: int
    TUN_F_TSO6: int
    TUN_F_TSO_ECN: int
    VFIO_API_VERSION: int
    VFIO_CHECK_EXTENSION: int
    VFIO_DEVICE_ATTACH_IOMMUFD_PT: int
    VFIO_DEVICE_BIND_IOMMUFD: int
    VFIO_DEVICE_DETACH_IOMMUFD_PT: int
    VFIO_DEVICE_FEATURE: int
    VFIO_DEVICE_FEATURE_DMA_BUF: int
    VFIO_DEVICE_FEATURE_GET: int
    VFIO_DEVICE_FEATURE_MIGRATION: int
    VFIO_DEVICE_FLAGS_PCI: int
    VFIO_DEVICE_FLAGS_RESET: int
    VFIO_DEVICE_GET_INFO: int
    VFIO_DEVICE_GET_IRQ_INFO: int
    VFIO_DEVICE_GET_REGION_INFO: int
    VFIO_DEVICE_RESET: int
    VFIO_DEVICE_SET_IRQS: int
    VFIO_DMA_MAP_FLAG_READ: int
    VFIO_DMA_MAP_FLAG_WRITE: int
    VFIO_GET_API_VERSION: int
    VFIO_GROUP_FLAGS_VIABLE: int
    VFIO_GROUP_GET_DEVICE_FD: int
    VFIO_GROUP_GET_STATUS: int
    VFIO_GROUP_SET_CONTAINER: int
    VFIO_GROUP_UNSET_CONTAINER: int
    VFIO_IOMMU_GET_INFO: int
    VFIO_IOMMU_INFO_CAPS: int
    VFIO_IOMMU_MAP_DMA: int
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE: int
    VFIO_IOMMU_UNMAP_DMA: int
    VFIO_IRQ_INFO_AUTOMASKED: int
    VFIO_IRQ_INFO_MASKABLE: int
    VFIO_IRQ_INFO_NORESIZE: int
    VFIO_IRQ_SET_ACTION_MASK: int
    VFIO_IRQ_SET_ACTION_TRIGGER: int
    VFIO_IRQ_SET_ACTION_UNMASK: int
    VFIO_IRQ_SET_DATA_EVENTFD: int
    VFIO_IRQ_SET_DATA_NONE: int
    VFIO_MIGRATION_P2P: int
    VFIO_MIGRATION_PRE_COPY: int
    VFIO_MIGRATION_STOP_COPY: int
    VFIO_PCI_BAR0_REGION_INDEX: int
    VFIO_PCI_BAR5_REGION_INDEX: int
    VFIO_PCI_CONFIG_REGION_INDEX: int
    VFIO_PCI_ERR_IRQ_INDEX: int
    VFIO_PCI_INTX_IRQ_INDEX: int
    VFIO_PCI_MSIX_IRQ_INDEX: int
    VFIO_PCI_MSI_IRQ_INDEX: int
    VFIO_PCI_REQ_IRQ_INDEX: int
    VFIO_PCI_ROM_REGION_INDEX: int
    VFIO_PCI_VGA_REGION_INDEX: int
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: int
    VFIO_REGION_INFO_CAP_SPARSE_MMAP: int
    VFIO_REGION_INFO_CAP_TYPE: int
    VFIO_REGION_INFO_FLAG_CAPS: int
    VFIO_REGION_INFO_FLAG_MMAP: int
    VFIO_REGION_INFO_FLAG_READ: int
    VFIO_REGION_INFO_FLAG_WRITE: int
    VFIO_SET_IOMMU: int
    VFIO_TYPE1v2_IOMMU: int
    VHOST_GET_FEATURES: int
    VHOST_NET_SET_BACKEND: int
    VHOST_SET_FEATURES: int
    VHOST_SET_MEM_TABLE: int
    VHOST_SET_OWNER: int
    VHOST_SET_VRING_ADDR: int
    VHOST_SET_VRING_BASE: int
    VHOST_SET_VRING_CALL: int
    VHOST_SET_VRING_ERR: int
    VHOST_SET_VRING_KICK: int
    VHOST_SET_VRING_NUM: int
    VHOST_VSOCK_SET_GUEST_CID: int
    VHOST_VSOCK_SET_RUNNING: int
    VIRTIO_BALLOON_F_DEFLATE_ON_OOM: int
    VIRTIO_BALLOON_F_PAGE_POISON: int
    VIRTIO_BALLOON_F_REPORTING: int
    VIRTIO_BALLOON_F_STATS_VQ: int
    VIRTIO_BALLOON_PFN_SHIFT: int
    VIRTIO_BALLOON_S_AVAIL: int
    VIRTIO_BALLOON_S_CACHES: int
    VIRTIO_BALLOON_S_HTLB_PGALLOC: int
    VIRTIO_BALLOON_S_HTLB_PGFAIL: int
    VIRTIO_BALLOON_S_MAJFLT: int
    VIRTIO_BALLOON_S_MEMFREE: int
    VIRTIO_BALLOON_S_MEMTOT: int
    VIRTIO_BALLOON_S_MINFLT: int
    VIRTIO_BALLOON_S_SWAP_IN: int
    VIRTIO_BALLOON_S_SWAP_OUT: int
    VIRTIO_BLK_F_BLK_SIZE: int
    VIRTIO_BLK_F_DISCARD: int
    VIRTIO_BLK_F_FLUSH: int
    VIRTIO_BLK_F_MQ: int
    VIRTIO_BLK_F_RO: int
    VIRTIO_BLK_F_SEG_MAX: int
    VIRTIO_BLK_F_WRITE_ZEROES: int
    VIRTIO_BLK_T_DISCARD: int
    VIRTIO_BLK_T_FLUSH: int
    VIRTIO_BLK_T_IN: int
    VIRTIO_BLK_T_OUT: int
    VIRTIO_BLK_T_WRITE_ZEROES: int
    VIRTIO_CONFIG_S_ACKNOWLEDGE: int
    VIRTIO_CONFIG_S_DRIVER: int
    VIRTIO_CONFIG_S_DRIVER_OK: int
    VIRTIO_CONFIG_S_FAILED: int
    VIRTIO_CONFIG_S_FEATURES_OK: int
    VIRTIO_CONFIG_S_NEEDS_RESET: int
    VIRTIO_CONSOLE_CONSOLE_PORT: int
    VIRTIO_CONSOLE_DEVICE_READY: int
    VIRTIO_CONSOLE_F_EMERG_WRITE: int
    VIRTIO_CONSOLE_F_MULTIPORT: int
    VIRTIO_CONSOLE_F_SIZE: int
    VIRTIO_CONSOLE_PORT_ADD: int
    VIRTIO_CONSOLE_PORT_NAME: int
    VIRTIO_CONSOLE_PORT_OPEN: int
    VIRTIO_CONSOLE_PORT_READY: int
    VIRTIO_CONSOLE_RESIZE: int
    VIRTIO_F_RING_PACKED: int
    VIRTIO_F_RING_RESET: int
    VIRTIO_F_VERSION_1: int
    VIRTIO_ID_BALLOON: int
    VIRTIO_ID_BLOCK: int
    VIRTIO_ID_CONSOLE: int
    VIRTIO_ID_FS: int
    VIRTIO_ID_NET: int
    VIRTIO_ID_PMEM: int
    VIRTIO_ID_RNG: int
    VIRTIO_ID_VSOCK: int
    VIRTIO_MMIO_CONFIG: int
    VIRTIO_MMIO_CONFIG_GENERATION: int
    VIRTIO_MMIO_DEVICE_FEATURES: int
    VIRTIO_MMIO_DEVICE_FEATURES_SEL: int
    VIRTIO_MMIO_DEVICE_ID: int
    VIRTIO_MMIO_DRIVER_FEATURES: int
    VIRTIO_MMIO_DRIVER_FEATURES_SEL: int
    VIRTIO_MMIO_INTERRUPT_ACK: int
    VIRTIO_MMIO_INTERRUPT_STATUS: int
    VIRTIO_MMIO_INT_CONFIG: int
    VIRTIO_MMIO_INT_VRING: int
    VIRTIO_MMIO_MAGIC_VALUE: int
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH: int
    VIRTIO_MMIO_QUEUE_AVAIL_LOW: int
    VIRTIO_MMIO_QUEUE_DESC_HIGH: int
    VIRTIO_MMIO_QUEUE_DESC_LOW: int
    VIRTIO_MMIO_QUEUE_NOTIFY: int
    VIRTIO_MMIO_QUEUE_NUM: int
    VIRTIO_MMIO_QUEUE_NUM_MAX: int
    VIRTIO_MMIO_QUEUE_READY: int
    VIRTIO_MMIO_QUEUE_SEL: int
    VIRTIO_MMIO_QUEUE_USED_HIGH: int
    VIRTIO_MMIO_QUEUE_USED_LOW: int
    VIRTIO_MMIO_SHM_BASE_HIGH: int
    VIRTIO_MMIO_SHM_BASE_LOW: int
    VIRTIO_MMIO_SHM_LEN_HIGH: int
    VIRTIO_MMIO_SHM_LEN_LOW: int
    VIRTIO_MMIO_STATUS: int
    VIRTIO_MMIO_VENDOR_ID: int
    VIRTIO_MMIO_VERSION: int
    VIRTIO_MSI_NO_VECTOR: int
    VIRTIO_NET_CTRL_GUEST_OFFLOADS: int
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET: int
    VIRTIO_NET_CTRL_MQ: int
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET: int
    VIRTIO_NET_ERR: int
    VIRTIO_NET_F_CSUM: int
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: int
    VIRTIO_NET_F_CTRL_VQ: int
    VIRTIO_NET_F_GUEST_CSUM: int
    VIRTIO_NET_F_GUEST_ECN: int
    VIRTIO_NET_F_GUEST_TSO4: int
    VIRTIO_NET_F_GUEST_TSO6: int
    VIRTIO_NET_F_HOST_ECN: int
    VIRTIO_NET_F_HOST_TSO4: int
    VIRTIO_NET_F_HOST_TSO6: int
    VIRTIO_NET_F_MAC: int
    VIRTIO_NET_F_MQ: int
    VIRTIO_NET_F_MRG_RXBUF: int
    VIRTIO_NET_F_MTU: int
    VIRTIO_NET_F_STATUS: int
    VIRTIO_NET_OK: int
    VIRTIO_NET_S_LINK_UP: int
    VIRTIO_PCI_CAP_BAR: int
    VIRTIO_PCI_CAP_COMMON_CFG: int
    VIRTIO_PCI_CAP_DEVICE_CFG: int
    VIRTIO_PCI_CAP_ISR_CFG: int
    VIRTIO_PCI_CAP_LENGTH: int
    VIRTIO_PCI_CAP_NOTIFY_CFG: int
    VIRTIO_PCI_CAP_OFFSET: int
    VIRTIO_PCI_CAP_PCI_CFG: int
    VIRTIO_PCI_COMMON_CFGGENERATION: int
    VIRTIO_PCI_COMMON_DF: int
    VIRTIO_PCI_COMMON_DFSELECT: int
    VIRTIO_PCI_COMMON_GF: int
    VIRTIO_PCI_COMMON_GFSELECT: int
    VIRTIO_PCI_COMMON_MSIX: int
    VIRTIO_PCI_COMMON_NUMQ: int
    VIRTIO_PCI_COMMON_Q_AVAILHI: int
    VIRTIO_PCI_COMMON_Q_AVAILLO: int
    VIRTIO_PCI_COMMON_Q_DESCHI: int
    VIRTIO_PCI_COMMON_Q_DESCLO: int
    VIRTIO_PCI_COMMON_Q_ENABLE: int
    VIRTIO_PCI_COMMON_Q_MSIX: int
    VIRTIO_PCI_COMMON_Q_NDATA: int
    VIRTIO_PCI_COMMON_Q_NOFF: int
    VIRTIO_PCI_COMMON_Q_RESET: int
    VIRTIO_PCI_COMMON_Q_SELECT: int
    VIRTIO_PCI_COMMON_Q_SIZE: int
    VIRTIO_PCI_COMMON_Q_USEDHI: int
    VIRTIO_PCI_COMMON_Q_USEDLO: int
    VIRTIO_PCI_COMMON_STATUS: int
    VIRTIO_PMEM_REQ_TYPE_FLUSH: int
    VIRTIO_RING_F_EVENT_IDX: int
    VIRTIO_RING_F_INDIRECT_DESC: int
    VIRTIO_VSOCK_F_SEQPACKET: int
    fdt_begin_node: Callable[[Any, Any], int]
    fdt_check_full: Callable[[Any, int], int]
    fdt_create: Callable[[Any, int], int]
    fdt_end_node: Callable[[Any], int]
    fdt_finish: Callable[[Any], int]
    fdt_finish_reservemap: Callable[[Any], int]
    fdt_first_property_offset: Callable[[Any, int], int]
    fdt_get_name: Callable[[Any, int, Any], Any]
    fdt_getprop_by_offset: Callable[[Any, int, Any, Any], Any]
    fdt_next_node: Callable[[Any, int, Any], int]
    fdt_next_property_offset: Callable[[Any, int], int]
    fdt_num_mem_rsv: Callable[[Any], int]
    fdt_property: Callable[[Any, Any, Any, int], int]
    fdt_strerror: Callable[[int], Any]
    pyvmm_allocate: Callable[[int, int], int]
    pyvmm_answer: Callable[[Any], int]
    pyvmm_answered_count: Callable[[Any], int]
    pyvmm_balloon_deflate: Callable[[Any, Any], None]
    pyvmm_balloon_forget: Callable[[Any], None]
    pyvmm_balloon_inflate: Callable[[Any, Any], None]
    pyvmm_balloon_report: Callable[[Any, Any], None]
    pyvmm_bitmap_count: Callable[[Any, int], int]
    pyvmm_bitmap_merge: Callable[[Any, Any, int], int]
    pyvmm_bitmap_runs: Callable[[Any, int, Any, Any, int], int]
    pyvmm_blk_alignment: Callable[[int, Any, Any], int]
    pyvmm_blk_open_uring: Callable[[Any], int]
    pyvmm_blk_run: Callable[[Any], int]
    pyvmm_blk_stop: Callable[[Any, int], None]
    pyvmm_blk_take_failure: Callable[[Any, Any], int]
    pyvmm_call_name: Callable[[int], Any]
    pyvmm_chain_fill_random: Callable[[Any, int], int]
    pyvmm_chain_from_file: Callable[[Any, int, int], int]
    pyvmm_chain_read: Callable[[Any, int, Any, int], int]
    pyvmm_chain_to_file: Callable[[Any, int, int, int], int]
    pyvmm_chain_write: Callable[[Any, int, Any, int], int]
    pyvmm_clear_immediate_exit: Callable[[Any], None]
    pyvmm_cntfrq_el0: Callable[[], int]
    pyvmm_copy: Callable[[Any, Any, int], None]
    pyvmm_ctr_el0: Callable[[], int]
    pyvmm_dc_civac: Callable[[Any, int], None]
    pyvmm_dc_cvac: Callable[[Any, int], None]
    pyvmm_dirty_note: Callable[[Any, Any, int], None]
    pyvmm_dirty_take: Callable[[Any, Any], int]
    pyvmm_exits: Callable[[Any], int]
    pyvmm_inflight_look: Callable[[Any], None]
    pyvmm_inflight_requeue: Callable[[Any, Any], int]
    pyvmm_inflight_run: Callable[[Any], None]
    pyvmm_interrupt_acknowledge: Callable[[Any, int], None]
    pyvmm_interrupt_raise: Callable[[Any, int], None]
    pyvmm_interrupt_stand: Callable[[Any, int], None]
    pyvmm_interrupt_status: Callable[[Any], int]
    pyvmm_ioctl: Callable[[int, int, int], int]
    pyvmm_ioctl_name: Callable[[int], Any]
    pyvmm_is_dax: Callable[[int], int]
    pyvmm_isolate: Callable[[int], int]
    pyvmm_kick: Callable[[Any], None]
    pyvmm_kick_prepare: Callable[[], int]
    pyvmm_madvise: Callable[[int, int, int], int]
    pyvmm_map_aligned: Callable[[int, int, int, int, int, int, Any], int]
    pyvmm_map_private: Callable[[int, int, int, int], int]
    pyvmm_move: Callable[[int, int, int], int]
    pyvmm_net_receive: Callable[[Any], int]
    pyvmm_net_stop: Callable[[Any], None]
    pyvmm_net_transmit: Callable[[Any], int]
    pyvmm_nonzero_pages: Callable[[Any, int, int, Any], int]
    pyvmm_observe: Callable[[Any, Any], None]
    pyvmm_observe_end: Callable[[Any], None]
    pyvmm_observe_now: Callable[[], int]
    pyvmm_observe_time: Callable[[Any, Any, int], None]
    pyvmm_protect: Callable[[int, int, int], int]
    pyvmm_queue_configure: Callable[[Any, int, int, int], int]
    pyvmm_queue_disable_notify: Callable[[Any], None]
    pyvmm_queue_enable_notify: Callable[[Any], int]
    pyvmm_queue_pop: Callable[[Any, Any], int]
    pyvmm_queue_push: Callable[[Any, int, int], int]
    pyvmm_queue_should_interrupt: Callable[[Any], int]
    pyvmm_receive_pages: Callable[[int, Any, int, int, Any, Any, Any], int]
    pyvmm_run: Callable[[Any], int]
    pyvmm_sandbox: Callable[[int], int]
    pyvmm_sandbox_denial: Callable[[int], Any]
    pyvmm_sandbox_tell: Callable[[int], None]
    pyvmm_sandbox_thread: Callable[[int], int]
    pyvmm_sanitize: Callable[[Any, Any, Any, int], int]
    pyvmm_seal: Callable[[], int]
    pyvmm_send_pages: Callable[[int, Any, int, int, Any, int, int, Any], int]
    pyvmm_set_answers: Callable[[Any, Any], None]
    pyvmm_set_value: Callable[[Any, int], None]
    pyvmm_sigbus_forget: Callable[[int], None]
    pyvmm_sigbus_lost: Callable[[int], int]
    pyvmm_sigbus_tell: Callable[[int], None]
    pyvmm_sigbus_watch: Callable[[int, int], int]
    pyvmm_sink_drain: Callable[[Any, Any, int, Any], int]
    pyvmm_sink_full: Callable[[Any], int]
    pyvmm_sink_put: Callable[[Any, int], int]
    pyvmm_sink_take_stores: Callable[[Any, int], None]
    pyvmm_sink_waiting: Callable[[Any], int]
    pyvmm_sink_written: Callable[[Any], int]
    pyvmm_spawn: Callable[[Any], int]
    pyvmm_stage1_load: Callable[[int, Any], int]
    pyvmm_stage1_walk: Callable[[int, Any, Any], int]
    pyvmm_sync_code: Callable[[Any, int], None]
    pyvmm_trace_format: Callable[[Any, Any, int, Any], int]
    pyvmm_trace_lost: Callable[[Any], int]
    pyvmm_trace_put: Callable[[Any, Any], int]
    pyvmm_tun_interface: Callable[[int, int, Any, int], int]
    pyvmm_unmap: Callable[[int, int], int]
    pyvmm_unsanitize: Callable[[Any], None]
    pyvmm_uring_close: Callable[[Any], None]
    pyvmm_uring_enter: Callable[[Any, int], int]
    pyvmm_uring_entry: Callable[[Any], Any]
    pyvmm_uring_next: Callable[[Any, Any], int]
    pyvmm_zero_prefix: Callable[[Any, int], int]

ffi: _FFI
lib: _Lib
