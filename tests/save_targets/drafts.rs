//! Sets of files, and what changes between the first look and the commit.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use tensorhold::save::{Durability, Saver, shard_paths};
use tensorhold::{Device, Error, Loader};

use crate::scene::*;
use crate::support::fork::in_child;
use crate::support::{Spec, bytes_tensor};

pub(crate) fn all_paths_are_looked_at_first() {
    for wrong in ["m-00003-of-00003.safetensors", "m.safetensors.index.json"] {
        let folder = folder();
        let base = folder.path().join("m");
        fs::write(&shard_paths(&base, 3).unwrap()[0], "before").unwrap();
        make_fifo(&folder.path().join(wrong));
        let before = contents(folder.path());
        assert_refused(save_set(&base), "a FIFO");
        assert_eq!(contents(folder.path()), before);
    }
}

pub(crate) fn what_takes_a_name_stays() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 5] = [
        ("a FIFO", make_fifo),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
        ("a directory", |path| fs::create_dir(path).unwrap()),
        ("a link to \"/dev\", a directory", |path| symlink("/dev", path).unwrap()),
        ("elsewhere", |path| symlink("elsewhere", path).unwrap()),
    ];
    for (what, make) in kinds {
        for exists in [false, true] {
            let folder = folder();
            let paths = shard_paths(folder.path().join("m"), 3).unwrap();
            fs::write(&paths[0], "before").unwrap();
            if exists {
                fs::write(&paths[2], "before").unwrap();
            }
            let draft = draft(&paths).unwrap();
            if exists {
                fs::remove_file(&paths[2]).unwrap();
            }
            make(&paths[2]);
            let taken = contents(folder.path()).remove(&paths[2]);
            assert_refused(draft.commit(Durability::Cached), what);
            let after = contents(folder.path());
            assert_eq!(
                (after.len(), after.get(&paths[2]), &*after[&paths[0]].3),
                (2, taken.as_ref(), &b"before"[..])
            );
        }
    }
    // A link that leads elsewhere by now, and a folder that is another one.
    let folder = folder();
    let [link, inner] = ["link", "inner"].map(|name| folder.path().join(name));
    symlink("one", &link).unwrap();
    let linked = draft(std::slice::from_ref(&link)).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("two", &link).unwrap();
    assert_refused(linked.commit(Durability::Cached), "two");
    fs::create_dir(&inner).unwrap();
    let within = draft(&[inner.join("file")]).unwrap();
    fs::rename(&inner, folder.path().join("moved")).unwrap();
    fs::create_dir(&inner).unwrap();
    assert!(within.commit(Durability::Cached).is_err());
    assert!(contents(&inner).is_empty());
}

pub(crate) fn a_regular_file_may_take_the_name() {
    let folder = folder();
    let path = folder.path().join("file");
    let [first, second] = [(), ()].map(|()| draft(std::slice::from_ref(&path)).unwrap());
    second.commit(Durability::Cached).unwrap();
    let id = fs::metadata(first.temporary_paths().next().unwrap()).unwrap().ino();
    first.commit(Durability::Cached).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), id);
    assert_eq!(contents(folder.path()).len(), 1);
}

pub(crate) fn saves_at_the_same_time_succeed() {
    let folder = folder();
    let path = folder.path().join("file");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| drop(save_to(&path).unwrap())));
        }
        // Files that are gone when they are looked at.
        scope.spawn(|| (0..200).for_each(|_| drop(fs::remove_file(&path))));
    });
    save_to(&path).unwrap();
    assert_saved(&path);
    assert_eq!(contents(folder.path()).len(), 1);
}

pub(crate) fn many_files_need_few_descriptors() {
    let folder = folder();
    in_child(|| {
        let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
        // SAFETY: the limit is there.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
        let specs: Vec<Spec> = (0..2000).map(|n| bytes_tensor(&format!("t{n}"), 10 + n % 7)).collect();
        let saver = Saver::new().shards(1000).index().threads(8);
        let saved = saver.save(folder.path().join("m"), specs.iter().map(item)).unwrap();
        assert_eq!((saved.files.len(), contents(folder.path()).len()), (1000, 1001));
    });
    let loaded = Loader::new(Device::host()).checkpoint(folder.path()).unwrap().load().unwrap();
    assert_eq!(loaded.len(), 2000);
}

pub(crate) fn drafts_do_not_follow_the_working_directory() {
    let folder = folder();
    in_child(|| {
        std::env::set_current_dir(folder.path()).unwrap();
        let draft = draft(&["file".into()]).unwrap();
        std::env::set_current_dir("/").unwrap();
        let start = draft.plans()[0].ranges().next().unwrap().start;
        draft.write_at(0, start, &[7; 10]).unwrap();
        assert_eq!(draft.commit(Durability::Synced).unwrap(), [PathBuf::from("file")]);
    });
    assert_eq!(contents(folder.path()).into_keys().collect::<Vec<_>>(), [folder.path().join("file")]);
}

/// A save of two files, the second of which cannot be renamed: its folder takes new names, but gives none up.
pub(crate) fn a_failed_set_leaves_the_old_files() {
    let folder = folder();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name).join("file"));
    for file in [&first, &second] {
        fs::create_dir(file.parent().unwrap()).unwrap();
    }
    for exists in [true, false] {
        if exists {
            fs::write(&first, "before").unwrap();
        } else {
            fs::remove_file(&first).unwrap();
        }
        let draft = draft(&[first.clone(), second.clone()]).unwrap();
        let closed = AppendOnly::new(second.parent().unwrap());
        let error = draft.commit(Durability::Cached).unwrap_err();
        drop(closed);
        assert!(
            matches!(&error, Error::Io { operation: "rename to", path, .. } if *path == second),
            "{error}"
        );
        let names: Vec<_> =
            fs::read_dir(first.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, if exists { vec![first.clone()] } else { vec![] });
        if exists {
            assert_eq!(fs::read(&first).unwrap(), b"before");
        }
    }
}

/// A folder that cannot be opened cannot be written back: that is known before anything has its name.
pub(crate) fn an_unreadable_folder_loses_nothing() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, "before").unwrap();
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o300)).unwrap();
    as_nobody(&[], || {
        let error = draft(std::slice::from_ref(&path)).unwrap().commit(Durability::Synced).unwrap_err();
        assert!(error.to_string().contains("permission denied"), "{error}");
    });
    assert_eq!(fs::read(&path).unwrap(), b"before");
    // Without the wish to write it back, the folder need not be opened.
    as_nobody(&[], || assert_saved(&save_to(&path).unwrap().files[0]));
}

/// A folder in which names are only made, for as long as this lives.
struct AppendOnly(fs::File, IFlags);

impl AppendOnly {
    fn new(folder: &Path) -> Self {
        let folder = fs::File::open(folder).unwrap();
        let flags = ioctl_getflags(&folder).unwrap();
        ioctl_setflags(&folder, flags | IFlags::APPEND).unwrap();
        Self(folder, flags)
    }
}

impl Drop for AppendOnly {
    fn drop(&mut self) {
        ioctl_setflags(&self.0, self.1).unwrap();
    }
}
