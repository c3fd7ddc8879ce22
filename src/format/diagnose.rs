//! Saying what is wrong with a header that does not validate: which tensor, what was got, what was expected.
//!
//! Runs only when the parser has refused a header, whose own message rarely says so much.

use safetensors::Dtype;
use serde_json::{Map, Value};

use super::problem::Problem;

/// The key that is no tensor's name.
pub(super) const METADATA: &str = "__metadata__";

/// The first thing wrong with a header that is a JSON object; `None` if nothing is found.
pub(super) fn diagnose(text: &str) -> Option<Problem> {
    let header: Map<String, Value> = serde_json::from_str(text).ok()?;
    let mut claims = Vec::new();
    for (name, value) in &header {
        if name == METADATA {
            match value.as_object().map(|map| map.iter().find(|(_, value)| !value.is_string())) {
                Some(None) => {}
                Some(Some((key, value))) => {
                    return Some(Problem::Metadata { got: format!("{value} under {key:?}") });
                }
                None => return Some(Problem::Metadata { got: value.to_string() }),
            }
            continue;
        }
        match Claim::read(value) {
            Ok(claim) => claims.push((name, claim)),
            Err(problem) => return Some(Problem::Tensor { tensor: name.clone(), problem }),
        }
    }
    claims.sort_by_key(|(_, claim)| (claim.start, claim.end));
    let mut end = 0;
    for (name, claim) in claims {
        if let Err(problem) = claim.check(end) {
            return Some(Problem::Tensor { tensor: name.clone(), problem });
        }
        end = claim.end;
    }
    None
}

/// What a header says of a tensor.
struct Claim {
    dtype: Dtype,
    shape: Vec<u64>,
    start: u64,
    end: u64,
}

impl Claim {
    fn read(value: &Value) -> Result<Self, String> {
        let field = |name: &str| value.get(name).ok_or_else(|| format!("it has no {name:?}"));
        let (dtype, shape, offsets) = (field("dtype")?, field("shape")?, field("data_offsets")?);
        let numbers = |name: &str, value: &Value| {
            let numbers =
                value.as_array().map(|list| list.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>());
            let expected = "a list of whole numbers from 0 to 2^64-1";
            numbers.flatten().ok_or_else(|| format!("its {name:?} is {value}, expected {expected}"))
        };
        let shape = numbers("shape", shape)?;
        let (start, end) = match numbers("data_offsets", offsets)?[..] {
            [start, end] => (start, end),
            _ => return Err(format!("its \"data_offsets\" is {offsets}, expected two numbers")),
        };
        let dtype = serde_json::from_value(dtype.clone()).map_err(|_| format!("unknown dtype {dtype}"))?;
        Ok(Self { dtype, shape, start, end })
    }

    /// Checks the tensor, given where the one before it ends.
    fn check(&self, previous_end: u64) -> Result<(), String> {
        let Self { dtype, shape, start, end } = self;
        if end < start {
            return Err(format!("its offsets {start}..{end} run backwards"));
        }
        if *start < previous_end {
            return Err(format!("its offset {start} overlaps the tensor before it, expected {previous_end}"));
        }
        if *start > previous_end {
            return Err(format!("its offset {start} leaves a hole, expected {previous_end}"));
        }
        let elements = shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent));
        let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize() as u64));
        let Some(bits) = bits else {
            return Err(format!("the size of shape {shape:?} of {dtype:?} overflows 64 bits"));
        };
        if !bits.is_multiple_of(8) {
            return Err(format!("shape {shape:?} of {dtype:?} is {bits} bits, expected whole bytes"));
        }
        if end - start != bits / 8 {
            let got = end - start;
            return Err(format!(
                "its offsets span {got} bytes, expected {} by shape {shape:?} of {dtype:?}",
                bits / 8
            ));
        }
        Ok(())
    }
}
