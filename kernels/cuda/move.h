// The loop that all kernels but gather_N are: runs are cut into words that are aligned in the target. A word that lies whole within its run
// is loaded from wherever it is in the source, converted, and stored at once; one at an edge goes element by element.
#pragma once
#include "words.h"

// The element at p, at any alignment, of a source that may not be read beyond it.
template <class From> DEVICE typename From::Raw element_at(const u8 *p) {
    typename From::Raw raw = 0;
    UNROLL
    for (int i = 0; i < From::BYTES; i++) raw |= (typename From::Raw)__ldg(p + i) << 8 * i;
    return raw;
}

template <class From, int BYTES> DEVICE typename From::Raw lane(const Words<BYTES> &words, int n) {
    if constexpr (From::BYTES == 8) {
        return (u64)words.at[2 * n + 1] << 32 | words.at[2 * n];
    } else if constexpr (From::BYTES == 4) {
        return words.at[n];
    } else if constexpr (From::BYTES == 2) {
        return words.at[n / 2] >> 16 * (n % 2) & 0xffff;
    } else {
        return words.at[n / 4] >> 8 * (n % 4) & 0xff;
    }
}

// Lanes are 0 until they are put.
template <class To, int BYTES> DEVICE void put_lane(Words<BYTES> &words, int n, u32 value) {
    constexpr int IN_FOUR = 4 / To::BYTES;
    words.at[n / IN_FOUR] |= value << 8 * To::BYTES % 32 * (n % IN_FOUR);
}

// Change is how LANES elements, a word, become others, and keeps count. WORDS are under way at once in a thread.
template <class Change, int WORDS> DEVICE void move_runs(const Task &task) {
    typedef typename Change::From From;
    typedef typename Change::To To;
    constexpr int LANES = Change::LANES, IN = LANES * From::BYTES, OUT = LANES * To::BYTES;
    const u64 rows = runs(task);
    // A run that begins within a word touches one more.
    const u64 words_in_run = (task.run + 2 * LANES - 2) / LANES;
    const u64 total = rows * words_in_run;
    const u64 stride = (u64)gridDim.x * (WORDS * BLOCK);
    Change change(task);
    for (u64 base = (u64)blockIdx.x * (WORDS * BLOCK); base < total; base += stride) {
        const u8 *source[WORDS];
        u8 *target[WORDS];
        i64 first[WORDS]; // the word's first element within the run; negative where the word begins before it
        bool whole[WORDS];
        Words<IN> low[WORDS], high[WORDS];
        UNROLL
        for (int w = 0; w < WORDS; w++) {
            u64 word = base + w * BLOCK + threadIdx.x;
            u64 source_from = 0, target_from = 0;
            const bool there = word < total;
            if (rows > 1 && there) {
                const u64 row = divide(word, words_in_run);
                word -= row * words_in_run;
                find_run(task, row, source_from, target_from);
            }
            const u64 lead = (u64)(task.target + target_from) % OUT / To::BYTES;
            first[w] = there ? (i64)(word * LANES) - (i64)lead : (i64)task.run;
            source[w] = task.source + source_from + first[w] * From::BYTES;
            target[w] = task.target + target_from + first[w] * To::BYTES;
            const u32 shift = (u64)source[w] % IN;
            const u8 *aligned = source[w] - shift;
            whole[w] = first[w] >= 0 && first[w] + LANES <= (i64)task.run &&
                       (shift == 0 || (aligned >= task.readable && aligned + 2 * IN <= task.readable_end));
            if (whole[w]) {
                low[w] = load<IN>(aligned);
                high[w] = low[w];
                if (shift != 0) high[w] = load<IN>(aligned + IN);
            }
        }
        UNROLL
        for (int w = 0; w < WORDS; w++) {
            if (whole[w]) {
                const Words<IN> from = funnel<IN>(low[w], high[w], (u64)source[w] % IN);
                store<OUT>(target[w], change.template word<IN, OUT>(from));
            } else {
                const int begin = first[w] < 0 ? (int)-first[w] : 0;
                const i64 left = (i64)task.run - first[w];
                const int end = left < LANES ? (int)left : LANES;
                ROLLED
                for (int n = begin; n < end; n++) {
                    Words<To::BYTES> one;
                    one.at[0] = change.one(element_at<From>(source[w] + n * From::BYTES));
                    store<To::BYTES>(target[w] + n * To::BYTES, one);
                }
            }
        }
    }
    change.finish();
}
