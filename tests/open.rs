//! A checkpoint that is opened once is loaded from many times, in whole and in parts.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;

use support::{Spec, assert_all_back, assert_holds, bytes_tensor, devices, pool_for, single, tensor, write};
use tensorhold::allocator::{HostMemory, Memory, MemoryError, MemoryId, RawRegion};
use tensorhold::{
    Backend, BackendKind, Batching, Checkpoint, Cut, DType, Device, Error, Loader, Pool, TensorInfo,
};

fn tensors() -> Vec<Spec> {
    let matrix = tensor("matrix", "F32", &[40, 30], 4800);
    vec![bytes_tensor("a", 5), matrix, bytes_tensor("none", 0), bytes_tensor("long", 3_000_001)]
}

#[test]
fn names_tensors_and_metadata_are_those_of_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let header = r#"{"__metadata__":{"format":"pt"},"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    fs::write(&first, support::file_bytes(header, &[7, 8])).unwrap();
    write(&second, &tensors());
    let checkpoint = Loader::new(Device::host()).files([&first, &second]).open().unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x", "a", "matrix", "none", "long"]);
    assert_eq!((checkpoint.len(), checkpoint.is_empty()), (5, false));
    let matrix = checkpoint.info("matrix").unwrap();
    assert_eq!((matrix.dtype, &*matrix.shape, matrix.nbytes), (DType::F32, &[40, 30][..], 4800));
    assert_eq!(checkpoint.tensors().nth(2), Some(matrix));
    assert_eq!(checkpoint.files().collect::<Vec<_>>(), [&first, &second]);
    assert_eq!(checkpoint.metadata(&first).unwrap()["format"], "pt");
    assert_eq!(checkpoint.metadata(&second), None);
    assert_eq!((checkpoint.info("y"), checkpoint.metadata("y")), (None, None));
    assert_eq!(checkpoint.load_tensor("x").unwrap().to_host().unwrap(), [7, 8]);
    assert_eq!(checkpoint.load_tensor("a").unwrap().to_host().unwrap(), tensors()[0].bytes);
}

#[test]
fn single_tensors_some_and_all_are_what_the_file_holds() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let pool = pool_for(&device);
        let checkpoint = Loader::new(device).files([&path]).pool(&pool).open().unwrap();
        for tensor in &tensors {
            let loaded = checkpoint.load_tensor(&tensor.name).unwrap();
            assert!(loaded.to_host().unwrap() == tensor.bytes, "{}", tensor.name);
            assert_eq!(loaded.info(), checkpoint.info(&tensor.name).unwrap());
        }
        assert_holds(&checkpoint.load_tensors(["none", "matrix", "a", "a"]).unwrap(), &tensors[..3]);
        assert!(checkpoint.load_tensors([""; 0]).unwrap().is_empty());
        assert_holds(&checkpoint.loader().load().unwrap(), &tensors);
        let streamed = checkpoint.loader().stream().unwrap().finish().unwrap();
        assert_holds(&streamed, &tensors);
        drop(streamed);
        assert_all_back(&pool);
    }
}

#[test]
fn parts_are_cut_along_any_dimensions_and_after_the_cuts_of_the_loader() {
    let matrix = tensor("matrix", "I32", &[6, 5, 4], 480);
    let (_folder, path) = single(&[bytes_tensor("a", 3), matrix.clone()]);
    let element = |i: usize, j: usize, k: usize| matrix.bytes[4 * ((i * 5 + j) * 4 + k)..][..4].to_vec();
    for device in devices() {
        let checkpoint = Loader::new(device.clone()).files([&path]).open().unwrap();
        let cuts = [Cut::narrow(0, 1, 3), Cut::narrow(1, 2, 2), Cut::narrow(2, 1, 3)];
        let part = checkpoint.load_part("matrix", &cuts).unwrap();
        let expected: Vec<u8> = (1..4)
            .flat_map(|i| (2..4).flat_map(move |j| (1..4).map(move |k| (i, j, k))))
            .flat_map(|(i, j, k)| element(i, j, k))
            .collect();
        assert_eq!((part.shape(), part.to_host().unwrap()), (&[3, 2, 3][..], expected));

        let shard = Loader::new(device).files([&path]).shard("matrix", 0, 1, 2).open().unwrap();
        assert_eq!(*shard.info("matrix").unwrap().shape, [3, 5, 4]);
        let part = shard.load_part("matrix", &[Cut::narrow(0, 2, 1), Cut::narrow(1, 4, 1)]).unwrap();
        let expected: Vec<u8> = (0..4).flat_map(|k| element(5, 4, k)).collect();
        assert_eq!(part.to_host().unwrap(), expected);
        assert_eq!(shard.load_tensor("a").unwrap().nbytes(), 3);
        assert_eq!(shard.loader().load().unwrap().view("matrix").unwrap().shape(), [3, 5, 4]);
    }
}

