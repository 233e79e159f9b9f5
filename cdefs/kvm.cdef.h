/*
 * The part of <linux/kvm.h> that pyvmm uses. "..." means: ask the compiler.
 * Arrays of __u64 are unsigned long long, as the kernel has it, where the compiler compares types
 * (gcc 14 insists); uint64_t is unsigned long here.
 */

/* --- ioctls on /dev/kvm -------------------------------------------------------------------- */
#define KVM_API_VERSION ...
#define KVM_GET_API_VERSION ...
#define KVM_CREATE_VM ...
#define KVM_CHECK_EXTENSION ...
#define KVM_GET_VCPU_MMAP_SIZE ...

/* --- ioctls on a VM ------------------------------------------------------------------------ */
#define KVM_CREATE_VCPU ...
#define KVM_CREATE_DEVICE ...
#define KVM_ENABLE_CAP ...
#define KVM_SET_USER_MEMORY_REGION ...
#define KVM_SET_USER_MEMORY_REGION2 ...
#define KVM_GET_DIRTY_LOG ...
#define KVM_IRQ_LINE ...
#define KVM_IRQFD ...
#define KVM_IOEVENTFD ...
#define KVM_SET_GSI_ROUTING ...
#define KVM_CREATE_GUEST_MEMFD ...
#define KVM_ARM_PREFERRED_TARGET ...

/* --- ioctls on a vCPU ---------------------------------------------------------------------- */
#define KVM_RUN ...
#define KVM_ARM_VCPU_INIT ...
#define KVM_ARM_VCPU_FINALIZE ...
#define KVM_SET_VCPU_EVENTS ...
#define KVM_GET_ONE_REG ...
#define KVM_SET_ONE_REG ...

/* --- ioctls on a device, and on a vCPU's attributes ---------------------------------------- */
#define KVM_SET_DEVICE_ATTR ...

/* --- memory slots -------------------------------------------------------------------------- */
#define KVM_MEM_LOG_DIRTY_PAGES ...
#define KVM_MEM_READONLY ...
#define KVM_MEM_GUEST_MEMFD ...
#define PYVMM_MEM_WRITE_BACK ...

struct kvm_userspace_memory_region {
    uint32_t slot;
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
};

struct kvm_userspace_memory_region2 {
    uint32_t slot;
    uint32_t flags;
    uint64_t guest_phys_addr;
    uint64_t memory_size;
    uint64_t userspace_addr;
    uint64_t guest_memfd_offset;
    uint32_t guest_memfd;
    ...;
};

struct kvm_create_guest_memfd {
    uint64_t size;
    uint64_t flags;
    ...;
};

struct kvm_dirty_log {
    uint32_t slot;
    void *dirty_bitmap;
    ...;
};

/* --- events and interrupts ----------------------------------------------------------------- */
#define KVM_IOEVENTFD_FLAG_DATAMATCH ...
#define KVM_IOEVENTFD_FLAG_DEASSIGN ...
#define KVM_IRQFD_FLAG_DEASSIGN ...
#define KVM_IRQFD_FLAG_RESAMPLE ...
#define KVM_IRQ_ROUTING_IRQCHIP ...
#define KVM_IRQ_ROUTING_MSI ...
#define KVM_MSI_VALID_DEVID ...

struct kvm_irq_level {
    uint32_t irq;
    uint32_t level;
};

struct kvm_irqfd {
    uint32_t fd;
    uint32_t gsi;
    uint32_t flags;
    uint32_t resamplefd;
    ...;
};

struct kvm_ioeventfd {
    uint64_t datamatch;
    uint64_t addr;
    uint32_t len;
    int32_t fd;
    uint32_t flags;
    ...;
};

struct kvm_irq_routing_irqchip {
    uint32_t irqchip;
    uint32_t pin;
};

struct kvm_irq_routing_msi {
    uint32_t address_lo;
    uint32_t address_hi;
    uint32_t data;
    uint32_t devid;
};

struct kvm_irq_routing_entry {
    uint32_t gsi;
    uint32_t type;
    uint32_t flags;
    union {
        struct kvm_irq_routing_irqchip irqchip;
        struct kvm_irq_routing_msi msi;
        uint32_t pad[8];
    } u;
    ...;
};

struct kvm_irq_routing {
    uint32_t nr;
    uint32_t flags;
    struct kvm_irq_routing_entry entries[];
};

/* --- devices and capabilities -------------------------------------------------------------- */
#define KVM_DEV_TYPE_VFIO ...
#define KVM_DEV_TYPE_ARM_VGIC_V2 ...
#define KVM_DEV_TYPE_ARM_VGIC_V3 ...
#define KVM_DEV_TYPE_ARM_VGIC_ITS ...
#define KVM_CREATE_DEVICE_TEST ...
#define KVM_DEV_VFIO_GROUP ...
#define KVM_DEV_VFIO_GROUP_ADD ...
#define KVM_DEV_VFIO_GROUP_DEL ...

