//! The CPU reference converts as torch does: digests of torch's results, made by `golden/make`.

#[path = "support/inputs.rs"]
mod inputs;

use inputs::inputs;
use sha2::{Digest, Sha256};
use tensorhold_kernels::{Conversion, Overflow, Type, pairs};

fn named(name: &str) -> Type {
    *Type::ALL.iter().find(|of| of.name() == name).unwrap()
}

/// Makes all NaN one, since torch gives different ones for one value.
fn one_nan(to: Type, bytes: &mut [u8]) {
    let (infinity, nan) = match to {
        Type::F16 => (0x7c00, 0x7e00_u16),
        Type::BF16 => (0x7f80, 0x7fc0),
        Type::F32 => {
            for bits in bytes.as_chunks_mut::<4>().0 {
                if f32::from_le_bytes(*bits).is_nan() {
                    *bits = 0x7fc0_0000_u32.to_le_bytes();
                }
            }
            return;
        }
        _ => return,
    };
    for bits in bytes.as_chunks_mut::<2>().0 {
        if u16::from_le_bytes(*bits) & 0x7fff > infinity {
            *bits = nan.to_le_bytes();
        }
    }
}

#[test]
fn every_pair_converts_as_torch() {
    let mut seen = Vec::new();
    for line in include_str!("../golden/torch.csv").lines().skip(1) {
        let row: Vec<&str> = line.split(',').collect();
        let (from, to) = (named(row[0]), named(row[1]));
        let overflow = if row[2] == "torch" { Overflow::Torch } else { Overflow::NonSaturating };
        let source = inputs(from);
        let elements = source.len() / from.bytes();
        assert_eq!(elements.to_string(), row[4], "{from}: other inputs than in golden/make");
        let mut target = vec![0; elements * to.bytes()];
        Conversion::new(from, to).unwrap().overflow(overflow).convert(&source, &mut target).unwrap();
        one_nan(to, &mut target);
        let digest: String = Sha256::digest(&target).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, row[5], "{from} to {to}, {overflow:?}");
        seen.push((from, to, overflow));
    }
    for (from, to) in pairs() {
        assert!(seen.contains(&(from, to, Overflow::Torch)), "{from} to {to} is not in torch.csv");
        let narrow = to.bytes() == 1;
        assert_eq!(seen.contains(&(from, to, Overflow::NonSaturating)), narrow, "{from} to {to}");
    }
}
