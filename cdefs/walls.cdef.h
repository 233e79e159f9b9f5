/* cdefs/walls.h as cffi reads it; see there for what things mean. */

#define PYVMM_PLACE_DIRECTORY ...
#define PYVMM_PLACE_LINK ...
#define PYVMM_PLACE_TREE ...
#define PYVMM_PLACE_FILE ...
#define PYVMM_PLACE_WRITABLE ...

struct pyvmm_place {
    const char *source;
    const char *target;
    uint32_t kind;
    int pinned;
    int mount;
};

struct pyvmm_walls {
    uint32_t count;
    struct pyvmm_place *places;
    uint32_t root;
    uint32_t user, group;
};
