// The kernels' own source, compiled for the CPU: one thread after the other, every access checked for its bounds and alignment.
//
// Reads jobs from standard input and writes what each gives to standard output; tests/emulated.rs is the other side. Numbers have 64 bits.
//   job     length of the kernel's name, name; grid; Task; source's address, length, bytes; target's address, length, bytes
//   result  target's bytes; the two counters
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

struct uint4 {
    unsigned x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static struct {
    unsigned x;
} blockIdx, threadIdx, gridDim;

#define DEVICE static inline
#define DEVICE_MEMBER static inline
#define DEVICE_METHOD inline
#define KERNEL static inline void
#define UNROLL
#define ROLLED

static const unsigned char *readable, *readable_end, *writable, *writable_end;

static void check(const char *what, const void *p, size_t bytes, const unsigned char *begin, const unsigned char *end) {
    const unsigned char *from = (const unsigned char *)p;
    if (from < begin || from + bytes > end || (size_t)p % bytes != 0) {
        fprintf(stderr, "%s %zu bytes at %+td of %td\n", what, bytes, from - begin, end - begin);
        exit(1);
    }
}
template <class T> static T __ldg(const T *p) {
    check("read", p, sizeof(T), readable, readable_end);
    T value;
    memcpy(&value, p, sizeof(T));
    return value;
}
template <class T> static void put(T *p, T value) {
    check("write", p, sizeof(T), writable, writable_end);
    memcpy(p, &value, sizeof(T));
}
static unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31));
}
static unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long bytes = (unsigned long long)y << 32 | x;
    unsigned result = 0;
    for (int n = 0; n < 4; n++) result |= (unsigned)(bytes >> 8 * (selector >> 4 * n & 7) & 0xff) << 8 * n;
    return result;
}
static unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
static float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
#define fabsf __builtin_fabsf
#define copysignf __builtin_copysignf
#define fmaf __builtin_fmaf
// A number before any NaN, a signalling one too, which the C library's does otherwise.
static float fminf(float a, float b) { return a < b || b != b ? a : b; }
static float __saturatef(float value) { return value > 0 ? fminf(value, 1) : 0; }
static double __longlong_as_double(long long bits) {
    double value;
    memcpy(&value, &bits, 8);
    return value;
}
// The device gives one NaN, whatever NaN it is given.
#define DEVICES_NAN 0x7fffffffu
static float __double2float_rn(double value) { return value != value ? __uint_as_float(DEVICES_NAN) : (float)value; }
static void add_counts(unsigned long long *tally, unsigned long long first, unsigned long long second) {
    tally[0] += first, tally[1] += second;
}

// The device has instructions for these three.
static unsigned f16_to_f32(unsigned raw) {
    const unsigned magnitude = raw & 0x7fff;
    const float value = __uint_as_float(magnitude << 13) * __uint_as_float(239u << 23);
    if (magnitude > 0x7c00) return DEVICES_NAN;
    return (raw & 0x8000) << 16 | (magnitude == 0x7c00 ? 0x7f800000 : __float_as_uint(value));
}
static unsigned f32_to_f16(unsigned bits) {
    const unsigned magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x477ff000) return sign | 0x7c00;
    if (magnitude < 113u << 23) return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f));
    return sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
}
static unsigned f16s_times(unsigned values, unsigned factors) {
    unsigned products = 0;
    for (int at = 0; at < 32; at += 16) {
        // Exact in F32, and NaN has no sign.
        const float value = __uint_as_float(f16_to_f32(values >> at & 0xffff)), factor = __uint_as_float(f16_to_f32(factors >> at & 0xffff));
        products |= f32_to_f16(value != value ? DEVICES_NAN : __float_as_uint(value * factor)) << at;
    }
    return products;
}

#define FROM F32
#define TO BF16
#include "../../cuda/convert.cu"
#undef NAME
#undef NAME_
#define COPY_WIDTH 1
#include "../../cuda/gather.cu"

