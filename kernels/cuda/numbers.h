// The number formats, each as two functions over bits: to F32, and from F32 where it is a target. src/numbers.rs is the same in Rust,
// and docs/kernels.md says what is promised.
//
// Every conversion goes by way of F32, but for the shorter ways that formats have to others, with the same results. A NaN whose bits
// matter never passes through the processor's own conversions, whose NaN differ between devices: to_f32 is told whether any NaN of the
// right sign will do.
//
// from_f32 gives an element in the highest bytes, and whatever below: so its sign is where it was, and elements are packed by bytes.
//
// Arithmetic is written for devices that do twice as much of it with F32 as with integers.
#pragma once
#include "words.h"

DEVICE u32 scaled(u32 bits, u32 factor) { return __float_as_uint(__uint_as_float(bits) * __uint_as_float(factor)); }

// 2 to the power n, as the bits of an F32.
#define POWER(n) ((127u + (n)) << 23)

#ifdef __CUDACC_RTC__
DEVICE u32 f16_to_f32(u32 raw) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)raw));
    return __float_as_uint(value);
}
DEVICE u32 f32_to_f16(u32 bits) {
    u16 raw;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(raw) : "f"(__uint_as_float(bits)));
    return raw;
}
// Two F16, each times the one of the same place.
DEVICE u32 f16s_times(u32 values, u32 factors) {
    u32 products;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(products) : "r"(values), "r"(factors));
    return products;
}
#endif

DEVICE bool is_nan(u32 bits) { return __uint_as_float(bits) != __uint_as_float(bits); }

// From a finite float of 8 bits, M of them mantissa, with this bias, exactly.
template <int M, int BIAS> DEVICE u32 widen(u32 raw) {
    // The sign fills the upper half of the exponent on its way, and all of that but the sign itself is cut off.
    const u32 bits = (u32)((int)(raw << 24) >> (1 + M)) & (0x80000000 | (0x7fu << (23 - M)));
    return scaled(bits, POWER(127 - BIAS));
}

// To such a float, to nearest even, subnormals too, and with the sign; in the highest byte. Magnitudes from `most` on become that, NaN becomes
// what `nan` does: values of the format, or what would be ones if its exponents went on.
template <int M, int BIAS> DEVICE u32 narrow(u32 bits, float most, float nan) {
    const float value = __uint_as_float(bits);
    const float is_number = __saturatef(fabsf(value) + 1.0f); // 1, or 0 for NaN
    const float magnitude = fminf(fabsf(value), fmaf(is_number, most - nan, nan));
    // Adding the power of two whose last bit is worth what the result's last is leaves the result's mantissa in the lowest bits, rounded, with the 1
    // that is not written, and carried where it is 2 by now: the result is its sum with the exponent less one.
    const u32 exponent = __float_as_uint(magnitude) & 0x7f800000;
    const u32 ruler = scaled(exponent > POWER(1 - BIAS) ? exponent : POWER(1 - BIAS), POWER(23 - M));
    const u32 sum = __float_as_uint(magnitude + __uint_as_float(ruler));
    // Both at once: the mantissa to bit 24, the exponent from bit 23 to the place before the mantissa.
    const u32 result = sum * ((1u << 24) + (2u << M)) - ((127u + 23 - M + 1 - BIAS) << (24 + M));
    return __float_as_uint(copysignf(__uint_as_float(result), value));
}

// What a format says of itself where nothing else is said.
struct Format {
    typedef u32 Raw;
    static constexpr int BYTES = 4;
    static constexpr bool HAS_NAN = true;
    static constexpr u32 MOST = 0x7f800000; // the largest magnitude that it has, infinity too, as F32
    static constexpr bool HOLDS_BYTES = false; // for targets: whether they have every value of every format of one byte
    static constexpr bool HAS_TO_F16 = false; // whether it has a shorter way there, to the highest bytes
    static constexpr bool HAS_FOUR_TO_E4M3 = false; // whether it has one for four elements at once
    DEVICE_MEMBER bool infinite(u32) { return false; }
};