#[test]
fn conversions_are_those_of_the_loader_and_can_be_asked_for_later() {
    let data: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let spec = Spec { name: "w".into(), dtype: "F32", shape: vec![2], bytes: data.clone() };
    let (_folder, path) = single(&[spec]);
    for device in devices() {
        let narrow = Loader::new(device.clone()).files([&path]).dtype(DType::BF16).open().unwrap();
        assert_eq!(narrow.info("w").unwrap().dtype, DType::BF16);
        assert_eq!(narrow.load_tensor("w").unwrap().to_host().unwrap(), [0xc0, 0x3f, 0x00, 0xc0]);
        let wide = Loader::new(device).files([&path]).open().unwrap();
        assert_eq!(wide.load_tensor("w").unwrap().to_host().unwrap(), data);
        let weights = wide.loader().dtype(DType::BF16).load().unwrap();
        assert_eq!(weights.view("w").unwrap().to_host().unwrap(), [0xc0, 0x3f, 0x00, 0xc0]);
    }
}

#[test]
fn a_selection_is_made_once_and_can_be_narrowed() {
    let (_folder, path) = single(&tensors());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let wanted = move |info: &tensorhold::TensorInfo| {
        counted.fetch_add(1, Ordering::Relaxed);
        &*info.name != "long"
    };
    // A cut of a tensor that is there, though no one wants it.
    let loader = Loader::new(Device::host()).files([&path]).select(wanted).narrow("long", 0, 0, 1);
    let checkpoint = loader.open().unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "matrix", "none"]);
    assert!(matches!(checkpoint.load_tensor("long"), Err(Error::UnknownTensor { .. })));
    checkpoint.load_tensor("a").unwrap();
    assert_holds(&checkpoint.loader().load().unwrap(), &tensors()[..3]);
    let narrowed = checkpoint.loader().select(|info| info.nbytes > 5);
    assert_holds(&narrowed.load().unwrap(), &tensors()[1..2]);
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[test]
fn names_and_parts_that_are_not_there_are_errors_that_say_so() {
    let (_folder, path) = single(&tensors());
    let checkpoint = Loader::new(Device::host()).files([&path]).open().unwrap();
    let message = checkpoint.load_tensor("matrxi").unwrap_err().to_string();
    assert!(message.contains("matrxi") && message.contains("did you mean \"matrix\""), "{message}");
    assert!(checkpoint.load_tensors(["a", "b"]).is_err());
    let message = checkpoint.load_part("matrix", &[Cut::narrow(0, 39, 2)]).unwrap_err().to_string();
    assert!(message.contains("2 elements from 39 on") && message.contains("at most the 40"), "{message}");
    assert!(Loader::new(Device::host()).open().is_err());
    let message = Loader::new(Device::host()).files([path]).narrow("b", 0, 0, 1).open().unwrap_err();
    assert!(matches!(message, Error::UnknownTensor { .. }));
}

