//! Sets of files, and what changes between the first look and the commit.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tensorhold::save::{Durability, Saver, shard_paths};
use tensorhold::{Device, Loader};

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
