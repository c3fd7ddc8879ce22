//! What conversions are tested on: every value of the types of one and two bytes, and a sample of the wider ones with every special among
//! them. `golden/make` makes the same in Python.

use tensorhold_kernels::Type;

/// A hash of `n` in 64 bits: the finalizer of SplitMix64.
fn hash(n: u64) -> u64 {
    let mut x = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Behind each high half: the value itself, and the halves of an interval of BF16, F16 and the 8-bit floats, with their neighbours.
const LOW_HALVES: [u32; 15] = [
    0, 1, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x2001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001,
    0xffff,
];

fn f32s() -> impl Iterator<Item = u32> {
    let all_high = (0..1 << 16).flat_map(|high| LOW_HALVES.map(|low| high << 16 | low));
    let any = (0..1 << 19).map(|n| (hash(n) >> 32) as u32);
    // Where the narrower formats have their values, their subnormals and their ends.
    let near_one = (0..1 << 19).map(|n| {
        let bits = hash(n);
        let exponent = 96 + (bits >> 32) % 48;
        (bits >> 63 << 31 | exponent << 23 | (bits & 0x7f_ffff)) as u32
    });
    all_high.chain(any).chain(near_one)
}

fn f64s() -> impl Iterator<Item = u64> {
    const HALF: u64 = 1 << 28; // of an interval of F32
    let specials = [0, 1, 0x7ff << 52, (0x7ff << 52) + 1, 0x7ff8 << 48, 0x7ff4_1234_5678_9abc, (1 << 63) - 1]
        .into_iter();
    let ends =
        [0x47ef_ffff_e000_0000, 0x47ef_ffff_f000_0000_u64, 0x380f_ffff_f000_0000, 0x3690_0000_0000_0000];
    let specials = specials.chain(ends.into_iter().flat_map(|end| [end - 1, end, end + 1]));
    let specials = specials.flat_map(|bits| [bits, bits | 1 << 63]);
    let beside_f32 =
        f32s().step_by(11).filter(|bits| (1..255).contains(&(bits >> 23 & 0xff))).flat_map(|bits| {
            let exponent = u64::from(bits >> 23 & 0xff) + 896;
            let bits = u64::from(bits >> 31) << 63 | exponent << 52 | u64::from(bits & 0x7f_ffff) << 29;
            [bits - 1, bits, bits + 1, bits + HALF - 1, bits + HALF, bits + HALF + 1]
        });
    let any = (0..1 << 18).map(hash);
    let near_one = (0..1 << 19).map(|n| {
        let bits = hash(n);
        let exponent = 860 + (bits >> 40) % 360;
        let mantissa = bits & ((1 << 52) - 1);
        let tie = mantissa >> 29 << 29 | (HALF - 1 + bits % 3);
        bits >> 63 << 63 | exponent << 52 | if n % 2 == 1 { tie } else { mantissa }
    });
    specials.chain(beside_f32).chain(any).chain(near_one)
}

/// Integers of this many bits, in the low bits; of a signed type as of an unsigned one.
fn integers(bits: u32, signed: bool) -> impl Iterator<Item = u64> {
    let mask = u64::MAX >> (64 - bits);
    let small = (0..70_000).flat_map(|n: u64| [n, n.wrapping_neg()]);
    // Powers of two, and halves of an interval of F32 behind them.
    let edges = (24..bits).flat_map(|power| {
        let (one, interval) = (1_u64 << power, 1_u64 << (power - 23));
        [one - 1, one, one + 1]
            .into_iter()
            .chain([1, 3].into_iter().flat_map(move |halves| {
                let tie = one + (halves * interval) / 2;
                [tie - 1, tie, tie + 1]
            }))
            .flat_map(|n| [n, n.wrapping_neg()])
    });
    let any = (0..1 << 18).map(move |n| {
        let shift = (n % u64::from(bits)) as u32;
        let value = hash(n) >> (64 - bits);
        if signed { ((value << (64 - bits)) as i64 >> (64 - bits) >> shift) as u64 } else { value >> shift }
    });
    small.chain(edges).chain(any).map(move |n| n & mask)
}

/// The inputs of a type, as bytes.
pub(crate) fn inputs(from: Type) -> Vec<u8> {
    match from {
        Type::F32 => f32s().flat_map(u32::to_le_bytes).collect(),
        Type::F64 => f64s().flat_map(u64::to_le_bytes).collect(),
        Type::U32 | Type::I32 => {
            integers(32, from == Type::I32).flat_map(|n| (n as u32).to_le_bytes()).collect()
        }
        Type::U64 | Type::I64 => integers(64, from == Type::I64).flat_map(u64::to_le_bytes).collect(),
        _ if from.bytes() == 1 => (0..=255).collect(),
        _ => (0..=u16::MAX).flat_map(u16::to_le_bytes).collect(),
    }
}
