//! What the benches share: the shapes of the checkpoints, and files of those shapes.
#![allow(dead_code, reason = "each bench uses a part")]
#![allow(
    unused_imports,
    dropping_copy_types,
    reason = "the included files have tests, which run in their own crate"
)]

pub(crate) mod check;
#[path = "../../cli/src/demo/shapes.rs"]
pub(crate) mod shapes;
#[path = "../../cli/src/demo/write.rs"]
pub(crate) mod write;

/// The sizes in bytes of the 290 tensors of a Llama 3 8B whose head is tied to its embedding.
pub(crate) fn llama_8b() -> Vec<u64> {
    let shards = shapes::llama(16_000_000_000);
    let sizes: Vec<u64> =
        shards.iter().flat_map(|shard| &shard.tensors).map(shapes::Spec::bytes).take(290).collect();
    assert_eq!(sizes.len(), 290);
    sizes
}
