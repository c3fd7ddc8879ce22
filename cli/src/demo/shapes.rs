//! The tensors of a Llama-shaped checkpoint in BF16, scaled to a size.
//!
//! The width is halved from that of Llama 3 70B until there are enough layers, with all other dimensions in proportion.
//! At 16 GB that is Llama 3 8B, tensor by tensor: 291 tensors in four shards.

use safetensors::Dtype;

/// Widths to choose from, the widest first.
const WIDTHS: [usize; 8] = [8192, 4096, 2048, 1024, 512, 256, 128, 64];

/// A width is taken when at least so many layers of it fit.
const MIN_LAYERS: u64 = 16;

/// As Hugging Face splits checkpoints: no shard is larger than this by more than one tensor.
const MAX_SHARD_BYTES: u64 = 5_000_000_000;
const MIN_SHARDS: u64 = 4;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl Spec {
    fn new(name: impl Into<String>, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype: Dtype::BF16, shape: shape.to_vec() }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().map(|&length| length as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// A file to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) name: String,
    /// In the order of their bytes.
    pub(crate) tensors: Vec<Spec>,
}

impl Shard {
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors.iter().map(Spec::bytes).sum()
    }
}

/// The shards of a checkpoint of about `bytes`, to the nearest layer, but of one layer at least.
pub(crate) fn llama(bytes: u64) -> Vec<Shard> {
    let layers_at = |width: usize| {
        let (frame, layer) = (total(&frame(width)), total(&layer(width, 0)));
        (bytes.saturating_sub(frame) + layer / 2) / layer
    };
    let narrowest = WIDTHS[WIDTHS.len() - 1];
    let width = WIDTHS.into_iter().find(|&width| layers_at(width) >= MIN_LAYERS).unwrap_or(narrowest);
    let [embedding, norm, head] = frame(width);
    let mut tensors = vec![embedding];
    tensors.extend((0..layers_at(width).max(1)).flat_map(|index| layer(width, index)));
    tensors.extend([norm, head]);
    shards(tensors)
}

/// What a model has besides its layers.
fn frame(width: usize) -> [Spec; 3] {
    let vocabulary = 128_256 * width / 4096;
    [
        Spec::new("model.embed_tokens.weight", &[vocabulary, width]),
        Spec::new("model.norm.weight", &[width]),
        Spec::new("lm_head.weight", &[vocabulary, width]),
    ]
}

fn layer(width: usize, index: u64) -> [Spec; 9] {
    let (inner, key_value) = (width * 7 / 2, width / 4);
    let tensor =
        |name: &str, shape: &[usize]| Spec::new(format!("model.layers.{index}.{name}.weight"), shape);
    [
        tensor("input_layernorm", &[width]),
        tensor("self_attn.q_proj", &[width, width]),
        tensor("self_attn.k_proj", &[key_value, width]),
        tensor("self_attn.v_proj", &[key_value, width]),
        tensor("self_attn.o_proj", &[width, width]),
        tensor("post_attention_layernorm", &[width]),
        tensor("mlp.gate_proj", &[inner, width]),
        tensor("mlp.up_proj", &[inner, width]),
        tensor("mlp.down_proj", &[width, inner]),
    ]
}

fn total(tensors: &[Spec]) -> u64 {
    tensors.iter().map(Spec::bytes).sum()
}

/// Cuts the tensors into shards of about the same size.
fn shards(tensors: Vec<Spec>) -> Vec<Shard> {
    let all = total(&tensors);
    let count = all.div_ceil(MAX_SHARD_BYTES).max(MIN_SHARDS);
    let mut groups = vec![Vec::new(); count as usize];
    let mut before = 0;
    for tensor in tensors {
        let bytes = tensor.bytes();
        // Where the tensor's middle falls. It is never the end, so the quotient is below `count`.
        let middle = u128::from(before + bytes / 2);
        groups[(middle * u128::from(count) / u128::from(all)) as usize].push(tensor);
        before += bytes;
    }
    groups.retain(|group| !group.is_empty());
    let count = groups.len();
    let shard = |(index, tensors)| Shard {
        name: format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        tensors,
    };
    groups.into_iter().enumerate().map(shard).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Shard, llama};

    fn bytes(shards: &[Shard]) -> u64 {
        shards.iter().map(Shard::bytes).sum()
    }

    #[test]
    fn sixteen_gigabytes_are_llama_8b() {
        let shards = llama(16_000_000_000);
        let tensors: Vec<_> = shards.iter().flat_map(|shard| &shard.tensors).collect();
        assert_eq!((shards.len(), tensors.len(), bytes(&shards)), (4, 291, 16_060_522_496));
        let gate =
            tensors.iter().find(|tensor| tensor.name == "model.layers.31.mlp.gate_proj.weight").unwrap();
        assert_eq!(gate.shape, [14336, 4096]);
        assert_eq!(shards[0].name, "model-00001-of-00004.safetensors");
    }

    #[test]
    fn the_size_is_met_within_a_layer() {
        for asked in [2_000_000, 10_000_000, 64_000_000, 1_000_000_000, 7_000_000_000, 140_000_000_000] {
            let made = bytes(&llama(asked));
            assert!(made.abs_diff(asked) * 20 < asked, "{made} for {asked}");
        }
    }

    #[test]
    fn the_smallest_has_one_layer() {
        let shards = llama(0);
        assert_eq!(shards.iter().map(|shard| shard.tensors.len()).sum::<usize>(), 12);
        assert!(bytes(&shards) < 1_000_000);
    }

    #[test]
    fn shards_are_balanced_and_names_unique() {
        for asked in [0, 1_000_000_000, 16_000_000_000, 140_000_000_000] {
            let shards = llama(asked);
            let names: Vec<_> =
                shards.iter().flat_map(|shard| &shard.tensors).map(|tensor| &tensor.name).collect();
            assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len());
            assert!(shards.iter().all(|shard| !shard.tensors.is_empty() && shard.bytes() < 7_500_000_000));
        }
    }
}