#[test]
fn files_that_change_after_they_were_opened_are_errors_and_headers_are_not_read_again() {
    for change in ["written", "replaced", "shortened", "removed"] {
        let (_folder, path) = single(&tensors());
        let pool = pool_for(&Device::host());
        let checkpoint = Loader::new(Device::host()).files([&path]).pool(&pool).open().unwrap();
        let content = fs::read(&path).unwrap();
        checkpoint.check_unchanged().unwrap();
        match change {
            "written" => {
                let file = fs::File::options().write(true).open(&path).unwrap();
                // The header alone: were it read again, it would be found to be damaged.
                std::os::unix::fs::FileExt::write_all_at(&file, b"    ", 8).unwrap();
                file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
            }
            "replaced" => {
                let other = path.with_extension("new");
                fs::write(&other, content).unwrap();
                fs::rename(other, &path).unwrap();
            }
            "shortened" => {
                fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
            }
            _ => fs::remove_file(&path).unwrap(),
        }
        let changed = |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::FileChanged { .. })), "{change}: {result:?}");
        };
        changed(checkpoint.check_unchanged());
        changed(checkpoint.load_tensor("long").map(drop));
        changed(checkpoint.load_part("matrix", &[Cut::narrow(1, 3, 2)]).map(drop));
        changed(checkpoint.loader().load().map(drop));
        assert_all_back(&pool);
    }
}

#[test]
fn threads_load_at_once_from_one_checkpoint() {
    fn is_shared<T: Send + Sync + Clone>(_: &T) {}
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let checkpoint = Loader::new(device).files([&path]).open().unwrap();
        is_shared(&checkpoint);
        let start = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                let (checkpoint, tensors, start): (Checkpoint, _, _) = (checkpoint.clone(), &tensors, &start);
                scope.spawn(move || {
                    start.wait();
                    for tensor in tensors {
                        let loaded = checkpoint.load_tensor(&tensor.name).unwrap();
                        assert!(loaded.to_host().unwrap() == tensor.bytes);
                    }
                });
            }
        });
    }
}

#[test]
fn tensors_outlive_the_checkpoint_and_staging_memory_is_kept_between_loads() {
    let tensors = tensors();
    let (_folder, path) = single(&tensors);
    let device = support::staged_host::device();
    let staging =
        tensorhold::Pool::builder(device.staging_memory()).region_bytes(1).retain_bytes(u64::MAX).build();
    let staging = staging.unwrap();
    let checkpoint = Loader::new(device).files([&path]).staging(&staging).open().unwrap();
    let first = checkpoint.load_tensor("long").unwrap();
    let reserved = staging.stats().reserved_bytes;
    assert!(reserved > 0);
    for _ in 0..5 {
        checkpoint.load_tensor("long").unwrap();
    }
    assert_eq!(staging.stats().reserved_bytes, reserved);
    drop(checkpoint);
    assert!(first.to_host().unwrap() == tensors[3].bytes);
}

/// Staging memory of the staged host that cannot say when a device is done with it: what has to be waited for is lost.
struct Unsure(HostMemory, MemoryId);

// SAFETY: HostMemory's.
unsafe impl Memory for Unsure {
    fn name(&self) -> &str {
        "frugal"
    }

    fn id(&self) -> MemoryId {
        self.1
    }

    fn is_host_accessible(&self) -> bool {
        true
    }

    fn is_used_by_devices(&self) -> bool {
        true
    }

    fn reserve(&self, bytes: u64, align: u64) -> Result<RawRegion, MemoryError> {
        self.0.reserve(bytes, align)
    }

    unsafe fn release(&self, region: RawRegion) -> Result<(), MemoryError> {
        // SAFETY: passed on.
        unsafe { self.0.release(region) }
    }

    fn synchronize(&self) -> Result<(), MemoryError> {
        Err("it is not known".into())
    }
}

