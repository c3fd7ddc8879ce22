// convert_FROM_TO: elements of type FROM become elements of type TO, by the rules in numbers.h. Built once for each pair.
//
// Values out of range and NaN are counted where the task asks for it: a value that is not NaN counts as out of range where rounding would
// give more than the target's largest finite value, unless it is an infinity and stays one.
#include "numbers.h"
#include "move.h"

template <class A, class B> constexpr bool SAME = false;
template <class A> constexpr bool SAME<A, A> = true;

template <class FromType, class ToType> struct Conversion {
    typedef FromType From;
    typedef ToType To;
    static constexpr int WIDEST = From::BYTES > To::BYTES ? From::BYTES : To::BYTES;
    static constexpr int LANES = 16 / WIDEST; // 16 bytes on the wider side
    static constexpr bool CAN_EXCEED = From::MOST >= To::LIMIT, COUNTS = CAN_EXCEED || From::HAS_NAN;
    static constexpr bool BY_FOUR = From::HAS_FOUR_TO_E4M3 && SAME<To, F8_E4M3>; // elements

    u64 *tally;
    bool saturating;
    u64 beyond, nan;

    DEVICE_METHOD Conversion(const Task &task) : tally(task.tally), saturating(task.flags & SATURATING), beyond(0), nan(0) {}

    // A target of one byte has one NaN.
    DEVICE_METHOD u32 to_f32(typename From::Raw raw) { return From::to_f32(raw, To::BYTES == 1); }

    // In the highest bytes.
    DEVICE_METHOD u32 value(typename From::Raw raw) {
        if constexpr (From::BYTES == 1 && To::HOLDS_BYTES) {
            return to_f32(raw);
        } else if constexpr (From::HAS_TO_F16 && SAME<To, F16>) {
            return From::to_f16(raw);
        } else {
            return To::from_f32(to_f32(raw), saturating);
        }
    }

    DEVICE_METHOD bool exceeds(typename From::Raw raw) {
        const bool kept = From::infinite(raw) && To::HAS_INFINITY && !(To::BYTES == 1 && saturating);
        return (to_f32(raw) & 0x7fffffff) - To::LIMIT <= 0x7f800000 - To::LIMIT && !kept;
    }

    template <int IN, int OUT> DEVICE_METHOD Words<OUT> word(const Words<IN> &from) {
        u32 values[LANES];
        if constexpr (!BY_FOUR) {
            UNROLL
            for (int n = 0; n < LANES; n++) values[n] = value(lane<From>(from, n));
        }
        if (COUNTS && tally != 0) {
            u32 exceeding = 0, nans = 0;
            UNROLL
            for (int n = 0; n < LANES; n++) {
                const typename From::Raw raw = lane<From>(from, n);
                if (CAN_EXCEED) exceeding += exceeds(raw);
                if (From::HAS_NAN) nans += is_nan(to_f32(raw));
            }
            beyond += exceeding;
            nan += nans;
        }
        if constexpr (BY_FOUR) {
            Words<OUT> to;
            UNROLL
            for (int i = 0; i < OUT / 4; i++) to.at[i] = From::four_to_e4m3(from.at[i], saturating);
            return to;
        } else {
            return packed<To, OUT>(values);
        }
    }

    DEVICE_METHOD u32 one(typename From::Raw raw) {
        if (COUNTS && tally != 0) {
            beyond += CAN_EXCEED && exceeds(raw);
            nan += From::HAS_NAN && is_nan(to_f32(raw));
        }
        return value(raw) >> (32 - 8 * To::BYTES);
    }

    DEVICE_METHOD void finish() {
        if (COUNTS && tally != 0) add_counts(tally, beyond, nan);
    }
};

#define NAME_(from, to) convert_##from##_##to
#define NAME(from, to) NAME_(from, to)

// As many bytes under way as bandwidth needs, in no more code than that: wide sources have few elements in a word.
KERNEL NAME(FROM, TO)(const Task task) { move_runs<Conversion<FROM, TO>, FROM::BYTES >= 4 ? 2 : 1>(task); }
