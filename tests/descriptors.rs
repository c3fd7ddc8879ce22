//! Checkpoints of more files than a process may open. Each test runs again in a process of its own with a soft and hard limit on open files.

mod support;

use std::ops::ControlFlow;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Spec, assert_holds, bytes_tensor, devices, drop_cached, write};
use tempfile::TempDir;
use tensorhold::{Backend, BackendKind, Batching, Device, Error, Loader};

/// The most descriptors that the library may have open.
const MOST: usize = 128;

const LIMITED: &str = "TENSORHOLD_TEST_LIMITED";

const BACKENDS: [Backend; 4] = [
    Backend::Auto,
    Backend::Require(BackendKind::Buffered),
    Backend::Require(BackendKind::Direct),
    Backend::Require(BackendKind::IoUring),
];

/// Runs `work` in a process of its own that may have `files` files open.
fn limited(files: u64, test: &str, work: impl FnOnce()) {
    if env::var_os(LIMITED).is_some() {
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((limit.current, limit.maximum), (Some(files), Some(files)));
        return work();
    }
    let mut again = Command::new(env::current_exe().unwrap());
    again.args([test, "--exact", "--nocapture"]).env(LIMITED, "1");
    let limit = move || {
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: Some(files) })?;
        Ok(())
    };
    // SAFETY: the child calls one function of the system before it becomes the program.
    let done = unsafe { again.pre_exec(limit) }.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && out.contains("1 passed"), "{out}{err}");
}

/// How many descriptors this process has open.
fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// The most descriptors that were open, beside those that are open when this is made.
#[derive(Clone)]
struct Peak {
    before: usize,
    most: Arc<AtomicUsize>,
}

impl Peak {
    fn new() -> Self {
        Self { before: open_files(), most: Arc::default() }
    }

    fn look(&self) {
        self.most.fetch_max(open_files().saturating_sub(self.before), Ordering::Relaxed);
    }

    #[track_caller]
    fn assert_within(&self, most: usize) {
        self.look();
        let peak = self.most.load(Ordering::Relaxed);
        assert!(peak <= most, "{peak} descriptors, expected at most {most}");
    }
}

fn name(number: usize) -> String {
    format!("t{number}")
}

/// A checkpoint of `files` files with one tensor each, on a disk and written back.
fn checkpoint(files: usize) -> (TempDir, Vec<Spec>) {
    let disk = concat!(env!("CARGO_MANIFEST_DIR"), "/target");
    fs::create_dir_all(disk).unwrap();
    let folder = tempfile::tempdir_in(disk).unwrap();
    let tensors: Vec<Spec> = (0..files).map(|number| bytes_tensor(&name(number), 9 + number % 7)).collect();
    for (number, tensor) in tensors.iter().enumerate() {
        write(&shard(folder.path(), number, files), std::slice::from_ref(tensor));
    }
    rustix::fs::syncfs(fs::File::open(folder.path()).unwrap()).unwrap();
    (folder, tensors)
}

fn shard(folder: &Path, number: usize, files: usize) -> PathBuf {
    folder.join(format!("model-{:05}-of-{files:05}.safetensors", number + 1))
}

/// Loads in each way, counting descriptors.
fn loads_in_every_way(folder: &Path, tensors: &[Spec], peak: &Peak) {
    let files = tensors.len();
    let counts = || {
        let peak = peak.clone();
        move |_: &_| {
            peak.look();
            ControlFlow::Continue(())
        }
    };
    for device in devices() {
        for backend in BACKENDS {
            if backend == Backend::Auto {
                (0..files).step_by(2).for_each(|number| drop_cached(&shard(folder, number, files), 0, 0));
            }
            let loader = || Loader::new(device.clone()).backend(backend).progress(counts());
            let weights = loader().checkpoint(folder).unwrap().load().unwrap();
            assert_holds(&weights, tensors);
        }
        let loader = || Loader::new(device.clone()).checkpoint(folder).unwrap().progress(counts());
        let mut stream = loader().stream().unwrap();
        assert_eq!(stream.by_ref().inspect(|_| peak.look()).map(Result::unwrap).count(), files);
        assert_holds(&stream.finish().unwrap(), tensors);
        let batching = Batching::new().max_batch_bytes(900);
        let batches = loader().batches(batching).unwrap();
        assert_eq!(batches.inspect(|_| peak.look()).map(|batch| batch.unwrap().len()).sum::<usize>(), files);
    }
}

/// Opens the checkpoint, and reads single tensors, here and there.
fn reads_single_tensors(folder: &Path, tensors: &[Spec], peak: &Peak) {
    let opened = Loader::new(Device::host()).checkpoint(folder).unwrap().open().unwrap();
    peak.look();
    let files = tensors.len();
    for number in (0..files).step_by(7).chain((0..files).rev().step_by(11)).chain([3; 10]) {
        let tensor = opened.load_tensor(&name(number)).unwrap();
        assert_eq!(tensor.as_bytes().unwrap(), tensors[number].bytes);
        peak.look();
    }
    assert_holds(&opened.load_tensors(tensors.iter().map(|tensor| &tensor.name)).unwrap(), tensors);
    opened.check_unchanged().unwrap();
    let inspection = Loader::new(Device::host()).checkpoint(folder).unwrap().inspect().unwrap();
    assert_eq!(inspection.files.len(), files);
    peak.look();
}