#[test]
fn staging_memory_of_a_load_that_has_ended_is_used_again_without_waiting_for_the_device() {
    let tensors = tensors();
    let (_folder, path) = support::on_disk(&tensors);
    let [buffered, direct, uring, _] = BackendKind::ALL.map(Backend::Require);
    let none = support::staged_host::device;
    for (device, dtype) in [
        (none(), None),
        (none(), Some(DType::BF16)),
        (support::staged_host::device_with_transforms(), Some(DType::BF16)),
    ] {
        for backend in [Backend::Auto, buffered, direct, uring] {
            let unsure = Unsure(HostMemory::new(), device.staging_memory().id());
            let staging = Pool::builder(Arc::new(unsure)).region_bytes(1);
            let staging = staging.retain_bytes(u64::MAX).build().unwrap();
            for _ in 0..3 {
                support::drop_cached(&path, 1 << 20, 1 << 20);
                let loader = Loader::new(device.clone()).files([&path]).staging(&staging).backend(backend);
                let loader = loader.dtype_by(move |info| dtype.filter(|_| info.dtype == DType::F32));
                assert_eq!(loader.load().unwrap().len(), tensors.len());
                staging.trim_to(u64::MAX);
                let stats = staging.stats();
                assert_eq!((stats.lost_bytes, stats.live_bytes), (0, 0), "{backend:?}, {dtype:?}: {stats:?}");
            }
        }
    }
}

#[test]
fn progress_is_told_of_loads_from_a_checkpoint_and_can_stop_them() {
    let (_folder, path) = single(&tensors());
    let checkpoint = Loader::new(Device::host()).files([&path]).open().unwrap();
    let stopped = checkpoint.loader().progress(|_| ControlFlow::Break(())).load();
    assert!(matches!(stopped, Err(Error::Cancelled { .. })));
    assert_holds(&checkpoint.loader().load().unwrap(), &tensors());
}

#[test]
fn a_rule_that_loads_from_the_checkpoint_that_asks_it_is_refused_and_does_not_wait_for_itself() {
    let tensors = [bytes_tensor("a", 100), bytes_tensor("b", 50)];
    let (_folder, path) = single(&tensors);
    for device in devices() {
        for by_dtype in [true, false] {
            let opened: Arc<Mutex<Option<Checkpoint>>> = Arc::default();
            let refused: Arc<Mutex<Vec<String>>> = Arc::default();
            let (own, told) = (Arc::clone(&opened), Arc::clone(&refused));
            let ask = move |info: &TensorInfo| {
                let opened = own.lock().unwrap().clone();
                if let Some(opened) = opened {
                    let errors = [
                        opened.load_tensor(&info.name).err(),
                        opened.load_part("b", &[Cut::narrow(0, 0, 10)]).err(),
                        opened.load_tensors(["a"]).err(),
                        opened.loader().load().err(),
                        opened.loader().stream().err(),
                        opened.loader().inspect().err(),
                        opened.loader().batches(Batching::new()).err(),
                    ];
                    told.lock().unwrap().extend(errors.map(|error| error.unwrap().to_string()));
                }
            };
            let loader = Loader::new(device.clone()).files([&path]);
            let loader = match by_dtype {
                true => loader.dtype_by(move |info| {
                    ask(info);
                    None
                }),
                false => loader.cut_by(move |info| {
                    ask(info);
                    None
                }),
            };
            let checkpoint = loader.open().unwrap();
            *opened.lock().unwrap() = Some(checkpoint.clone());
            assert_eq!(checkpoint.load_tensor("b").unwrap().to_host().unwrap(), tensors[1].bytes);
            // The checkpoint owns the rule, which must not keep the checkpoint.
            drop(opened.lock().unwrap().take());
            let refused = std::mem::take(&mut *refused.lock().unwrap());
            assert_eq!(refused.len(), 7);
            let names_all = |error: &String| error.contains("asks the same rule") && error.contains("\"b\"");
            assert!(
                refused.iter().any(names_all) && refused.iter().all(|error| error.contains("the same rule")),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn a_selection_may_load_from_an_open_checkpoint_while_it_is_asked() {
    let tensors = [bytes_tensor("a", 100), bytes_tensor("b", 50)];
    let (_folder, path) = single(&tensors);
    for device in devices() {
        let opened = Loader::new(device).files([&path]).open().unwrap();
        let own = opened.clone();
        let wants = move |info: &TensorInfo| own.load_tensor(&info.name).unwrap().nbytes() == 50;
        assert_holds(&opened.loader().select(wants).load().unwrap(), &tensors[1..]);
    }
}
