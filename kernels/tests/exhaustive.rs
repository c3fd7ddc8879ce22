//! The reference against others that are written differently: the `half` crate, and the 8-bit floats by the definitions of their specifications,
//! as a search for the nearest of all their values.

#[path = "support/inputs.rs"]
mod inputs;

use half::{bf16, f16};
use inputs::inputs;
use tensorhold_kernels::{Conversion, Counts, Overflow, Type, convert, is_supported, pairs};

fn f32_of(from: Type, source: &[u8]) -> Vec<f32> {
    let mut target = source.to_vec();
    if from != Type::F32 {
        target = converted(&Conversion::new(from, Type::F32).unwrap(), source);
    }
    target.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn converted(conversion: &Conversion, source: &[u8]) -> Vec<u8> {
    let mut target = vec![0; source.len() / conversion.from().bytes() * conversion.to().bytes()];
    conversion.convert(source, &mut target).unwrap();
    target
}

#[test]
fn floats_round_as_the_half_crate_rounds_them_nan_too() {
    let source = inputs(Type::F32);
    let to = |to| converted(&Conversion::new(Type::F32, to).unwrap(), &source);
    let (halves, brains) = (to(Type::F16), to(Type::BF16));
    let results = halves.as_chunks().0.iter().zip(brains.as_chunks().0);
    for (bytes, (half, brain)) in source.as_chunks().0.iter().zip(results) {
        let value = f32::from_le_bytes(*bytes);
        assert_eq!(u16::from_le_bytes(*half), f16::from_f32_const(value).to_bits(), "{:#x}", value.to_bits());
        assert_eq!(
            u16::from_le_bytes(*brain),
            bf16::from_f32_const(value).to_bits(),
            "{:#x}",
            value.to_bits()
        );
    }
}

#[test]
fn halves_widen_as_the_half_crate_widens_them() {
    let all = inputs(Type::F16);
    for (bits, (half, brain)) in
        (0..=u16::MAX).zip(f32_of(Type::F16, &all).into_iter().zip(f32_of(Type::BF16, &all)))
    {
        assert_eq!(half.to_bits(), f16::from_bits(bits).to_f32_const().to_bits(), "{bits:#x}");
        // The same bits, where the half crate makes NaN quiet.
        assert_eq!(brain.to_bits(), u32::from(bits) << 16);
    }
}

#[test]
fn wide_types_round_to_f32_as_the_processor_rounds_them() {
    macro_rules! check {
        ($($from:ident as $number:ty;)*) => {$(
            let source = inputs(Type::$from);
            let expected = source.as_chunks().0.iter().map(|bytes| <$number>::from_le_bytes(*bytes) as f32);
            for (n, (got, expected)) in f32_of(Type::$from, &source).into_iter().zip(expected).enumerate() {
                assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()), "{}: {n}", Type::$from);
            }
        )*};
    }
    check! {
        F64 as f64;
        U8 as u8;
        I8 as i8;
        U16 as u16;
        I16 as i16;
        U32 as u32;
        I32 as i32;
        U64 as u64;
        I64 as i64;
    }
    assert!(f32_of(Type::BOOL, &inputs(Type::BOOL)).iter().skip(1).all(|&value| value == 1.0));
}

/// An 8-bit float's value by the definition, from its sign, exponent and mantissa; `None` for what is no number.
fn value(of: Type, byte: u8) -> Option<f64> {
    let (mantissa_bits, bias, fnuz) = match of {
        Type::F8_E4M3 => (3, 7, false),
        Type::F8_E5M2 => (2, 15, false),
        Type::F8_E4M3FNUZ => (3, 8, true),
        Type::F8_E5M2FNUZ => (2, 16, true),
        Type::F8_E8M0 => return (byte != 0xff).then(|| 2_f64.powi(i32::from(byte) - 127)),
        _ => unreachable!(),
    };
    let special = match of {
        Type::F8_E4M3 => byte & 0x7f == 0x7f,
        Type::F8_E5M2 => byte & 0x7f > 0x7c,
        _ => byte == 0x80,
    };
    let (exponent, mantissa) =
        (i32::from(byte & 0x7f) >> mantissa_bits, f64::from(byte & ((1 << mantissa_bits) - 1)));
    let fraction = mantissa / f64::from(1 << mantissa_bits);
    let magnitude = if exponent == 0 {
        fraction * 2_f64.powi(1 - bias)
    } else if !fnuz && of == Type::F8_E5M2 && exponent == 31 {
        f64::INFINITY
    } else {
        (1.0 + fraction) * 2_f64.powi(exponent - bias)
    };
    (!special).then_some(if byte & 0x80 == 0 { magnitude } else { -magnitude })
}

#[test]
fn all_values_of_the_8_bit_floats_are_those_of_the_specifications() {
    let all: Vec<u8> = (0..=255).collect();
    for of in [Type::F8_E4M3, Type::F8_E5M2, Type::F8_E4M3FNUZ, Type::F8_E5M2FNUZ, Type::F8_E8M0] {
        for (byte, got) in (0..=255).zip(f32_of(of, &all)) {
            match value(of, byte) {
                Some(expected) => assert_eq!(f64::from(got).to_bits(), expected.to_bits(), "{of} {byte:#x}"),
                None => assert!(got.is_nan(), "{of} {byte:#x} is {got}"),
            }
        }
    }
}

