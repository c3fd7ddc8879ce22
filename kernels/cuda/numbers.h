// The number formats, each as two functions over bits: to F32, and from F32 where it is a target. src/numbers.rs is the same in Rust,
// and docs/kernels.md says what is promised.
//
// Every conversion goes by way of F32. NaN never passes through the processor's own conversions, whose NaN differ between devices.
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
#endif

DEVICE bool is_nan(u32 bits) { return (bits & 0x7fffffff) > 0x7f800000; }

// The shared part of the 8-bit floats' two directions: from a magnitude with M bits of mantissa and this bias, exactly.
template <int M, int BIAS> DEVICE u32 widen(u32 magnitude) { return scaled(magnitude << (23 - M), POWER(127 - BIAS)); }

// To such a magnitude, to nearest even, subnormals too. Right up to the magnitude after the largest; the caller bounds it.
template <int M, int BIAS> DEVICE u32 narrow(u32 magnitude) {
    // Adding 2^(24 - M - BIAS) leaves the subnormal result in the lowest bits of the sum, rounded.
    const u32 ruler = POWER(24 - M - BIAS);
    const u32 subnormal = __float_as_uint(__uint_as_float(magnitude) + __uint_as_float(ruler)) - ruler;
    const u32 odd = magnitude >> (23 - M) & 1;
    const u32 normal = (magnitude - ((127u - BIAS) << 23) + ((1u << (22 - M)) - 1) + odd) >> (23 - M);
    return magnitude < POWER(1 - BIAS) ? subnormal : normal;
}

// What a format says of itself where nothing else is said.
struct Format {
    typedef u32 Raw;
    static constexpr int BYTES = 4;
    static constexpr bool HAS_NAN = true;
    static constexpr u32 MOST = 0x7f800000; // the largest magnitude that it has, infinity too, as F32
    DEVICE_MEMBER bool infinite(u32) { return false; }
};

struct F32 : Format {
    static constexpr bool HAS_INFINITY = true;
    static constexpr u32 LIMIT = 0x7f800000; // magnitudes from here on, as F32, have no finite neighbour in the format
    DEVICE_MEMBER u32 to_f32(u32 raw) { return raw; }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool) { return bits; }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7fffffff) == 0x7f800000; }
};

struct F64 : Format {
    typedef u64 Raw;
    static constexpr int BYTES = 8;
    DEVICE_MEMBER u32 to_f32(u64 raw) {
        const u32 high = (u32)(raw >> 32);
        const u32 nan = (high & 0x80000000) | 0x7fc00000 | ((u32)(raw >> 29) & 0x7fffff);
        return (raw & ~(1ull << 63)) > 0x7ffull << 52 ? nan : __float_as_uint(__double2float_rn(__longlong_as_double((i64)raw)));
    }
    DEVICE_MEMBER bool infinite(u64 raw) { return (raw & ~(1ull << 63)) == 0x7ffull << 52; }
};

struct F16 : Format {
    static constexpr int BYTES = 2;
    static constexpr bool HAS_INFINITY = true;
    static constexpr u32 LIMIT = 0x477ff000; // 65520
    DEVICE_MEMBER u32 to_f32(u32 raw) {
        const u32 nan = (raw & 0x8000) << 16 | 0x7fc00000 | (raw & 0x3ff) << 13;
        return (raw & 0x7fff) > 0x7c00 ? nan : f16_to_f32(raw);
    }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool) {
        const u32 nan = (bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x3ff);
        return is_nan(bits) ? nan : f32_to_f16(bits);
    }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7fff) == 0x7c00; }
};

struct BF16 : Format {
    static constexpr int BYTES = 2;
    static constexpr bool HAS_INFINITY = true;
    static constexpr u32 LIMIT = 0x7f7f8000;
    DEVICE_MEMBER u32 to_f32(u32 raw) { return raw << 16; }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool) {
        const u32 rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        return is_nan(bits) ? bits >> 16 | 0x40 : rounded;
    }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7fff) == 0x7f80; }
};

