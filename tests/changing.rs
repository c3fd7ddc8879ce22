//! Files that change while they are loaded: whatever happens to a file, and whichever way it is read, the load says that it
//! changed.

mod support;

use std::fs::{self, File, FileTimes};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use support::{Spec, assert_all_back, bytes_tensor, devices, drop_cached, on_disk, pool_for, write};
use tensorhold::{Backend, BackendKind, Device, Error, Loader, Weights};

const BACKENDS: [Backend; 4] = [
    Backend::Auto,
    Backend::Require(BackendKind::Buffered),
    Backend::Require(BackendKind::Direct),
    Backend::Require(BackendKind::IoUring),
];

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Change {
    Written,
    /// And the time of its last modification put back.
    WrittenAndPutBack,
    Grown,
    Truncated,
    /// To nothing.
    Emptied,
    Replaced,
    /// By a folder.
    ReplacedByAFolder,
    /// By a link that leads to itself.
    ReplacedByALoop,
    Removed,
    /// With its folder.
    FolderRemoved,
}

const CHANGES: [Change; 10] = [
    Change::Written,
    Change::WrittenAndPutBack,
    Change::Grown,
    Change::Truncated,
    Change::Emptied,
    Change::Replaced,
    Change::ReplacedByAFolder,
    Change::ReplacedByALoop,
    Change::Removed,
    Change::FolderRemoved,
];

impl Change {
    fn happen(self, path: &Path) -> io::Result<()> {
        let open = || File::options().write(true).open(path);
        let (before, aside) = (fs::metadata(path)?, path.with_extension("aside"));
        match self {
            Self::Written => {
                open()?.write_all_at(b"other", 100_000)?;
                open()?.set_modified(std::time::SystemTime::UNIX_EPOCH)?;
            }
            Self::WrittenAndPutBack => {
                // The clock of files ticks seldom: until its time is another.
                while fs::metadata(path)?.ctime_nsec() == before.ctime_nsec() {
                    open()?.write_all_at(b"other", 100_000)?;
                    open()?.set_times(FileTimes::new().set_modified(before.modified()?))?;
                }
                assert_eq!(fs::metadata(path)?.modified()?, before.modified()?);
            }
            Self::Grown => open()?.set_len(before.len() + 1)?,
            Self::Truncated => open()?.set_len(before.len() / 2 + 1)?,
            Self::Emptied => open()?.set_len(0)?,
            Self::Replaced => {
                fs::copy(path, &aside)?;
                fs::rename(aside, path)?;
            }
            Self::ReplacedByAFolder => {
                fs::rename(path, &aside)?;
                fs::create_dir(path)?;
            }
            Self::ReplacedByALoop => {
                fs::remove_file(path)?;
                std::os::unix::fs::symlink(path, path)?;
            }
            Self::Removed => fs::remove_file(path)?,
            Self::FolderRemoved => fs::remove_dir_all(path.parent().unwrap())?,
        }
        Ok(())
    }
}

/// When it happens.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// After the file was opened and before a load of it begins.
    Opened,
    /// In the load, before its first read.
    Planned,
}

fn tensors() -> Vec<Spec> {
    let sizes = [300_000, 100, 200_017];
    sizes.iter().enumerate().map(|(n, &size)| bytes_tensor(&format!("t{n}"), size)).collect()
}

fn load(
    device: &Device,
    path: &Path,
    backend: Backend,
    moment: Moment,
    happen: impl Fn(&Path) -> io::Result<()> + Send + 'static,
) -> Result<Weights, Error> {
    let pool = pool_for(device);
    let loader = Loader::new(device.clone()).files([path]).backend(backend).pool(&pool);
    let loaded = match moment {
        Moment::Opened => {
            let checkpoint = loader.open().unwrap();
            happen(path).unwrap();
            checkpoint.loader().load()
        }
        Moment::Planned => {
            let changed = path.to_path_buf();
            let happen = move || happen(&changed).unwrap();
            let progress = move |progress: &tensorhold::Progress| {
                if progress.done_bytes == 0 {
                    happen();
                }
                ControlFlow::Continue(())
            };
            loader.progress(progress).load()
        }
    };
    if loaded.is_err() {
        assert_all_back(&pool);
    }
    loaded
}

#[test]
fn a_file_that_changes_before_its_first_read_is_said_to_have_changed_by_every_backend() {
    let tensors = tensors();
    let mut wrong = Vec::new();
    for change in CHANGES {
        for backend in BACKENDS {
            for moment in [Moment::Opened, Moment::Planned] {
                // A way that is required is taken whatever is cached.
                let ways: &[bool] = if backend == Backend::Auto { &[true, false] } else { &[true] };
                for &cached in ways {
                    for device in devices() {
                        let folder =
                            tempfile::tempdir_in(concat!(env!("CARGO_MANIFEST_DIR"), "/target")).unwrap();
                        let path = folder.path().join("model.safetensors");
                        write(&path, &tensors);
                        if !cached {
                            File::open(&path).unwrap().sync_all().unwrap();
                            drop_cached(&path, 0, 0);
                        }
                        let loaded = load(&device, &path, backend, moment, move |path| change.happen(path));
                        if !matches!(&loaded, Err(Error::FileChanged { path: named, .. }) if *named == path) {
                            let said = loaded.map(drop).map_err(|error| error.to_string());
                            wrong
                                .push(format!("{change:?} {backend:?} {moment:?} cached {cached}: {said:?}"));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_file_of_another_mode_or_link_count_is_no_other_file() {
    let tensors = tensors();
    for backend in BACKENDS {
        for moment in [Moment::Opened, Moment::Planned] {
            for device in devices() {
                let (_folder, path) = on_disk(&tensors);
                drop_cached(&path, 0, 0);
                let happen = |path: &Path| {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o644))?;
                    fs::set_permissions(path, fs::Permissions::from_mode(0o440))?;
                    fs::hard_link(path, path.with_extension("link"))
                };
                let weights = load(&device, &path, backend, moment, happen).unwrap();
                support::assert_holds(&weights, &tensors);
            }
        }
    }
}
