/* cdefs/spawn.h as cffi reads it; see there for what things mean. */

struct pyvmm_program {
    const char *path;
    char *const *argv;
    char *const *envp;
    uint32_t fd_count;
    const int *fds;
    int *moved;
    const struct pyvmm_walls *walls;
};

int pyvmm_spawn(const struct pyvmm_program *program);