struct F32 : Format {
    static constexpr bool HAS_INFINITY = true;
    static constexpr bool HOLDS_BYTES = true;
    static constexpr u32 LIMIT = 0x7f800000; // magnitudes from here on, as F32, have no finite neighbour in the format
    DEVICE_MEMBER u32 to_f32(u32 raw, bool) { return raw; }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool) { return bits; }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7fffffff) == 0x7f800000; }
};

// With another's sign: what a device converts has none of its own where it is NaN.
DEVICE u32 with_sign(u32 bits, u32 sign) { return (bits & 0x7fffffff) | (sign & 0x80000000); }

struct F64 : Format {
    typedef u64 Raw;
    static constexpr int BYTES = 8;
    DEVICE_MEMBER u32 to_f32(u64 raw, bool any_nan) {
        const u32 high = (u32)(raw >> 32);
        const u32 nan = (high & 0x80000000) | 0x7fc00000 | ((u32)(raw >> 29) & 0x7fffff);
        const u32 value = __float_as_uint(__double2float_rn(__longlong_as_double((i64)raw)));
        if (any_nan) return with_sign(value, high);
        return (raw & ~(1ull << 63)) > 0x7ffull << 52 ? nan : value;
    }
    DEVICE_MEMBER bool infinite(u64 raw) { return (raw & ~(1ull << 63)) == 0x7ffull << 52; }
};

struct F16 : Format {
    static constexpr int BYTES = 2;
    static constexpr bool HAS_INFINITY = true;
    static constexpr u32 LIMIT = 0x477ff000; // 65520
    DEVICE_MEMBER u32 quiet(u32 raw) { return (raw & 0x7fff) > 0x7c00 ? raw | 0x200 : raw; }
    DEVICE_MEMBER u32 to_f32(u32 raw, bool any_nan) {
        const u32 nan = (raw & 0x8000) << 16 | 0x7fc00000 | (raw & 0x3ff) << 13;
        if (any_nan) return with_sign(f16_to_f32(raw), raw << 16);
        return (raw & 0x7fff) > 0x7c00 ? nan : f16_to_f32(raw);
    }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool) {
        const u32 nan = (bits & 0x80000000) | 0x7e000000 | (bits << 3 & 0x3ff0000);
        return is_nan(bits) ? nan : f32_to_f16(bits) << 16;
    }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7fff) == 0x7c00; }
};

struct BF16 : Format {
    static constexpr int BYTES = 2;
    static constexpr bool HAS_INFINITY = true;
    static constexpr bool HOLDS_BYTES = true;
    static constexpr u32 LIMIT = 0x7f7f8000;
    DEVICE_MEMBER u32 to_f32(u32 raw, bool) { return raw << 16; }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool) {
        return is_nan(bits) ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7fff) == 0x7f80; }
};

struct F8_E4M3 : Format {
    static constexpr int BYTES = 1;
    static constexpr bool HAS_INFINITY = false;
    static constexpr u32 MOST = 0x43e00000;
    static constexpr u32 LIMIT = 0x43e80001; // beyond 464, which is halfway from 448 to the NaN
    DEVICE_MEMBER u32 to_f32(u32 raw, bool) {
        const u32 value = widen<3, 7>(raw);
        return fabsf(__uint_as_float(value)) >= 480 ? value | 0x7ff00000 : value; // NaN has the place of 480
    }
    static constexpr bool HAS_TO_F16 = true;
    DEVICE_MEMBER u32 to_f16(u32 raw) {
        const u32 value = widen<3, 7>(raw), half = f32_to_f16(value) << 16;
        return fabsf(__uint_as_float(value)) >= 480 ? half | 0x7f800000 : half;
    }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool saturating) {
        return narrow<3, 7>(bits, saturating ? 448 : 480, 480); // NaN has the place of 480
    }
};