struct F8_E4M3 : Format {
    static constexpr int BYTES = 1;
    static constexpr bool HAS_INFINITY = false;
    static constexpr u32 MOST = 0x43e00000;
    static constexpr u32 LIMIT = 0x43e80001; // beyond 464, which is halfway from 448 to the NaN
    DEVICE_MEMBER u32 to_f32(u32 raw) {
        const u32 magnitude = (raw & 0x7f) == 0x7f ? 0x7ff00000 : widen<3, 7>(raw & 0x7f);
        return (raw & 0x80) << 24 | magnitude;
    }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool saturating) {
        const u32 magnitude = bits & 0x7fffffff;
        const u32 beyond = saturating && magnitude <= 0x7f800000 ? 0x7e : 0x7f;
        return (bits >> 24 & 0x80) | (magnitude >= LIMIT ? beyond : narrow<3, 7>(magnitude));
    }
};

struct F8_E5M2 : Format {
    static constexpr int BYTES = 1;
    static constexpr bool HAS_INFINITY = true;
    static constexpr u32 LIMIT = 0x47700000; // 61440, halfway from 57344 to infinity
    DEVICE_MEMBER u32 to_f32(u32 raw) {
        const u32 quiet = raw & 3 ? 0x400000 : 0;
        const u32 special = 0x7f800000 | quiet | (raw & 3) << 21;
        return (raw & 0x80) << 24 | ((raw & 0x7f) >= 0x7c ? special : widen<2, 15>(raw & 0x7f));
    }
    DEVICE_MEMBER u32 from_f32(u32 bits, bool saturating) {
        const u32 magnitude = bits & 0x7fffffff;
        const u32 beyond = magnitude > 0x7f800000 ? 0x7f : saturating ? 0x7b : 0x7c;
        return (bits >> 24 & 0x80) | (magnitude >= LIMIT ? beyond : narrow<2, 15>(magnitude));
    }
    DEVICE_MEMBER bool infinite(u32 raw) { return (raw & 0x7f) == 0x7c; }
};

// Finite, with one zero; NaN is where the negative zero would be.
template <int M, int BIAS> struct Fnuz : Format {
    static constexpr int BYTES = 1;
    static constexpr u32 MOST = POWER((1 << (7 - M)) - 1 - BIAS) | ((1u << M) - 1) << (23 - M);
    DEVICE_MEMBER u32 to_f32(u32 raw) {
        return raw == 0x80 ? 0x7fc00000 : (raw & 0x80) << 24 | widen<M, BIAS>(raw & 0x7f);
    }
};
typedef Fnuz<3, 8> F8_E4M3FNUZ;
typedef Fnuz<2, 16> F8_E5M2FNUZ;

struct F8_E8M0 : Format {
    static constexpr int BYTES = 1;
    static constexpr u32 MOST = POWER(127);
    DEVICE_MEMBER u32 to_f32(u32 raw) { return raw == 0xff ? 0x7fc00000 : raw == 0 ? 0x00400000 : raw << 23; }
};

struct BOOL : Format {
    static constexpr int BYTES = 1;
    static constexpr bool HAS_NAN = false;
    static constexpr u32 MOST = POWER(0);
    DEVICE_MEMBER u32 to_f32(u32 raw) { return raw != 0 ? 0x3f800000 : 0; }
};

template <class Integer, class Bits> struct Whole : Format {
    typedef Bits Raw;
    static constexpr int BYTES = sizeof(Integer);
    static constexpr bool HAS_NAN = false;
    static constexpr u32 MOST = POWER(8 * BYTES); // or less
    DEVICE_MEMBER u32 to_f32(Bits raw) { return __float_as_uint((float)(Integer)raw); }
};
typedef Whole<u8, u32> U8;
typedef Whole<signed char, u32> I8;
typedef Whole<u16, u32> U16;
typedef Whole<short, u32> I16;
typedef Whole<u32, u32> U32;
typedef Whole<int, u32> I32;
typedef Whole<u64, u64> U64;
typedef Whole<i64, u64> I64;
