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

// The elements, each in the highest bytes of its value.
template <class To, int BYTES> DEVICE Words<BYTES> packed(const u32 *values) {
    Words<BYTES> words;
    UNROLL
    for (int i = 0; i < (BYTES + 3) / 4; i++) {
        const u32 *from = values + i * (4 / To::BYTES);
        if constexpr (To::BYTES == 4) {
            words.at[i] = from[0];
        } else if constexpr (To::BYTES == 2) {
            words.at[i] = __byte_perm(from[0], from[1], 0x7632);
        } else if constexpr (BYTES == 2) {
            words.at[i] = __byte_perm(from[0], from[1], 0x73);
        } else {
            words.at[i] = __byte_perm(__byte_perm(from[0], from[1], 0x73), __byte_perm(from[2], from[3], 0x73), 0x5410);
        }
    }
    return words;
}

// A run, and where its words lie: the first of them begins up to `lead` elements before it.
template <class From, class To, int LANES> struct Run {
    const u8 *source;
    u8 *target;
    u32 lead, shift; // shift: from an aligned address to a word in the source, in bytes

    DEVICE_METHOD Run(const u8 *from, u8 *to) {
        lead = (u32)((u64)to % (LANES * To::BYTES)) / To::BYTES;
        source = from - lead * From::BYTES;
        target = to - lead * To::BYTES;
        shift = (u64)source % (LANES * From::BYTES);
    }
};

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
    // A word whose first element is below this lies whole within its run.
    const u64 ends_within = task.run < LANES ? 0 : task.run - LANES + 1;
    const Run<From, To, LANES> only(task.source, task.target);
    Change change(task);
    for (u64 base = (u64)blockIdx.x * (WORDS * BLOCK); base < total; base += stride) {
        const u8 *source[WORDS];
        u8 *target[WORDS];
        i64 first[WORDS]; // the word's first element within the run; negative where the word begins before it
        u32 shift[WORDS];
        bool whole[WORDS];
        Words<IN> low[WORDS], high[WORDS];
        UNROLL
        for (int w = 0; w < WORDS; w++) {
            u64 word = base + w * BLOCK + threadIdx.x;
            Run<From, To, LANES> run = only;
            if (rows > 1) {
                // From `total` on, words lie behind the last run, and have no elements.
                const u64 row = word < total ? divide(word, words_in_run) : rows - 1;
                word -= row * words_in_run;
                u64 source_from, target_from;
                find_run(task, row, source_from, target_from);
                run = Run<From, To, LANES>(task.source + source_from, task.target + target_from);
            }
            first[w] = (i64)(word * LANES) - run.lead;
            source[w] = run.source + word * IN;
            target[w] = run.target + word * OUT;
            shift[w] = run.shift;
            const u8 *aligned = source[w] - shift[w];
            whole[w] = (u64)first[w] < ends_within &&
                       (shift[w] == 0 || (aligned >= task.readable && aligned + 2 * IN <= task.readable_end));
            if (whole[w]) {
                low[w] = load<IN>(aligned);
                if (shift[w] != 0) high[w] = load<IN>(aligned + IN);
            }
        }
        UNROLL
        for (int w = 0; w < WORDS; w++) {
            if (whole[w]) {
                if (shift[w] != 0) low[w] = funnel<IN>(low[w], high[w], shift[w]);
                store<OUT>(target[w], change.template word<IN, OUT>(low[w]));
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
