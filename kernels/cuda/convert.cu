// convert_FROM_TO: elements of type FROM become elements of type TO, by the rules in numbers.h. Built once for each pair.
//
// Values out of range and NaN are counted where the task asks for it: a value that is not NaN counts as out of range where rounding would
// give more than the target's largest finite value, unless it is an infinity and stays one.
#include "numbers.h"
#include "move.h"

template <class FromType, class ToType> struct Conversion {
    typedef FromType From;
    typedef ToType To;
    static constexpr int WIDEST = From::BYTES > To::BYTES ? From::BYTES : To::BYTES;
    static constexpr int LANES = WIDEST == 1 ? 8 : 16 / WIDEST; // 16 bytes on a side, or little code where elements have one
    static constexpr bool CAN_EXCEED = From::MOST >= To::LIMIT, COUNTS = CAN_EXCEED || From::HAS_NAN;

    u64 *tally;
    bool saturating;
    u64 beyond, nan;

    DEVICE_METHOD Conversion(const Task &task) : tally(task.tally), saturating(task.flags & SATURATING), beyond(0), nan(0) {}

    DEVICE_METHOD bool exceeds(typename From::Raw raw, u32 bits) {
        const bool kept = From::infinite(raw) && To::HAS_INFINITY && !(To::BYTES == 1 && saturating);
        return (bits & 0x7fffffff) - To::LIMIT <= 0x7f800000 - To::LIMIT && !kept;
    }

    template <int IN, int OUT> DEVICE_METHOD Words<OUT> word(const Words<IN> &from) {
        u32 bits[LANES];
        Words<OUT> to = {};
        UNROLL
        for (int n = 0; n < LANES; n++) bits[n] = From::to_f32(lane<From>(from, n));
        UNROLL
        for (int n = 0; n < LANES; n++) put_lane<To>(to, n, To::from_f32(bits[n], saturating));
        if (COUNTS && tally != 0) {
            u32 exceeding = 0, nans = 0;
            UNROLL
            for (int n = 0; n < LANES; n++) {
                if (CAN_EXCEED) exceeding += exceeds(lane<From>(from, n), bits[n]);
                if (From::HAS_NAN) nans += is_nan(bits[n]);
            }
            beyond += exceeding;
            nan += nans;
        }
        return to;
    }

    DEVICE_METHOD u32 one(typename From::Raw raw) {
        const u32 bits = From::to_f32(raw);
        if (COUNTS && tally != 0) {
            beyond += CAN_EXCEED && exceeds(raw, bits);
            nan += From::HAS_NAN && is_nan(bits);
        }
        return To::from_f32(bits, saturating);
    }

    DEVICE_METHOD void finish() {
        if (beyond != 0) atomicAdd(&tally[0], beyond);
        if (nan != 0) atomicAdd(&tally[1], nan);
    }
};

#define NAME_(from, to) convert_##from##_##to
#define NAME(from, to) NAME_(from, to)

// As many bytes under way as bandwidth needs, in no more code than that: wide sources have few elements in a word.
KERNEL NAME(FROM, TO)(const Task task) { move_runs<Conversion<FROM, TO>, FROM::BYTES >= 4 ? 2 : 1>(task); }