/// The byte that a value rounds to, and whether it is out of range: a search among the finite magnitudes and the one that would come next.
fn nearest(to: Type, overflow: Overflow, value: f32, finite: &[f64]) -> (u8, bool) {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return (sign | 0x7f, false);
    }
    let magnitude = f64::from(value.abs());
    let most = finite.len() - 1;
    let next = finite[most] + (finite[most] - finite[most - 1]);
    let above = finite.partition_point(|&of| of < magnitude);
    let index = if above == finite.len() {
        let halfway = f64::midpoint(finite[most], next);
        // Of two that are as near, the even one.
        if magnitude < halfway || (magnitude == halfway && most.is_multiple_of(2)) { most } else { most + 1 }
    } else if above == 0 {
        0
    } else {
        let halfway = f64::midpoint(finite[above - 1], finite[above]);
        let down = magnitude < halfway || (magnitude == halfway && (above - 1).is_multiple_of(2));
        above - usize::from(down)
    };
    if index <= most {
        return (sign | index as u8, false);
    }
    let saturating = match overflow {
        Overflow::Torch => to == Type::F8_E4M3,
        overflow => overflow == Overflow::Saturating,
    };
    let kept = value.is_infinite() && to == Type::F8_E5M2 && !saturating;
    // The code behind the largest finite one is E4M3's NaN, and E5M2's infinity.
    (sign | if saturating { most as u8 } else { most as u8 + 1 }, !kept)
}

#[test]
fn narrowing_finds_the_nearest_8_bit_float_and_counts() {
    for (to, most) in [(Type::F8_E4M3, 0x7e), (Type::F8_E5M2, 0x7b)] {
        let finite: Vec<f64> = (0..=most).map(|byte| value(to, byte).unwrap()).collect();
        for overflow in [Overflow::Torch, Overflow::Saturating, Overflow::NonSaturating] {
            for from in [Type::F32, Type::F16, Type::BF16, Type::F8_E4M3FNUZ, Type::F8_E8M0, Type::I16] {
                let source = inputs(from);
                let conversion = Conversion::new(from, to).unwrap().overflow(overflow);
                let mut target = vec![0; source.len() / from.bytes()];
                let counts = conversion.convert_counted(&source, &mut target).unwrap();
                let mut expected = Counts::default();
                for (value, byte) in f32_of(from, &source).into_iter().zip(target) {
                    let (wanted, beyond) = nearest(to, overflow, value, &finite);
                    assert_eq!(byte, wanted, "{value:e} to {to}, {overflow:?}");
                    expected.nan += u64::from(value.is_nan());
                    expected.out_of_range += u64::from(beyond);
                }
                assert_eq!(counts, expected, "{from} to {to}, {overflow:?}");
            }
        }
    }
}

#[test]
fn what_becomes_infinite_is_counted_and_infinities_are_not() {
    let counts = |from: Type, to: Type, source: &[u8]| {
        let mut target = vec![0; source.len() / from.bytes() * to.bytes()];
        convert(from, to, source, &mut target).unwrap()
    };
    let f32s = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let f64s = |values: &[f64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let expected = |out_of_range, nan| Counts { out_of_range, nan };
    let values = f32s(&[65519.99, 65520.0, -1e30, f32::INFINITY, f32::MAX, f32::NAN, 0.0]);
    assert_eq!(counts(Type::F32, Type::F16, &values), expected(3, 1));
    assert_eq!(counts(Type::F32, Type::BF16, &values), expected(1, 1));
    let values = f64s(&[1e39, f64::NEG_INFINITY, f64::MAX, f64::NAN, 3.402_823_5e38]);
    assert_eq!(counts(Type::F64, Type::F32, &values), expected(2, 1));
    // 1e39 is finite, and infinite as an F32.
    assert_eq!(counts(Type::F64, Type::F8_E5M2, &values), expected(3, 1));
    assert_eq!(counts(Type::F64, Type::F8_E4M3, &values), expected(4, 1));
    assert_eq!(counts(Type::U64, Type::F16, &u64::MAX.to_le_bytes()), expected(1, 0));
    assert_eq!(counts(Type::F8_E8M0, Type::F16, &[142, 143, 255]), expected(1, 1));
}

#[test]
fn lengths_from_none_to_many_convert_alike() {
    for (from, to) in pairs() {
        let source: Vec<u8> = inputs(from).into_iter().take(700 * from.bytes()).collect();
        let conversion = Conversion::new(from, to).unwrap();
        let whole = converted(&conversion, &source);
        for elements in [0, 1, 2, 3, 7, 15, 16, 17, 255, 256, 257]
            .into_iter()
            .filter(|n| n * from.bytes() <= source.len())
        {
            let part = converted(&conversion, &source[..elements * from.bytes()]);
            assert!(part == whole[..elements * to.bytes()], "{from} to {to}, {elements}");
        }
    }
}

#[test]
fn every_type_converts_to_the_floats_and_none_to_itself() {
    let targets = [Type::F32, Type::F16, Type::BF16, Type::F8_E4M3, Type::F8_E5M2];
    for &from in Type::ALL {
        for &to in Type::ALL {
            assert_eq!(is_supported(from, to), from != to && targets.contains(&to), "{from} to {to}");
        }
    }
    assert_eq!(pairs().count(), 85);
}
