// A library with cuFile's functions over memory of the host, for tests on machines without it. What goes wrong is said through `fake_set`, what has
// happened is told by `fake_get`. Each copy of the library that is loaded is another.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

typedef struct { int error, cuda; } Status;
typedef struct { int kind; union { int fd; void *handle; } file; const void *operations; } Descriptor;
typedef struct {
    struct { unsigned major, minor; size_t poll, max_direct_io; unsigned storage, control; } nvfs;
    unsigned features, max_cache, per_buffer_cache, max_pinned, max_batch, batch_timeout;
} Properties;
typedef struct {
    int mode;
    union { struct { void *base; off_t file_offset, offset; size_t size; } batch; } u;
    void *file;
    int operation;
    void *cookie;
} Entry;
typedef struct { void *cookie; int status; size_t returned; } Event;

enum { MOST = 4096 };

// What can be set, and what is counted, by name.
static struct { const char *name; long value; } values[] = {
    {"version", 1150}, {"major", 0}, {"storage", 0}, {"max_direct_io", 16384}, {"max_batch", 128},
    {"open_error", 0}, {"hang", 0}, {"handle_error", 0}, {"buffer_error", 0}, {"deregister_error", 0},
    {"short", 0}, {"errno", 0}, {"read_error", 0}, {"faults", 0}, {"setup_error", 0}, {"submit_error", 0},
    {"status_error", 0}, {"pending", 0}, {"batch_short", 0}, {"batch_returns", 0},
    {"opens", 0}, {"handles", 0}, {"buffers", 0}, {"reads", 0}, {"batch_reads", 0}, {"batches", 0}, {"unregistered", 0},
    {"buffer_bytes", 0},
};
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static char log_path[4096];
static struct { char *base; size_t bytes; } buffers[MOST];

static long *value(const char *name) {
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (!strcmp(values[i].name, name)) return &values[i].value;
    fprintf(stderr, "no value %s\n", name);
    abort();
}

void fake_set(const char *name, long to) {
    pthread_mutex_lock(&lock);
    *value(name) = to;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

long fake_get(const char *name) {
    pthread_mutex_lock(&lock);
    long got = *value(name);
    pthread_mutex_unlock(&lock);
    return got;
}

void fake_log(const char *path) { snprintf(log_path, sizeof log_path, "%s", path); }

static Status status(const char *name) { return (Status){(int)fake_get(name), 0}; }

static void add(const char *name, long more) {
    pthread_mutex_lock(&lock);
    *value(name) += more;
    pthread_mutex_unlock(&lock);
}

Status cuFileGetVersion(int *version) {
    *version = (int)fake_get("version");
    return (Status){0, 0};
}

Status cuFileDriverOpen(void) {
    add("opens", 1);
    if (*log_path) {
        FILE *log = fopen(log_path, "a");
        if (log) fprintf(log, "WARN: the fake has something to say\n"), fclose(log);
    }
    pthread_mutex_lock(&lock);
    while (*value("hang")) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return status("open_error");
}

Status cuFileDriverGetProperties(Properties *to) {
    memset(to, 0, sizeof *to);
    to->nvfs.major = (unsigned)fake_get("major");
    to->nvfs.storage = (unsigned)fake_get("storage");
    to->nvfs.max_direct_io = (size_t)fake_get("max_direct_io");
    to->max_batch = (unsigned)fake_get("max_batch");
    return (Status){0, 0};
}

// A handle is the number of another open file of the same inode, which needs no aligned reads.
Status cuFileHandleRegister(void **handle, Descriptor *descriptor) {
    Status refused = status("handle_error");
    if (refused.error) return refused;
    if (descriptor->kind != 1 || descriptor->operations) return (Status){5022, 0};
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor->file.fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return (Status){5018, 0};
    *handle = (void *)(long)(fd + 1);
    add("handles", 1);
    return (Status){0, 0};
}

void cuFileHandleDeregister(void *handle) {
    close((int)(long)handle - 1);
    add("handles", -1);
}

Status cuFileBufRegister(const void *base, size_t bytes, int flags) {
    Status refused = status("buffer_error");
    if (refused.error) return refused;
    if (flags || !bytes || (size_t)base % 4096) return (Status){5022, 0};
    pthread_mutex_lock(&lock);
    int slot = -1;
    for (int i = 0; i < MOST; i++) {
        if (buffers[i].base == base) slot = MOST;
        if (!buffers[i].base && slot < 0) slot = i;
    }
    if (slot >= 0 && slot < MOST) {
        buffers[slot].base = (char *)base, buffers[slot].bytes = bytes;
        ++*value("buffers");
        *value("buffer_bytes") += (long)bytes;
    }
    pthread_mutex_unlock(&lock);
    return (Status){slot == MOST ? 5023 : 0, 0};
}

Status cuFileBufDeregister(const void *base) {
    Status refused = status("deregister_error");
    if (refused.error) return refused;
    int found = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST && !found; i++)
        if (buffers[i].base == base) buffers[i].base = NULL, found = 1, --*value("buffers");
    pthread_mutex_unlock(&lock);
    return (Status){found ? 0 : 5024, 0};
}

