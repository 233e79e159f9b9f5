/* cdefs/dirty.h and cdefs/migrate.h as cffi reads them; see there for what things mean. */

struct pyvmm_dirty {
    uint8_t *host;
    uint64_t size;
    uint32_t shift;
    uint64_t *bitmap;
};

void pyvmm_dirty_note(struct pyvmm_dirty *dirty, const void *at, uint64_t length);
uint64_t pyvmm_dirty_take(struct pyvmm_dirty *dirty, uint64_t *into);
uint64_t pyvmm_bitmap_merge(uint64_t *to, const uint64_t *from, uint64_t bits);

#define PYVMM_STREAM_KIND ...
#define PYVMM_STREAM_COUNT ...
#define PYVMM_STREAM_SIZE ...
#define PYVMM_STREAM_OFFSET ...
#define PYVMM_STREAM_LENGTH ...

#define PYVMM_FRAME_TEXT ...
#define PYVMM_FRAME_RAW ...
#define PYVMM_FRAME_ZERO ...
#define PYVMM_FRAME_RUNS ...

struct pyvmm_frame {
    uint32_t kind;
    uint32_t count;
    uint64_t size;
};

struct pyvmm_moved {
    uint64_t frames;
    uint64_t raw;
    uint64_t zero;
    uint64_t wire;
};

int pyvmm_send_pages(int fd, const uint8_t *ram, uint64_t size, uint32_t shift,
    const uint64_t *bitmap, uint64_t from, uint64_t pages, struct pyvmm_moved *moved);
int pyvmm_receive_pages(int fd, uint8_t *ram, uint64_t size, uint32_t shift,
    struct pyvmm_frame *next, struct pyvmm_moved *moved, uint64_t *written);
