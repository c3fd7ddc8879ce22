// Copies: runs of bytes out of a tensor (gather), and bytes from any alignment (repack).
//
// gather    Any runs: words of 16 bytes, aligned in the target, from any alignment. Quick where runs are long.
// gather_N  Runs whose lengths, and distances and addresses in source and target, are all multiples of N bytes, in elements of N bytes. Quick
//           where runs are short, or N is 16. task.run is in bytes here too.
// repack    One run: counts and strides are not looked at.
#include "move.h"

struct Byte {
    typedef u32 Raw;
    static constexpr int BYTES = 1;
};

struct Copy {
    typedef Byte From;
    typedef Byte To;
    static constexpr int LANES = 16;
    DEVICE_METHOD Copy(const Task &) {}
    template <int IN, int OUT> DEVICE_METHOD Words<OUT> word(const Words<IN> &from) { return from; }
    DEVICE_METHOD u32 one(u32 raw) { return raw; }
    DEVICE_METHOD void finish() {}
};

template <int WIDTH, int WORDS> DEVICE void gather_words(const Task &task) {
    const u64 rows = runs(task);
    const u64 words_in_run = task.run / WIDTH;
    const u64 total = rows * words_in_run;
    const u64 stride = (u64)gridDim.x * (WORDS * BLOCK);
    for (u64 base = (u64)blockIdx.x * (WORDS * BLOCK); base < total; base += stride) {
        u8 *target[WORDS];
        Words<WIDTH> words[WORDS];
        UNROLL
        for (int w = 0; w < WORDS; w++) {
            const u64 word = base + w * BLOCK + threadIdx.x;
            target[w] = 0;
            if (word < total) {
                u64 source_from = 0, target_from = 0, row = 0;
                if (rows > 1) {
                    row = divide(word, words_in_run);
                    find_run(task, row, source_from, target_from);
                }
                const u64 within = (word - row * words_in_run) * WIDTH;
                target[w] = task.target + target_from + within;
                words[w] = load<WIDTH>(task.source + source_from + within);
            }
        }
        UNROLL
        for (int w = 0; w < WORDS; w++) {
            if (target[w] != 0) store<WIDTH>(target[w], words[w]);
        }
    }
}

#if defined(REPACK)
KERNEL repack(const Task task) {
    Task one = task;
    one.counts[0] = one.counts[1] = one.counts[2] = 1;
    move_runs<Copy, 4>(one);
}
#elif defined(COPY_WIDTH)
#define NAME_(bytes) gather_##bytes
#define NAME(bytes) NAME_(bytes)
KERNEL NAME(COPY_WIDTH)(const Task task) { gather_words<COPY_WIDTH, 4>(task); }
#else
KERNEL gather(const Task task) { move_runs<Copy, 2>(task); }
#endif