// A fault of the next reads, if there is one left.
static int faulty(void) {
    pthread_mutex_lock(&lock);
    long *left = value("faults");
    int now = *left != 0;
    if (*left > 0) --*left;
    pthread_mutex_unlock(&lock);
    return now;
}

static ssize_t get(void *handle, void *base, size_t size, off_t file_offset, off_t offset) {
    int registered = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST; i++)
        if (buffers[i].base == base && (size_t)offset + size <= buffers[i].bytes) registered = 1;
    if (!registered) ++*value("unregistered");
    pthread_mutex_unlock(&lock);
    return pread((int)(long)handle - 1, (char *)base + offset, size, file_offset);
}

ssize_t cuFileRead(void *handle, void *base, size_t size, off_t file_offset, off_t offset) {
    add("reads", 1);
    if (faulty()) {
        if (fake_get("read_error")) return -fake_get("read_error");
        if (fake_get("errno")) {
            errno = (int)fake_get("errno");
            return -1;
        }
    }
    size_t most = (size_t)fake_get("short");
    return get(handle, base, most && size > most ? most : size, file_offset, offset);
}

#ifndef WITHOUT_BATCHES
// A batch performs what was submitted last when it is asked how it stands. What was in flight then is never told of, as of the real one in
// compatibility mode.
typedef struct { unsigned most, waiting; Entry *entries[256]; } Batch;

Status cuFileBatchIOSetUp(void **batch, unsigned most) {
    Status refused = status("setup_error");
    if (refused.error) return refused;
    if (most == 0 || most > fake_get("max_batch")) return (Status){5022, 0};
    *batch = calloc(1, sizeof(Batch));
    ((Batch *)*batch)->most = most;
    add("batches", 1);
    return (Status){0, 0};
}

Status cuFileBatchIOSubmit(void *raw, unsigned count, Entry *entries, unsigned flags) {
    Batch *batch = raw;
    Status refused = status("submit_error");
    if (refused.error) return refused;
    if (batch->waiting + count > batch->most || flags) return (Status){5037, 0};
    batch->waiting = 0;
    for (unsigned i = 0; i < count; i++) {
        if (entries[i].mode != 1 || entries[i].operation != 0) return (Status){5022, 0};
        batch->entries[batch->waiting++] = &entries[i];
    }
    return (Status){0, 0};
}

Status cuFileBatchIOGetStatus(void *raw, unsigned least, unsigned *count, Event *events, struct timespec *time) {
    Batch *batch = raw;
    Status refused = status("status_error");
    if (refused.error) return refused;
    if (time || *count < least) return (Status){5022, 0};
    if (batch->waiting && fake_get("pending")) {
        add("pending", -1);
        *events = (Event){batch->entries[batch->waiting - 1]->cookie, 2, 0};
        *count = 1;
        return (Status){0, 0};
    }
    unsigned told = 0;
    while (batch->waiting && told < *count && told < 2) {
        Entry *entry = batch->entries[--batch->waiting];
        size_t size = entry->u.batch.size, most = (size_t)fake_get("batch_short");
        add("batch_reads", 1);
        ssize_t got = get(entry->file, entry->u.batch.base, most && size > most ? most : size, entry->u.batch.file_offset,
                          entry->u.batch.offset);
        long returns = fake_get("batch_returns");
        if (returns && faulty())
            events[told++] = (Event){entry->cookie, 0x40, (size_t)returns};
        else
            events[told++] = (Event){entry->cookie, 0x10, (size_t)got};
    }
    *count = told;
    return (Status){0, 0};
}

void cuFileBatchIODestroy(void *raw) {
    free(raw);
    add("batches", -1);
}
#endif
