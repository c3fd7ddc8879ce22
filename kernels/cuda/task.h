// What every kernel here is given, and what it promises.
//
// Launch.   One-dimensional grid of any size, blocks of BLOCK threads, no dynamic shared memory, one parameter: a Task by value.
//           Every kernel is a grid-stride loop, so the size of the grid changes speed alone. Indexes have 64 bits.
// Source.   Any alignment. Bytes outside readable .. readable_end are never read. Nothing may write them while the kernel runs:
//           they are read through the read-only cache.
// Target.   Aligned to an element of the target's type (convert), to nothing (gather, repack); quick where it is aligned to 16.
//           Only bytes that belong to a run are written. Runs do not overlap.
// Aliasing. The target overlaps neither the readable bytes nor the counters.
// Counters. tally[0] and tally[1] are added to atomically, once for a block, or tally is null. Several kernels may share them.
//
// src/launch.rs is the other side: it checks all of this, as far as it can be seen on the host, and fills the structure in.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define BLOCK 256

// A copy of runs of elements: run (i, j, k) begins at source + i * source_strides[0] + j * source_strides[1] + k * source_strides[2],
// and likewise in the target. Strides are in bytes.
struct Task {
    const u8 *readable;
    const u8 *readable_end;
    const u8 *source;
    u8 *target;
    u64 counts[3]; // how many runs, outermost level first
    u64 source_strides[3];
    u64 target_strides[3];
    u64 run;   // elements in a run: of the source's type (convert), bytes (gather, repack)
    u64 *tally; // values out of range, NaN; or null
    u64 flags;
};
static_assert(sizeof(Task) == 16 * sizeof(u64), "src/launch.rs has the same");

// Values beyond an 8-bit float's range become its largest finite value, infinities too.
#define SATURATING 1
