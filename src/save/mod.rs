//! Writing safetensors files and sets of them: plan, draft, fill, commit.
//!
//! 1. **Plan** ([`plan_shards`]): tensors are divided among files of about the same size, and headers made. Pure.
//! 2. **Draft** ([`Draft`]): all paths are looked at. If each leads to a regular file or a new name, and there is room, the files are made at their full length
//!    under other names.
//! 3. **Fill**: threads write tensors to their places, chunk by chunk: host memory as it is, devices' by way of a staging buffer for each thread.
//! 4. **Commit**: when all bytes are there, the files get their names. A failure leaves no file.
//!
//! [`Saver`] does all of it, or makes a file in memory ([`Saver::serialize`]); who fills files in a way of their own begins with a plan.
//!
//! ```
//! # let folder = tempfile::tempdir().unwrap();
//! # let folder = folder.path();
//! use tensorhold::save::{Entry, Item, Saver};
//! use tensorhold::{DType, Device, Loader};
//!
//! let values = [1.5_f32, -2.0].map(f32::to_le_bytes).concat();
//! let item = Item::bytes(Entry::new("w", DType::F32, &[2])?, &values)?;
//! let saved = Saver::new().shards(1).save(folder.join("model"), [item])?;
//! assert!(saved.files[0].ends_with("model-00001-of-00001.safetensors"));
//!
//! // Loaded tensors, from whatever device, in files of at most 5 GB with an index.
//! let weights = Loader::new(Device::host()).files(&saved.files).load()?;
//! let saver = Saver::new().max_shard_bytes(5_000_000_000).index();
//! saver.save(folder.join("copy"), weights.iter().map(Item::tensor))?;
//! assert_eq!(Loader::new(Device::host()).checkpoint(folder.join("copy.safetensors.index.json"))?.load()?.len(), 1);
//! # Ok::<(), tensorhold::Error>(())
//! ```

mod draft;
mod entry;
mod fill;
mod permissions;
mod placed;
mod plan;
mod saver;
mod serialized;
mod set;
mod space;
mod target;
mod temporary;

pub use draft::{Draft, Durability};
pub use entry::{Entry, FillError, Item};
pub use plan::{PlanOptions, ShardPlan, balance, plan_shards, shard_paths};
pub use saver::{Saved, Saver};
pub use serialized::Serialized;
pub use set::{KEY_SHARD_COUNT, KEY_SHARD_INDEX, KEY_SHARD_SET, validate_shard_set};
pub use space::free_space;
