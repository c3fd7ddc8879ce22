//! [`WeightStore`]: weights that are replaced while they serve.
//!
//! Readers take a snapshot, which stays what it is for as long as they keep it. A new version is loaded beside the old one,
//! into the same pool, and takes its place in one step; the old version's memory goes when its last reader does. A load that
//! fails changes nothing.
//!
//! # Invariants
//! - **S1** What is current changes in one step, from one whole version to another: no snapshot is a mixture.
//! - **S2** Versions are installed one at a time, under the lock of the history; readers never take it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use arc_swap::ArcSwap;
use tensorhold_allocator::{Pool, Process};

use crate::error::Result;
use crate::loader::Loader;
use crate::weights::Weights;

/// Weights that can be replaced, all or some of them, while others read them.
///
/// A forked child may take snapshots, and swap in weights that it loaded itself. The pool is its parent's, so [`reload`](Self::reload) and
/// [`update`](Self::update) are errors there.
///
/// All loads of a store go into one pool, so a limit of that pool counts the version that serves and the one that is
/// loaded beside it, and what readers still hold of older ones.
///
/// ```no_run
/// use tensorhold::{Device, Loader, Pool, WeightStore};
///
/// let device = Device::cuda(0)?;
/// let pool = Pool::builder(device.memory()).limit_bytes(48 << 30).build()?;
/// let store = WeightStore::load(Loader::new(device.clone()).checkpoint("v1/")?.pool(&pool))?;
///
/// let weights = store.snapshot(); // Arc<Weights>: on any thread, without a lock
/// let norm = weights.view("model.norm.weight")?;
///
/// store.reload(Loader::new(device.clone()).checkpoint("v2/")?)?; // `weights` is still v1
/// store.update(Loader::new(device).files(["adapter.safetensors"]))?; // these tensors alone
/// # drop(norm);
/// # Ok::<(), tensorhold::Error>(())
/// ```
#[derive(Debug)]
pub struct WeightStore {
    current: ArcSwap<Weights>,
    pool: Pool,
    history: Mutex<History>,
    process: Process,
}

#[derive(Debug, Default)]
struct History {
    /// How often a version has taken another's place.
    generation: u64,
    /// Versions that have been replaced, as far as they may still be held.
    old: Vec<(u64, Weak<Weights>)>,
}

/// A version that has been replaced and that readers still hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct OldVersion {
    /// Which: the first version of a store is 0.
    pub generation: u64,
    /// Bytes of its tensors, those that other versions have too included.
    pub bytes: u64,
}

impl WeightStore {
    /// A store that begins with these weights, and loads into their pool.
    pub fn new(mut weights: Weights) -> Self {
        weights.share_pool();
        let pool = weights.pool().clone();
        Self {
            current: ArcSwap::from_pointee(weights),
            pool,
            history: Mutex::default(),
            process: Process::current(),
        }
    }

    /// A store that begins with what a loader loads, and loads into the loader's pool.
    ///
    /// # Errors
    /// As [`Loader::load`].
    pub fn load(loader: Loader) -> Result<Self> {
        loader.load().map(Self::new)
    }

    /// The version that serves now. It stays whole and as it is for as long as it is kept, whatever is installed since.
    /// Takes no lock, so a load or a swap under way does not hold it up.
    pub fn snapshot(&self) -> Arc<Weights> {
        self.current.load_full()
    }

    /// How often a version has taken another's place.
    pub fn generation(&self) -> u64 {
        self.history().map_or(0, |history| history.generation)
    }

    /// The pool that versions are loaded into.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Versions that have been replaced and that readers still hold, oldest first.
    pub fn old_versions(&self) -> Vec<OldVersion> {
        let Some(mut history) = self.history() else { return Vec::new() };
        history.forget();
        let held = history.old.iter().filter_map(|(generation, weights)| {
            let bytes = weights.upgrade()?.iter().map(|tensor| tensor.nbytes()).sum();
            Some(OldVersion { generation: *generation, bytes })
        });
        held.collect()
    }

    /// Has these weights serve from now on, and returns those that served until now.
    pub fn swap(&self, weights: Weights) -> Arc<Weights> {
        self.install(self.history(), weights)
    }

    /// Loads a new version into the store's pool, whichever pool the loader names, and has it serve. Returns the version that served until then.
    ///
    /// # Errors
    /// As [`Loader::load`]: when the pool's limit does not allow for both versions, for one. What serves goes on serving.
    pub fn reload(&self, loader: Loader) -> Result<Arc<Weights>> {
        let weights = loader.pool(&self.pool).load()?;
        Ok(self.swap(weights))
    }

    /// Loads new versions of some tensors into the store's pool, and has them serve with the rest of those that serve then.
    /// Returns the version that served until then.
    ///
    /// # Errors
    /// As [`Loader::load`], and when a tensor has no namesake, or one of another type or shape. What serves goes on serving.
    pub fn update(&self, loader: Loader) -> Result<Arc<Weights>> {
        let some = loader.pool(&self.pool).load()?;
        // S2: what it is merged with is what it replaces.
        let history = self.history();
        let merged = self.snapshot().with(some)?;
        Ok(self.install(history, merged))
    }

    /// The version that serves last.
    pub fn into_current(self) -> Arc<Weights> {
        self.current.into_inner()
    }

    fn install(&self, history: Option<MutexGuard<'_, History>>, mut weights: Weights) -> Arc<Weights> {
        weights.share_pool();
        let replaced = self.current.swap(Arc::new(weights));
        if let Some(mut history) = history {
            history.forget();
            let generation = history.generation;
            history.old.push((generation, Arc::downgrade(&replaced)));
            history.generation += 1;
        }
        replaced
    }

    /// `None` in a forked child whose parent was at it: no one unlocks it there.
    fn history(&self) -> Option<MutexGuard<'_, History>> {
        if self.process.is_current() {
            return Some(self.history.lock().unwrap_or_else(PoisonError::into_inner));
        }
        match self.history.try_lock() {
            Ok(history) => Some(history),
            Err(TryLockError::Poisoned(history)) => Some(history.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl History {
    /// Forgets versions that no one holds.
    fn forget(&mut self) {
        self.old.retain(|(_, weights)| weights.strong_count() > 0);
    }
}