#[test]
fn five_thousand_files_load_where_256_may_be_open() {
    limited(256, "five_thousand_files_load_where_256_may_be_open", || {
        let (folder, tensors) = checkpoint(5000);
        let peak = Peak::new();
        loads_in_every_way(folder.path(), &tensors, &peak);
        reads_single_tensors(folder.path(), &tensors, &peak);
        peak.assert_within(MOST);
    });
}

#[test]
fn two_hundred_files_load_where_64_may_be_open() {
    limited(64, "two_hundred_files_load_where_64_may_be_open", || {
        let (folder, tensors) = checkpoint(200);
        let peak = Peak::new();
        loads_in_every_way(folder.path(), &tensors, &peak);
        reads_single_tensors(folder.path(), &tensors, &peak);
        peak.assert_within(32);
    });
}

#[test]
fn a_load_takes_no_more_than_128_descriptors_where_many_more_may_be_open() {
    limited(1024, "a_load_takes_no_more_than_128_descriptors_where_many_more_may_be_open", || {
        let (folder, tensors) = checkpoint(600);
        let peak = Peak::new();
        loads_in_every_way(folder.path(), &tensors, &peak);
        reads_single_tensors(folder.path(), &tensors, &peak);
        peak.assert_within(MOST);
    });
}

#[test]
fn checkpoints_load_at_once_where_few_files_may_be_open() {
    limited(64, "checkpoints_load_at_once_where_few_files_may_be_open", || {
        let (folder, tensors) = checkpoint(100);
        std::thread::scope(|scope| {
            for backend in BACKENDS {
                let (folder, tensors) = (folder.path(), &tensors);
                scope.spawn(move || {
                    for device in devices() {
                        let loader = Loader::new(device).backend(backend).threads(16);
                        assert_holds(&loader.checkpoint(folder).unwrap().load().unwrap(), tensors);
                    }
                });
            }
        });
    });
}

#[test]
fn idle_files_are_closed_for_a_process_that_has_other_uses_for_its_descriptors() {
    limited(64, "idle_files_are_closed_for_a_process_that_has_other_uses_for_its_descriptors", || {
        let (folder, tensors) = checkpoint(40);
        let entries = (0..40).map(|number| {
            let file = shard(folder.path(), number, 40);
            format!("{:?}: {:?}", name(number), file.file_name().unwrap())
        });
        let map = entries.collect::<Vec<_>>().join(", ");
        fs::write(
            folder.path().join("model.safetensors.index.json"),
            format!(r#"{{"weight_map": {{{map}}}}}"#),
        )
        .unwrap();
        let opened = Loader::new(Device::host()).checkpoint(folder.path()).unwrap().open().unwrap();
        // All that the process may open.
        let others: Vec<fs::File> = (0..).map_while(|_| fs::File::open("/dev/null").ok()).collect();
        for tensor in &tensors {
            let loaded = opened.load_tensor(&tensor.name).unwrap();
            assert_eq!(loaded.as_bytes().unwrap(), tensor.bytes);
        }
        assert!(others.len() > 30);
        // So they are for a folder that is listed, and for an index.
        let index = folder.path().join("model.safetensors.index.json");
        for path in [folder.path(), &index] {
            let loaded = Loader::new(Device::host()).checkpoint(path).unwrap().load().unwrap();
            assert_eq!(loaded.len(), tensors.len());
        }
    });
}

#[test]
fn where_no_file_can_be_opened_the_error_names_the_limit() {
    limited(64, "where_no_file_can_be_opened_the_error_names_the_limit", || {
        let (folder, _) = checkpoint(3);
        let files: Vec<PathBuf> = (0..3).map(|number| shard(folder.path(), number, 3)).collect();
        let others: Vec<fs::File> = (0..).map_while(|_| fs::File::open("/dev/null").ok()).collect();
        let load = || Loader::new(Device::host()).files(&files).load();
        let error = load().unwrap_err();
        assert!(matches!(error, Error::Io { operation: "open", .. }), "{error:?}");
        let message = error.to_string();
        assert!(message.contains("may open 64 files") && message.contains("RLIMIT_NOFILE"), "{message}");
        assert!(message.contains("ulimit -n") && !message.contains("disk"), "{message}");
        // Nothing is left behind: when there is room, it loads.
        drop(others);
        assert_eq!(load().unwrap().len(), 3);
    });
}

#[test]
fn a_file_that_was_replaced_while_its_descriptor_was_closed_is_an_error() {
    limited(64, "a_file_that_was_replaced_while_its_descriptor_was_closed_is_an_error", || {
        let (folder, tensors) = checkpoint(100);
        let opened = Loader::new(Device::host()).checkpoint(folder.path()).unwrap().open().unwrap();
        let path = shard(folder.path(), 0, 100);
        let other = path.with_extension("other");
        fs::copy(&path, &other).unwrap();
        fs::rename(&other, &path).unwrap();
        let error = opened.load_tensor("t0").unwrap_err();
        assert!(matches!(error, Error::FileChanged { .. }), "{error}");
        assert_eq!(opened.load_tensor("t1").unwrap().as_bytes().unwrap(), tensors[1].bytes);
    });
}
