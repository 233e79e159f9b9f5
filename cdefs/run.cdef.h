/* cdefs/run.h as cffi reads it; see there for what things mean. */

struct pyvmm_sink {
    uint8_t *ring;
    uint32_t size;
    uint32_t full_at;
    int eventfd;
    ...;
};

#define PYVMM_ANSWER_EVENTFD ...
#define PYVMM_ANSWER_SINK ...
#define PYVMM_ANSWER_SHADOW ...
#define PYVMM_ANSWER_UNCHANGED ...
#define PYVMM_ANSWER_INTERRUPT_STATUS ...
#define PYVMM_ANSWER_INTERRUPT_ACK ...

struct pyvmm_answered {
    uint64_t address;
    uint32_t answer;
    int eventfd;
    struct pyvmm_sink *sink;
    uint64_t value;
    uint64_t flip_when_full;
    struct pyvmm_interrupt *interrupt;
};

struct pyvmm_answers {
    uint32_t count;
    struct pyvmm_answered *entries;
};

#define PYVMM_RUN_STORE ...
#define PYVMM_RUN_LOAD ...

struct pyvmm_vcpu {
    int fd;
    struct kvm_run *run;
    ...;
};

int pyvmm_ioctl(int fd, unsigned long request, uintptr_t arg);

int pyvmm_kick_prepare(void);
int pyvmm_run(struct pyvmm_vcpu *vcpu);
void pyvmm_kick(struct pyvmm_vcpu *vcpu);
int pyvmm_answer(struct pyvmm_vcpu *vcpu);
void pyvmm_set_answers(struct pyvmm_vcpu *vcpu, struct pyvmm_answers *answers);
void pyvmm_set_value(struct pyvmm_answered *entry, uint64_t value);
void pyvmm_clear_immediate_exit(struct pyvmm_vcpu *vcpu);
uint64_t pyvmm_exits(struct pyvmm_vcpu *vcpu);
uint64_t pyvmm_answered_count(struct pyvmm_vcpu *vcpu);
void pyvmm_observe(struct pyvmm_vcpu *vcpu, struct pyvmm_exit_observer *observer);
void pyvmm_observe_end(struct pyvmm_vcpu *vcpu);

int pyvmm_sink_put(struct pyvmm_sink *sink, uint8_t byte);
uint32_t pyvmm_sink_drain(struct pyvmm_sink *sink, uint8_t *out, uint32_t max, int *was_full);
uint32_t pyvmm_sink_waiting(struct pyvmm_sink *sink);
int pyvmm_sink_full(struct pyvmm_sink *sink);
void pyvmm_sink_take_stores(struct pyvmm_sink *sink, int take);
uint64_t pyvmm_sink_written(struct pyvmm_sink *sink);