struct F8_E5M2 : Format {
    static constexpr int BYTES = 1;
    static constexpr bool HAS_INFINITY = true;
    static constexpr u32 LIMIT = 0x47700000; // 61440, halfway from 57344 to infinity
    DEVICE_MEMBER u32 to_f32(u32 raw, bool any_nan) { return F16::to_f32(raw << 8, any_nan); } // the higher byte of an F16
    static constexpr bool HAS_TO_F16 = true;
    DEVICE_MEMBER u32 to_f16(u32 raw) { return F16::quiet(raw << 8) << 16; }
    static constexpr bool HAS_FOUR_TO_E4M3 = true;
    DEVICE_MEMBER u32 four_to_e4m3(u32 four, bool saturating) {
        const u32 most = saturating ? 0x7e : 0x7f;
        const u32 low = two_to_e4m3(__byte_perm(four, 0, 0x1404), most), high = two_to_e4m3(__byte_perm(four, 0, 0x3424), most);
        return __byte_perm(low, high, 0x7531);
    }
    // In and out in the higher bytes of halves of a word, where it is two F16.
    DEVICE_MEMBER u32 two_to_e4m3(u32 two, u32 most) {
        // Times 2^-15 the last place of an E4M3 that is subnormal is that of an F16 that is, and is rounded to. Times 2^-8 in all, exponents are E4M3's.
        const u32 value = f16s_times(f16s_times(two, 0x02000200), 0x58005800);
        // From 2 on, infinity and NaN too, it was more than 448. NaN has all of E4M3's bits here already, and keeps the last.
        const u32 beyond = (value & 0x40004000) >> 6;
        return (value << 1 & 0x7f007f00) | (two & 0x80008000) | beyond * most;
    }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool saturating) {
        return narrow<2, 15>(bits, saturating ? 57344 : 65536, 114688); // infinity has the place of 2^16, NaN that of 1.75 * 2^16
    }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7f) == 0x7c; }
};

// Finite, with one zero; NaN is where the negative zero would be.
template <int M, int BIAS> struct Fnuz : Format {
    static constexpr int BYTES = 1;
    static constexpr u32 MOST = POWER((1 << (7 - M)) - 1 - BIAS) | ((1u << M) - 1) << (23 - M);
    DEVICE_MEMBER u32 to_f32(u32 raw, bool) { return raw == 0x80 ? 0x7fc00000 : widen<M, BIAS>(raw); }
};
typedef Fnuz<3, 8> F8_E4M3FNUZ;
typedef Fnuz<2, 16> F8_E5M2FNUZ;

struct F8_E8M0 : Format {
    static constexpr int BYTES = 1;
    static constexpr u32 MOST = POWER(127);
    DEVICE_MEMBER u32 to_f32(u32 raw, bool) { return raw == 0xff ? 0x7fc00000 : raw == 0 ? 0x00400000 : raw << 23; }
};

struct BOOL : Format {
    static constexpr int BYTES = 1;
    static constexpr bool HAS_NAN = false;
    static constexpr u32 MOST = POWER(0);
    DEVICE_MEMBER u32 to_f32(u32 raw, bool) { return raw != 0 ? 0x3f800000 : 0; }
};

template <class Integer, class Bits> struct Whole : Format {
    typedef Bits Raw;
    static constexpr int BYTES = sizeof(Integer);
    static constexpr bool HAS_NAN = false;
    static constexpr u32 MOST = POWER(8 * BYTES); // or less
    DEVICE_MEMBER u32 to_f32(Bits raw, bool) { return __float_as_uint((float)(Integer)raw); }
};
typedef Whole<u8, u32> U8;
typedef Whole<signed char, u32> I8;
typedef Whole<u16, u32> U16;
typedef Whole<short, u32> I16;
typedef Whole<u32, u32> U32;
typedef Whole<int, u32> I32;
typedef Whole<u64, u64> U64;
typedef Whole<i64, u64> I64;
