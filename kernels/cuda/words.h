// Words of 2 to 16 bytes: loads from any alignment, stores to their own, and where a run lies.
#pragma once
#include "task.h"

#ifdef __CUDACC_RTC__
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER static __device__ __forceinline__
#define DEVICE_METHOD __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK)
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
template <class T> DEVICE void put(T *p, T value) { *p = value; }

// Adds to the two counters, once for a block: atomic additions to one place go one after the other. All threads of the block call it, once.
DEVICE void add_counts(u64 *tally, u64 first, u64 second) {
    __shared__ u64 of_warps[2][BLOCK / 32];
    UNROLL
    for (int distance = 16; distance > 0; distance /= 2) {
        first += __shfl_down_sync(0xffffffff, first, distance);
        second += __shfl_down_sync(0xffffffff, second, distance);
    }
    if (threadIdx.x % 32 == 0) of_warps[0][threadIdx.x / 32] = first, of_warps[1][threadIdx.x / 32] = second;
    __syncthreads();
    if (threadIdx.x < 2) {
        u64 sum = 0;
        UNROLL
        for (int warp = 0; warp < BLOCK / 32; warp++) sum += of_warps[threadIdx.x][warp];
        if (sum != 0) atomicAdd(&tally[threadIdx.x], sum);
    }
}
#endif // else tests/emulator has defined them, and what else is CUDA's

template <int BYTES> struct Words {
    u32 at[(BYTES + 3) / 4];
};

// p is aligned to BYTES.
template <int BYTES> DEVICE Words<BYTES> load(const u8 *p) {
    Words<BYTES> words;
    if constexpr (BYTES == 16) {
        const uint4 value = __ldg((const uint4 *)p);
        words.at[0] = value.x, words.at[1] = value.y, words.at[2] = value.z, words.at[3] = value.w;
    } else if constexpr (BYTES == 8) {
        const uint2 value = __ldg((const uint2 *)p);
        words.at[0] = value.x, words.at[1] = value.y;
    } else if constexpr (BYTES == 4) {
        words.at[0] = __ldg((const u32 *)p);
    } else if constexpr (BYTES == 2) {
        words.at[0] = __ldg((const u16 *)p);
    } else {
        words.at[0] = __ldg(p);
    }
    return words;
}

// p is aligned to BYTES.
template <int BYTES> DEVICE void store(u8 *p, const Words<BYTES> &words) {
    if constexpr (BYTES == 16) {
        put((uint4 *)p, make_uint4(words.at[0], words.at[1], words.at[2], words.at[3]));
    } else if constexpr (BYTES == 8) {
        put((uint2 *)p, make_uint2(words.at[0], words.at[1]));
    } else if constexpr (BYTES == 4) {
        put((u32 *)p, words.at[0]);
    } else if constexpr (BYTES == 2) {
        put((u16 *)p, (u16)words.at[0]);
    } else {
        put(p, (u8)words.at[0]);
    }
}

// The BYTES bytes that begin `shift` bytes into two words that lie side by side; shift is below BYTES.
template <int BYTES> DEVICE Words<BYTES> funnel(const Words<BYTES> &low, const Words<BYTES> &high, u32 shift) {
    constexpr int N = BYTES / 4;
    u32 both[2 * N];
    UNROLL
    for (int i = 0; i < N; i++) both[i] = low.at[i], both[N + i] = high.at[i];
    if constexpr (N == 4) {
        UNROLL
        for (int i = 0; i < 6; i++) both[i] = shift & 8 ? both[i + 2] : both[i];
    }
    if constexpr (N >= 2) {
        UNROLL
        for (int i = 0; i < N + 1; i++) both[i] = shift & 4 ? both[i + 1] : both[i];
    }
    Words<BYTES> words;
    UNROLL
    for (int i = 0; i < N; i++) words.at[i] = __funnelshift_r(both[i], both[i + 1], 8 * (shift & 3));
    return words;
}

// a / b, quick where both have 32 bits.
DEVICE u64 divide(u64 a, u64 b) { return (a | b) >> 32 ? a / b : (u32)a / (u32)b; }

DEVICE u64 runs(const Task &task) { return task.counts[0] * task.counts[1] * task.counts[2]; }

// Where run number `row` lies, as distances from the first.
DEVICE void find_run(const Task &task, u64 row, u64 &source, u64 &target) {
    const u64 outer = row < task.counts[2] ? 0 : divide(row, task.counts[2]);
    const u64 inner = row - outer * task.counts[2];
    source = inner * task.source_strides[2];
    target = inner * task.target_strides[2];
    if (outer != 0) {
        const u64 first = divide(outer, task.counts[1]);
        const u64 second = outer - first * task.counts[1];
        source += first * task.source_strides[0] + second * task.source_strides[1];
        target += first * task.target_strides[0] + second * task.target_strides[1];
    }
}
