//! The checkpoints that loaders are compared on.

use safetensors::Dtype;

use super::support::shapes::{Shard, Spec, llama};

/// The shards of a shape, with sizes times `scale`; `None` when there is no such shape.
pub(crate) fn shards(shape: &str, scale: f64) -> Option<Vec<Shard>> {
    let scaled = |bytes: f64| (bytes * scale) as u64;
    Some(match shape {
        "llama" => llama(scaled(16e9)),
        "small" => join(llama(scaled(90e6)), 1),
        "one-shard" => join(llama(scaled(5e9)), 1),
        "many-shards" => join(llama(scaled(6.4e9)), 64),
        "fp8-experts" => join(fp8_experts(scaled(5e9)), 4),
        "f32-embeddings" => join(f32_embeddings(scaled(5e9)), 2),
        "many-small" => join(many_small(scale), 32),
        "many-small-one-shard" => join(many_small(scale), 1),
        "one-tensor" => {
            let bytes: u64 = many_small(scale).iter().map(Shard::bytes).sum();
            join(one(vec![tensor("all".into(), Dtype::U8, &[bytes as usize])]), 1)
        }
        _ => return None,
    })
}

fn tensor(name: String, dtype: Dtype, shape: &[usize]) -> Spec {
    Spec { name, dtype, shape: shape.to_vec() }
}

fn one(tensors: Vec<Spec>) -> Vec<Shard> {
    vec![Shard { name: String::new(), tensors }]
}

/// The same tensors in so many shards of about the same number of them, or of bytes where tensors are few.
fn join(shards: Vec<Shard>, count: usize) -> Vec<Shard> {
    let tensors: Vec<Spec> = shards.into_iter().flat_map(|shard| shard.tensors).collect();
    let all: u64 = tensors.iter().map(Spec::bytes).sum();
    let mut groups = vec![Vec::new(); count];
    let mut before = 0;
    for tensor in tensors {
        let group = u128::from(before) * count as u128 / u128::from(all.max(1));
        before += tensor.bytes();
        groups[group as usize].push(tensor);
    }
    groups.retain(|group| !group.is_empty());
    let name = |index| format!("model-{:05}-of-{:05}.safetensors", index + 1, groups.len());
    let names: Vec<String> = (0..groups.len()).map(name).collect();
    names.into_iter().zip(groups).map(|(name, tensors)| Shard { name, tensors }).collect()
}

/// A mixture of experts: matrices in FP8 with a scale for each block of 128 by 128.
fn fp8_experts(bytes: u64) -> Vec<Shard> {
    let expert = |n: u64| {
        let name = format!("model.layers.{}.mlp.experts.{}", n / 64, n % 64);
        let (rows, columns) = (2048, 4096);
        [
            tensor(format!("{name}.weight"), Dtype::F8_E4M3, &[rows, columns]),
            tensor(format!("{name}.weight_scale_inv"), Dtype::F32, &[rows / 128, columns / 128]),
        ]
    };
    one((0..(bytes / (2048 * 4096)).max(1)).flat_map(expert).collect())
}

/// A few large tables and a bias for each.
fn f32_embeddings(bytes: u64) -> Vec<Shard> {
    let rows = (bytes / 5 / 4 / 1024).max(1) as usize;
    let table = |n: usize| {
        [
            tensor(format!("embeddings.{n}.weight"), Dtype::F32, &[rows, 1024]),
            tensor(format!("embeddings.{n}.bias"), Dtype::F32, &[1023]),
        ]
    };
    one((0..5).flat_map(table).collect())
}

/// 120,000 tensors of 4 to 64 KiB, of lengths that are no multiples of anything.
fn many_small(scale: f64) -> Vec<Shard> {
    let mut state = 1_u64;
    let small = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bytes = 4096 + (state >> 33) as usize % (60 << 10);
        tensor(format!("model.layers.{}.part.{n}", n / 1000), Dtype::U8, &[bytes])
    };
    one((0..(120_000.0 * scale) as usize).map(small).collect())
}