struct kvm_create_device {
    uint32_t type;
    uint32_t fd;
    uint32_t flags;
};

struct kvm_device_attr {
    uint32_t flags;
    uint32_t group;
    uint64_t attr;
    uint64_t addr;
};

struct kvm_enable_cap {
    uint32_t cap;
    uint32_t flags;
    unsigned long long args[4];
    ...;
};

/* --- vCPUs --------------------------------------------------------------------------------- */

struct kvm_one_reg {
    uint64_t id;
    uint64_t addr;
};

/* --- exits --------------------------------------------------------------------------------- */
#define KVM_EXIT_MMIO ...
#define KVM_EXIT_FAIL_ENTRY ...
#define KVM_EXIT_INTERNAL_ERROR ...
#define KVM_EXIT_SYSTEM_EVENT ...
#define KVM_EXIT_ARM_NISV ...
#define KVM_EXIT_MEMORY_FAULT ...
#define KVM_EXIT_ARM_SEA ...
#define KVM_SYSTEM_EVENT_SHUTDOWN ...
#define KVM_SYSTEM_EVENT_RESET ...
#define KVM_SYSTEM_EVENT_CRASH ...
#define KVM_SYSTEM_EVENT_WAKEUP ...
#define KVM_SYSTEM_EVENT_SUSPEND ...
#define KVM_SYSTEM_EVENT_SEV_TERM ...

struct kvm_run {
    uint8_t request_interrupt_window;
    uint8_t immediate_exit;
    uint32_t exit_reason;
    union {
        struct {
            uint64_t hardware_exit_reason;
        } hw;
        struct {
            uint64_t hardware_entry_failure_reason;
            uint32_t cpu;
        } fail_entry;
        struct {
            uint64_t phys_addr;
            uint8_t data[8];
            uint32_t len;
            uint8_t is_write;
        } mmio;
        struct {
            uint32_t suberror;
            uint32_t ndata;
            uint64_t data[16];
        } internal;
        struct {
            uint32_t type;
            uint32_t ndata;
            uint64_t data[16];
        } system_event;
        struct {
            uint64_t esr_iss;
            uint64_t fault_ipa;
        } arm_nisv;
        char padding[256];
    };
    ...;
};

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

/* --- arm64 --------------------------------------------------------------------------------- */
#define KVM_ARM_VCPU_POWER_OFF ...
#define KVM_ARM_VCPU_PSCI_0_2 ...
#define KVM_ARM_VCPU_PMU_V3 ...
#define KVM_ARM_VCPU_SVE ...
#define KVM_ARM_VCPU_PTRAUTH_ADDRESS ...
#define KVM_ARM_VCPU_PTRAUTH_GENERIC ...
#define KVM_ARM_VCPU_PMU_V3_CTRL ...
#define KVM_ARM_VCPU_PMU_V3_IRQ ...
#define KVM_ARM_VCPU_PMU_V3_INIT ...
#define KVM_VGIC_V2_ADDR_TYPE_DIST ...
#define KVM_VGIC_V2_ADDR_TYPE_CPU ...
#define KVM_VGIC_V3_ADDR_TYPE_DIST ...
#define KVM_VGIC_V3_ADDR_TYPE_REDIST ...
#define KVM_VGIC_ITS_ADDR_TYPE ...
#define KVM_DEV_ARM_VGIC_GRP_ADDR ...
#define KVM_DEV_ARM_VGIC_GRP_NR_IRQS ...
#define KVM_DEV_ARM_VGIC_GRP_CTRL ...
#define KVM_DEV_ARM_VGIC_CTRL_INIT ...
#define KVM_ARM_IRQ_TYPE_SHIFT ...
#define KVM_ARM_IRQ_TYPE_SPI ...
#define KVM_REG_ARM64 ...
#define KVM_REG_SIZE_U64 ...
#define KVM_REG_SIZE_MASK ...
#define KVM_REG_SIZE_SHIFT ...
#define KVM_REG_ARM_CORE ...
#define KVM_REG_ARM64_SYSREG ...
#define KVM_REG_ARM64_SYSREG_OP0_SHIFT ...
#define KVM_REG_ARM64_SYSREG_OP1_SHIFT ...
#define KVM_REG_ARM64_SYSREG_CRN_SHIFT ...
#define KVM_REG_ARM64_SYSREG_CRM_SHIFT ...
#define KVM_REG_ARM64_SYSREG_OP2_SHIFT ...

struct kvm_vcpu_init {
    uint32_t target;
    uint32_t features[7];
};

struct pyvmm_arm64_vcpu_events {
    uint8_t serror_pending;
    uint8_t serror_has_esr;
    uint8_t ext_dabt_pending;
    uint64_t serror_esr;
    ...;
};

struct pyvmm_arm64_regs {
    uint64_t x[31];
    uint64_t sp;
    uint64_t pc;
    uint64_t pstate;
    uint64_t sp_el1;
    uint64_t elr_el1;
    uint64_t spsr[5];
    ...;
};
