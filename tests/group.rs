//! Tensors that the ranks of a group have read between them.

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use support::threads::ThreadGroup;
use support::{Spec, assert_all_back, bytes_tensor, devices, pool_for, tensor, write};
use tempfile::TempDir;
use tensorhold::group::{self, ProcessGroup, Relay, Shared, SingleGroup, chunk};
use tensorhold::{Cut, DType, Device, Error, Loader, Result, Tensor};

/// Tensors of all kinds in three files.
fn files() -> (TempDir, Vec<PathBuf>, Vec<Spec>) {
    let files = [
        vec![
            tensor("a.matrix", "F32", &[7, 10], 280),
            bytes_tensor("a.empty", 0),
            tensor("a.scalar", "I64", &[], 8),
        ],
        vec![
            tensor("b.matrix", "F32", &[7, 6], 168),
            tensor("b.packed", "F4", &[4, 6], 12),
            bytes_tensor("b.large", 3_000_001),
        ],
        vec![tensor("c.cube", "BF16", &[3, 4, 5], 120), tensor("c.row", "F32", &[1, 9], 36)],
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = |n: usize| folder.path().join(format!("{n}.safetensors"));
    for (n, tensors) in files.iter().enumerate() {
        write(&path(n), tensors);
    }
    let paths = (0..files.len()).map(path).collect();
    (folder, paths, files.into_iter().flatten().collect())
}

fn shared(device: &Device, files: &[PathBuf], group: Arc<dyn ProcessGroup>) -> Shared {
    Loader::new(device.clone()).files(files).load_shared(group).unwrap()
}

/// The bytes of a part, cut in the simplest way.
fn part(spec: &Spec, dim: usize, rank: usize, size: usize) -> Vec<u8> {
    let rows: usize = spec.shape[..dim].iter().product();
    let row = spec.bytes.len() / rows.max(1);
    let index = row / spec.shape[dim].max(1);
    let range = chunk(spec.shape[dim], rank, size);
    let of_row = |bytes: &[u8]| bytes[range.start * index..range.end * index].to_vec();
    if row == 0 { Vec::new() } else { spec.bytes.chunks(row).flat_map(of_row).collect() }
}

#[test]
fn groups_of_threads_keep_what_is_promised() {
    for device in devices() {
        for size in [1, 2, 3, 4] {
            for checked in ThreadGroup::run(size, |rank| group::check(&*rank, &device)) {
                checked.unwrap();
            }
        }
        group::check(&SingleGroup, &device).unwrap();
    }
}

/// A group that breaks one promise.
#[derive(Debug)]
struct Flawed(ThreadGroup, &'static str);

impl ProcessGroup for Flawed {
    fn rank(&self) -> usize {
        self.0.rank()
    }
    fn size(&self) -> usize {
        self.0.size()
    }
    fn barrier(&self) -> Result<()> {
        self.0.barrier()
    }
    fn broadcast(&self, tensor: &Tensor) -> Result<()> {
        self.0.broadcast(tensor)
    }
    fn recv_broadcast(&self, into: &mut Tensor, root: usize) -> Result<()> {
        self.0.recv_broadcast(into, root)?;
        if self.1 == "garbles" && into.nbytes() > 5 {
            into.get_mut().unwrap().as_bytes_mut()?[5] ^= 1;
        }
        Ok(())
    }
    fn send(&self, tensor: &Tensor, to: usize) -> Result<()> {
        if self.1 == "accepts any rank" && to >= self.size() { Ok(()) } else { self.0.send(tensor, to) }
    }
    fn recv(&self, into: &mut Tensor, from: usize) -> Result<()> {
        self.0.recv(into, from)
    }
}

#[test]
fn groups_that_break_a_promise_are_found_out() {
    for (flaw, found) in [("garbles", "byte 5 differs"), ("accepts any rank", "was not refused")] {
        let groups = ThreadGroup::all(2).into_iter().map(|group| Flawed(group, flaw));
        let ranks = groups.map(|group| std::thread::spawn(move || group::check(&group, &Device::host())));
        let errors: Vec<_> = ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect();
        let told =
            errors.iter().any(|error| error.as_ref().is_err_and(|error| error.to_string().contains(found)));
        assert!(told, "{flaw}: {errors:?}");
    }
}

#[test]
fn every_rank_has_every_tensor_and_reads_its_own_files_alone() {
    let (_folder, files, tensors) = files();
    for device in devices() {
        for size in [1, 2, 4] {
            ThreadGroup::run(size, |group| {
                let rank = group.rank();
                let shared = shared(&device, &files, group);
                for spec in &tensors {
                    let owner = shared.owner(&spec.name).unwrap();
                    let file = usize::from(spec.name.as_bytes()[0] - b'a');
                    assert_eq!(owner, file % size);
                    assert_eq!(shared.local(&spec.name).unwrap().is_some(), owner == rank);
                    let tensor = shared.broadcast(&spec.name).unwrap();
                    assert_eq!((tensor.shape(), tensor.dtype().name()), (&spec.shape[..], spec.dtype));
                    assert!(tensor.to_host().unwrap() == spec.bytes, "{} on rank {rank}", spec.name);
                }
            });
        }
    }
}

#[test]
fn shards_are_the_chunks_of_torch_along_every_dimension() {
    let (_folder, files, tensors) = files();
    for device in devices() {
        for size in [1, 2, 3, 4] {
            ThreadGroup::run(size, |group| {
                let rank = group.rank();
                let shared = shared(&device, &files, group);
                for spec in tensors.iter().filter(|spec| spec.name != "b.packed") {
                    for dim in 0..spec.shape.len() {
                        let shard = shared.shard(&spec.name, dim).unwrap();
                        let mut shape = spec.shape.clone();
                        shape[dim] = chunk(shape[dim], rank, size).len();
                        assert_eq!(shard.shape(), shape, "{} {dim}", spec.name);
                        assert_eq!(
                            shard.to_host().unwrap(),
                            part(spec, dim, rank, size),
                            "{} {dim}",
                            spec.name
                        );
                    }
                }
            });
        }
    }
}

#[test]
fn packed_elements_are_cut_between_bytes_or_refused_on_every_rank() {
    let (_folder, files, tensors) = files();
    let spec = tensors.iter().find(|spec| spec.name == "b.packed").unwrap();
    ThreadGroup::run(2, |group| {
        let rank = group.rank();
        let shared = shared(&Device::host(), &files, group);
        assert_eq!(shared.shard("b.packed", 0).unwrap().to_host().unwrap(), spec.bytes[6 * rank..][..6]);
        let error = shared.shard("b.packed", 1).unwrap_err().to_string();
        assert!(error.contains("whole bytes"), "{error}");
    });
}

#[test]
fn columns_are_the_shards_side_by_side() {
    let (_folder, files, tensors) = files();
    let of = |name: &str| tensors.iter().find(|spec| spec.name == name).unwrap();
    let (a, b) = (of("a.matrix"), of("b.matrix"));
    for device in devices() {
        for size in [1, 2, 4] {
            ThreadGroup::run(size, |group| {
                let rank = group.rank();
                let shared = shared(&device, &files, group);
                let joined = shared.columns(["a.matrix", "b.matrix"], 1).unwrap();
                let (left, right) = (part(a, 1, rank, size), part(b, 1, rank, size));
                let (lefts, rights) = (left.len() / 7, right.len() / 7);
                let rows: Vec<u8> = (0..7)
                    .flat_map(|n| [&left[n * lefts..][..lefts], &right[n * rights..][..rights]].concat())
                    .collect();
                assert_eq!(joined.shape(), [7, (lefts + rights) / 4]);
                assert_eq!(joined.to_host().unwrap(), rows);
                let error = shared.columns(["a.matrix", "b.matrix"], 0).unwrap_err().to_string();
                assert!(error.contains("b.matrix") && error.contains("F32[7, 6]"), "{error}");
                assert!(shared.columns([], 0).is_err());
                assert!(shared.columns(["a.scalar"], 0).is_err());
            });
        }
    }
}

#[test]
fn a_pushed_tensor_is_on_one_rank() {
    let (_folder, files, tensors) = files();
    for device in devices() {
        ThreadGroup::run(3, |group| {
            let rank = group.rank();
            let shared = shared(&device, &files, group);
            for (n, spec) in tensors.iter().enumerate() {
                let pushed = shared.push(&spec.name, n % 3).unwrap();
                let bytes = pushed.map(|tensor| tensor.to_host().unwrap());
                assert_eq!(bytes, (n % 3 == rank).then(|| spec.bytes.clone()), "{}", spec.name);
            }
            assert!(shared.push("a.matrix", 3).unwrap_err().to_string().contains("rank 3"));
        });
    }
}

#[test]
fn shards_keep_their_own_memory_alone() {
    let (_folder, files, _) = files();
    for device in devices() {
        ThreadGroup::run(2, |group| {
            let pool = pool_for(&device);
            let loader = Loader::new(device.clone()).files(&files).pool(&pool);
            let shared = loader.load_shared(group).unwrap();
            let shard = shared.shard("b.large", 0).unwrap();
            drop(shared);
            pool.trim();
            assert_eq!(pool.stats().live_bytes, shard.nbytes());
            assert!(shard.nbytes() <= 1_500_001);
            drop(shard);
            assert_all_back(&pool);
        });
    }
}

#[test]
fn a_drain_gives_each_tensor_and_lets_go_of_it() {
    let (_folder, files, tensors) = files();
    for device in devices() {
        ThreadGroup::run(2, |group| {
            let pool = pool_for(&device);
            let loader = Loader::new(device.clone()).files(&files).pool(&pool);
            let shared = loader.load_shared(group).unwrap();
            let mut drain = shared.drain();
            for spec in &tensors {
                let tensor: Tensor = drain.next().unwrap().unwrap();
                assert_eq!((tensor.name(), tensor.to_host().unwrap()), (&*spec.name, spec.bytes.clone()));
                let live = |pool: &tensorhold::Pool| {
                    pool.trim();
                    pool.stats().live_bytes
                };
                let before = live(&pool);
                let bytes = tensor.nbytes();
                drop(tensor);
                assert_eq!(live(&pool), before - bytes, "{}", spec.name);
            }
            assert!(drain.next().is_none());
            drop(drain);
            assert_all_back(&pool);
        });
    }
}

#[test]
fn a_relay_gives_what_each_rank_reads_in_batches_and_finds_out_another_order() {
    let (_folder, files, tensors) = files();
    for device in devices() {
        ThreadGroup::run(3, |group| {
            let rank = group.rank();
            let batches = || {
                let loader = Loader::new(device.clone()).files(&files[rank..=rank]);
                let batches = loader.batches(tensorhold::Batching::new().max_batch_bytes(200)).unwrap();
                let tensors = |weights: tensorhold::Weights| -> Vec<_> {
                    weights.names().map(|name| weights.tensor(name)).collect()
                };
                batches.flat_map(move |weights| tensors(weights.unwrap()))
            };
            let checkpoint = Loader::new(device.clone()).files(&files).open().unwrap();
            let owner = |info: &tensorhold::TensorInfo| usize::from(info.name.as_bytes()[0] - b'a');
            let mut order: Vec<_> = checkpoint.tensors().map(|info| (info.clone(), owner(info))).collect();
            let pool = pool_for(&device);
            let relay = Relay::new(Arc::clone(&group), &device, &pool, order.clone(), batches()).unwrap();
            for (tensor, spec) in relay.zip(&tensors) {
                let tensor = tensor.unwrap();
                assert_eq!((tensor.name(), tensor.to_host().unwrap()), (&*spec.name, spec.bytes.clone()));
            }
            order.swap(0, 2);
            if rank == 0 {
                let mut relay = Relay::new(group, &device, &pool, order, batches()).unwrap();
                let error = relay.next().unwrap().unwrap_err().to_string();
                assert!(error.contains("expected \"a.scalar\""), "{error}");
                assert!(relay.next().is_none());
            }
        });
    }
}

#[test]
fn conversions_and_selections_hold_on_every_rank() {
    let (_folder, files, _) = files();
    ThreadGroup::run(2, |group| {
        let loader = Loader::new(Device::host()).files(&files).dtype(DType::BF16);
        let shared = loader.select(|info| info.name.ends_with("matrix")).load_shared(group).unwrap();
        assert_eq!(shared.names().collect::<Vec<_>>(), ["a.matrix", "b.matrix"]);
        for name in ["a.matrix", "b.matrix"] {
            let tensor = shared.broadcast(name).unwrap();
            assert_eq!((tensor.dtype(), tensor.nbytes()), (DType::BF16, shared.info(name).unwrap().nbytes));
        }
    });
}

#[test]
fn names_dimensions_and_cuts_that_cannot_be_are_errors_before_anything_is_moved() {
    let (_folder, files, _) = files();
    ThreadGroup::run(2, |group| {
        let loader = || Loader::new(Device::host()).files(&files);
        let error =
            loader().cut("a.matrix", Cut::narrow(0, 0, 1)).load_shared(Arc::clone(&group)).unwrap_err();
        assert!(matches!(error, Error::Option { option: "cut", .. }), "{error}");
        let shared = loader().load_shared(group).unwrap();
        assert!(shared.broadcast("a.matrx").unwrap_err().to_string().contains("did you mean \"a.matrix\""));
        assert!(shared.shard("a.matrix", 2).unwrap_err().to_string().contains("2 dimensions"));
        assert!(shared.shard("a.scalar", 0).is_err());
        // The group is as it was.
        assert!(shared.broadcast("a.matrix").is_ok());
    });
}

#[test]
fn a_rank_that_failed_stops_the_others_with_it() {
    for device in devices() {
        for failing in [None, Some(0), Some(2)] {
            let outcomes = ThreadGroup::run(3, |group| {
                let own = if failing == Some(group.rank()) { Err(Error::NoFiles) } else { Ok(group.rank()) };
                group::agree(&*group, &device, &pool_for(&device), own)
            });
            for (rank, outcome) in outcomes.into_iter().enumerate() {
                match failing {
                    None => assert_eq!(outcome.unwrap(), rank),
                    Some(failing) if failing == rank => assert!(matches!(outcome, Err(Error::NoFiles))),
                    Some(failing) => {
                        let error = outcome.unwrap_err().to_string();
                        assert!(error.contains(&format!("rank {failing} has failed")), "{error}");
                    }
                }
            }
        }
    }
}

#[test]
fn lists_of_owners_that_do_not_fit_are_refused() {
    let (_folder, files, _) = files();
    let weights = Loader::new(Device::host()).files(&files[..1]).load().unwrap();
    let infos: Vec<_> = weights.iter().map(|view| view.info().clone()).collect();
    let local = || weights.names().map(|name| weights.tensor(name).unwrap()).collect::<Vec<_>>();
    let new = |tensors: Vec<_>, local: Vec<Tensor>| {
        Shared::new(Arc::new(SingleGroup), &Device::host(), weights.pool(), tensors, local)
            .map(|_| ())
            .unwrap_err()
            .to_string()
    };
    let owned = |owner| infos.iter().map(|info| (info.clone(), owner)).collect::<Vec<_>>();
    assert!(new(owned(1), vec![]).contains("on rank 1"));
    assert!(new(owned(0), vec![]).contains("has not"));
    assert!(new([owned(0), owned(0)].concat(), local()).contains("twice"));
    assert!(new(owned(0)[1..].to_vec(), local()).contains("is not said to"));
}

#[test]
fn tensors_that_this_rank_has_on_another_device_are_refused() {
    let (_folder, files, _) = files();
    let [host, other] = devices();
    for (here, there) in [(&host, &other), (&other, &host)] {
        let weights = Loader::new(there.clone()).files(&files[..1]).load().unwrap();
        let tensors = weights.iter().map(|view| (view.info().clone(), 0)).collect::<Vec<_>>();
        let local = weights.names().map(|name| weights.tensor(name).unwrap()).collect::<Vec<_>>();
        let shared = Shared::new(Arc::new(SingleGroup), here, &pool_for(here), tensors, local);
        let error = shared.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(there.name()) && error.contains(here.name()), "{error}");
    }
}

#[test]
fn columns_that_are_more_than_there_are_numbers_are_an_error() {
    let spec = |name: &str| tensor(name, "U8", &[usize::MAX / 2 + 1, 0], 0);
    let (_folder, file) = support::single(&[spec("a"), spec("b")]);
    let shared = shared(&Device::host(), &[file], Arc::new(SingleGroup));
    let error = shared.columns(["a", "b"], 0).unwrap_err().to_string();
    assert!(error.contains("dimension 0"), "{error}");
}

/// A group that says what it is told to.
#[derive(Debug)]
struct Confused(usize, usize);

impl ProcessGroup for Confused {
    fn rank(&self) -> usize {
        self.0
    }
    fn size(&self) -> usize {
        self.1
    }
    fn barrier(&self) -> Result<()> {
        Ok(())
    }
    fn broadcast(&self, _: &Tensor) -> Result<()> {
        Ok(())
    }
    fn recv_broadcast(&self, _: &mut Tensor, _: usize) -> Result<()> {
        Ok(())
    }
    fn send(&self, _: &Tensor, _: usize) -> Result<()> {
        Ok(())
    }
    fn recv(&self, _: &mut Tensor, _: usize) -> Result<()> {
        Ok(())
    }
}

#[test]
fn groups_that_do_not_know_their_ranks_are_refused() {
    let (_folder, files, _) = files();
    for (rank, size) in [(0, 0), (1, 1), (3, 2)] {
        let loaded = Loader::new(Device::host()).files(&files).load_shared(Arc::new(Confused(rank, size)));
        let error = loaded.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(&format!("rank {rank} of {size}")), "{error}");
        let error = group::check(&Confused(rank, size), &Device::host()).unwrap_err();
        assert!(matches!(error, Error::Group { .. }), "{error}");
    }
}