typedef void (*Function)(const Task &);
template <class From, class To> static Function conversion() {
    return [](const Task &task) { move_runs<Conversion<From, To>, From::BYTES >= 4 ? 2 : 1>(task); };
}
template <class From> static Function conversion(const char *to) {
    if (!strcmp(to, "F32")) return conversion<From, F32>();
    if (!strcmp(to, "F16")) return conversion<From, F16>();
    if (!strcmp(to, "BF16")) return conversion<From, BF16>();
    if (!strcmp(to, "F8_E4M3")) return conversion<From, F8_E4M3>();
    if (!strcmp(to, "F8_E5M2")) return conversion<From, F8_E5M2>();
    return 0;
}
static Function function(const char *name) {
    if (!strcmp(name, "repack")) return [](const Task &task) {
        Task one = task;
        one.counts[0] = one.counts[1] = one.counts[2] = 1;
        move_runs<Copy, 4>(one);
    };
    if (!strcmp(name, "gather")) return [](const Task &task) { move_runs<Copy, 2>(task); };
    if (!strcmp(name, "gather_1")) return [](const Task &task) { gather_words<1, 4>(task); };
    if (!strcmp(name, "gather_2")) return [](const Task &task) { gather_words<2, 4>(task); };
    if (!strcmp(name, "gather_4")) return [](const Task &task) { gather_words<4, 4>(task); };
    if (!strcmp(name, "gather_8")) return [](const Task &task) { gather_words<8, 4>(task); };
    if (!strcmp(name, "gather_16")) return [](const Task &task) { gather_words<16, 4>(task); };
#define FROM_TYPE(type) \
    if (!strncmp(name, "convert_" #type "_", sizeof("convert_" #type "_") - 1)) \
        if (Function found = conversion<type>(name + sizeof("convert_" #type "_") - 1)) return found;
    FROM_TYPE(F64) FROM_TYPE(F32) FROM_TYPE(F16) FROM_TYPE(BF16) FROM_TYPE(F8_E4M3) FROM_TYPE(F8_E5M2)
    FROM_TYPE(F8_E4M3FNUZ) FROM_TYPE(F8_E5M2FNUZ) FROM_TYPE(F8_E8M0) FROM_TYPE(BOOL)
    FROM_TYPE(U8) FROM_TYPE(I8) FROM_TYPE(U16) FROM_TYPE(I16) FROM_TYPE(U32) FROM_TYPE(I32) FROM_TYPE(U64) FROM_TYPE(I64)
    return 0;
}

static bool get(void *to, size_t bytes) { return bytes == 0 || fread(to, bytes, 1, stdin) == 1; }

// A buffer whose address ends as the device's would.
struct Buffer {
    std::vector<unsigned char> room;
    unsigned char *at;
    u64 address, bytes;
    bool read() {
        if (!get(&address, 8) || !get(&bytes, 8)) return false;
        room.resize(bytes + 512);
        at = &room[0] + 256 - (size_t)&room[0] % 256 + address % 256;
        return get(at, bytes);
    }
    u64 moved(u64 pointer) const { return pointer - address + (u64)at; }
};

int main() {
    for (u64 length; get(&length, 8);) {
        char name[64] = {};
        u64 grid;
        Task task;
        Buffer source, target;
        if (length >= sizeof name || !get(name, length) || !get(&grid, 8) || !get(&task, sizeof task)) return 2;
        if (!source.read() || !target.read()) return 2;
        const Function run = function(name);
        if (!run) {
            fprintf(stderr, "no kernel is called %s\n", name);
            return 2;
        }
        task.readable = (const u8 *)source.moved((u64)task.readable);
        task.readable_end = (const u8 *)source.moved((u64)task.readable_end);
        task.source = (const u8 *)source.moved((u64)task.source);
        task.target = (u8 *)target.moved((u64)task.target);
        u64 tally[2] = {};
        task.tally = task.tally ? tally : 0;
        readable = source.at, readable_end = source.at + source.bytes;
        writable = target.at, writable_end = target.at + target.bytes;
        gridDim.x = (unsigned)grid;
        for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)
            for (threadIdx.x = 0; threadIdx.x < BLOCK; threadIdx.x++) run(task);
        if (target.bytes != 0) fwrite(target.at, target.bytes, 1, stdout);
        fwrite(tally, sizeof tally, 1, stdout);
    }
    return 0;
}
