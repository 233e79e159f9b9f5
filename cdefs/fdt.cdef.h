/* The part of libfdt's <libfdt.h> that vmm.fdt uses: building a blob in order, and reading one. */

/* --- errors -------------------------------------------------------------- */
const char *fdt_strerror(int errval);

/* --- building: nodes in order, each with its properties before its children --- */
int fdt_create(void *buf, int bufsize);
int fdt_finish_reservemap(void *fdt);
int fdt_begin_node(void *fdt, const char *name);
int fdt_property(void *fdt, const char *name, const void *val, int len);
int fdt_end_node(void *fdt);
int fdt_finish(void *fdt);

/* --- reading ------------------------------------------------------------- */
int fdt_check_full(const void *fdt, size_t bufsize);
int fdt_num_mem_rsv(const void *fdt);
int fdt_next_node(const void *fdt, int offset, int *depth);
const char *fdt_get_name(const void *fdt, int nodeoffset, int *lenp);
int fdt_first_property_offset(const void *fdt, int nodeoffset);
int fdt_next_property_offset(const void *fdt, int offset);
const void *fdt_getprop_by_offset(const void *fdt, int offset, const char **namep, int *lenp);
