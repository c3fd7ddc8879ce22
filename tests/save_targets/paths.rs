//! What a path leads to: regular files, links, and all that a save must leave alone.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use rustix::fs::{FileType, IFlags, ioctl_getflags, ioctl_setflags};
use tensorhold::Error;
use tensorhold::save::shard_paths;

use crate::scene::*;

pub(crate) fn other_files_stay() {
    let folder = folder();
    let mut others = other_files(folder.path());
    // A save that failed this test as root would replace the machine's own: there are others for root.
    if !is_root() {
        others
            .extend([("/dev/null".into(), "a character device"), ("/dev/zero".into(), "a character device")]);
    }
    let before = contents(folder.path());
    for (path, what) in &others {
        assert_refused(save_to(path), what);
        assert_refused(draft(std::slice::from_ref(path)), what);
    }
    assert_eq!(contents(folder.path()), before);
}

pub(crate) fn device_nodes_stay() {
    let folder = folder();
    let nodes = [("char", FileType::CharacterDevice), ("block", FileType::BlockDevice)];
    for (name, kind) in nodes {
        assert!(make_node(&folder.path().join(name), kind));
        fs::set_permissions(folder.path().join(name), Permissions::from_mode(0o666)).unwrap();
        symlink(name, folder.path().join(format!("{name}-link"))).unwrap();
    }
    let before = contents(folder.path());
    let refuse = || {
        for (name, what) in [("char", "a character device"), ("block", "a block device")] {
            assert_refused(save_to(folder.path().join(name)), what);
            assert_refused(save_to(folder.path().join(format!("{name}-link"))), what);
        }
    };
    refuse();
    as_nobody(&[], refuse);
    assert_eq!(contents(folder.path()), before);
}

pub(crate) fn links_to_other_files_are_refused() {
    let folder = folder();
    let others = other_files(folder.path());
    let mut links = Vec::new();
    for (path, what) in &others {
        let name = path.file_name().unwrap().to_str().unwrap();
        let (link, chain) =
            (folder.path().join(format!("{name}-1")), folder.path().join(format!("{name}-2")));
        symlink(name, &link).unwrap();
        symlink(&link, &chain).unwrap();
        links.extend([(link, *what), (chain, what)]);
    }
    if !is_root() {
        let null = folder.path().join("null");
        symlink("/dev/null", &null).unwrap();
        links.push((null, "a character device"));
    }
    let before = contents(folder.path());
    for (link, what) in &links {
        assert_refused(save_to(link), what);
        assert_refused(save_to(link), "a link to");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    for descriptor in [reader.as_raw_fd(), writer.as_raw_fd()] {
        assert_refused(save_to(format!("/proc/self/fd/{descriptor}")), "a FIFO");
        assert_refused(save_to(format!("/dev/fd/{descriptor}")), "a FIFO");
    }
    // A regular file that has no name any more.
    let deleted = tempfile::tempfile_in(folder.path()).unwrap();
    assert_refused(save_to(format!("/proc/self/fd/{}", deleted.as_raw_fd())), "whose name is gone");
    assert_eq!(contents(folder.path()), before);
}

pub(crate) fn links_are_followed() {
    let (folder, other) = (folder(), folder());
    let [file, link, chain, fresh, far] =
        ["file", "link", "chain", "fresh", "far"].map(|name| folder.path().join(name));
    fs::write(&file, "before").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    symlink("file", &link).unwrap();
    symlink("../../../../..".to_owned() + link.to_str().unwrap(), &chain).unwrap();
    symlink("new", &fresh).unwrap();
    symlink(other.path().join("elsewhere"), &far).unwrap();
    for (path, real) in [
        (&link, file.clone()),
        (&chain, file.clone()),
        (&fresh, folder.path().join("new")),
        (&far, other.path().join("elsewhere")),
    ] {
        let before = fs::read_link(path).unwrap();
        if real == file {
            fs::write(&file, "before").unwrap();
        }
        let saved = save_to(path).unwrap();
        assert_eq!(saved.files, std::slice::from_ref(path));
        assert_eq!(fs::read_link(path).unwrap(), before, "the link was replaced");
        assert!(fs::symlink_metadata(&real).unwrap().is_file());
        assert_saved(&real);
    }
    assert_eq!(mode(&file), 0o640);
    // By the descriptor of an open file that has a name.
    let open = File::open(&file).unwrap();
    fs::write(&file, "before").unwrap();
    save_to(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap();
    assert_saved(&file);
    assert_eq!((contents(folder.path()).len(), contents(other.path()).len()), (6, 1));
    // A file of a set.
    let second = &shard_paths(folder.path().join("m"), 3).unwrap()[1];
    symlink(other.path().join("shard"), second).unwrap();
    save_set(&folder.path().join("m")).unwrap();
    assert!(second.is_symlink() && other.path().join("shard").is_file());
}

pub(crate) fn links_that_lead_nowhere_are_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    for (name, to) in [
        ("loop", "loop"),
        ("one", "two"),
        ("two", "one"),
        ("gone", "no/such"),
        ("slash", "new/"),
        ("up", ".."),
        ("through", "file/x"),
    ] {
        symlink(to, path(name)).unwrap();
    }
    fs::write(path("file"), "before").unwrap();
    for number in 1..60 {
        let to = if number == 1 { "end".to_owned() } else { format!("many{}", number - 1) };
        symlink(to, path(&format!("many{number}"))).unwrap();
    }
    let before = contents(folder.path());
    assert_refused(save_to(path("loop")), "form a loop");
    assert_refused(save_to(path("one")), "form a loop");
    assert_refused(save_to(path("many59")), "too many");
    assert_refused(save_to(path("loop/x")), "form a loop");
    assert_refused(save_to(path("gone")), "no\" does not exist");
    assert_refused(save_to(path("slash")), "the path ends in a directory");
    assert_refused(save_to(path("up")), "a directory");
    assert_refused(save_to(path("through")), "a part of the path before its last is a file");
    assert_eq!(contents(folder.path()), before);
}

pub(crate) fn only_the_named_link_changes() {
    let folder = folder();
    let [file, other] = ["file", "other"].map(|name| folder.path().join(name));
    fs::write(&file, "before").unwrap();
    fs::hard_link(&file, &other).unwrap();
    save_to(&file).unwrap();
    assert_saved(&file);
    assert_eq!(fs::read(&other).unwrap(), b"before");
    assert_eq!(fs::metadata(&other).unwrap().nlink(), 1);
}

pub(crate) fn paths_without_a_file_are_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "before").unwrap();
    let before = contents(folder.path());
    let long = "n".repeat(300);
    for (path, words) in [
        (PathBuf::new(), "the path is empty"),
        (path("new/"), "ends in a directory"),
        (path("."), "ends in a directory"),
        (path(".."), "ends in a directory"),
        (path("file/"), "ends in a directory"),
        ("/".into(), "ends in a directory"),
        (path("no/such"), "no\" does not exist; create it"),
        (path("file/new"), "is a file, expected directories"),
        (path("a\0b"), "a NUL byte"),
        (path(&long), "too long"),
    ] {
        assert_refused(save_to(path), words);
    }
    assert_eq!(contents(folder.path()), before);
    let error = save_to(path("no/such")).unwrap_err();
    assert!(
        matches!(error, Error::Target { source: Some(source), .. } if source.kind() == ErrorKind::NotFound)
    );
}

pub(crate) fn folders_are_found() {
    let folder = folder();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    symlink("inner", folder.path().join("link")).unwrap();
    let open = File::open(&inner).unwrap();
    for (number, parent) in [
        folder.path().join("link"),
        folder.path().join("link/../inner"),
        folder.path().join("inner/."),
        format!("/proc/self/fd/{}", open.as_raw_fd()).into(),
    ]
    .iter()
    .enumerate()
    {
        save_to(parent.join(number.to_string())).unwrap();
        assert_saved(&inner.join(number.to_string()));
    }
}

pub(crate) fn two_paths_to_one_file_are_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("file"), "before").unwrap();
    fs::hard_link(path("file"), path("hard")).unwrap();
    symlink("file", path("soft")).unwrap();
    symlink("new", path("dangling")).unwrap();
    symlink(".", path("here")).unwrap();
    let before = contents(folder.path());
    for [one, other] in [
        ["file", "hard"],
        ["file", "soft"],
        ["hard", "soft"],
        ["new", "dangling"],
        ["new", "here/new"],
        ["new", "here/here/dangling"],
    ] {
        let error = draft(&[path(one), path(other)]).unwrap_err();
        assert!(matches!(error, Error::Option { option: "paths", .. }), "{error}");
        assert!(error.to_string().contains("which are one file"), "{error}");
    }
    assert_eq!(contents(folder.path()), before);
    // The index, too.
    let base = path("m");
    symlink("m.safetensors.index.json", &shard_paths(&base, 3).unwrap()[1]).unwrap();
    assert!(matches!(save_set(&base), Err(Error::Option { option: "paths", .. })));
}

pub(crate) fn folders_of_others_are_refused() {
    let folder = folder();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("file"), "before").unwrap();
    fs::set_permissions(inner.join("file"), Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(&inner, Permissions::from_mode(0o755)).unwrap();
    as_nobody(&[], || {
        assert_refused(save_to(inner.join("new")), "may not create files in its folder");
        assert_refused(save_to(inner.join("file")), "may not create files in its folder");
    });
    fs::set_permissions(&inner, Permissions::from_mode(0o700)).unwrap();
    as_nobody(&[], || assert_refused(save_to(inner.join("file")), "may not search a directory"));
    assert_eq!(contents(&inner).len(), 1);
}

pub(crate) fn mount_points_stay() {
    let folder = folder();
    let [file, other] = ["file", "other"].map(|name| folder.path().join(name));
    fs::write(&file, "before").unwrap();
    fs::write(&other, "other").unwrap();
    with_own_mounts(|| {
        mount(Some(&other), &file, libc::MS_BIND);
        assert_refused(save_to(&file), "a mount point");
        assert_eq!((fs::read(&file).unwrap(), contents(folder.path()).len()), (b"other".to_vec(), 2));
    });
    assert_eq!(fs::read(&file).unwrap(), b"before");
}

pub(crate) fn read_only_systems_are_refused() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "before").unwrap();
    with_own_mounts(|| {
        mount(Some(folder.path()), folder.path(), libc::MS_BIND);
        mount(None, folder.path(), libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY);
        assert_refused(save_to(&file), "read-only");
        assert_refused(save_to(folder.path().join("new")), "read-only");
    });
    assert_eq!(contents(folder.path()).len(), 1);
}

pub(crate) fn files_kept_by_a_sticky_folder_are_refused() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, "before").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
    as_nobody(&[], || assert_refused(save_to(&path), "sticky"));
    assert_eq!(contents(folder.path()).len(), 1);
}

pub(crate) fn files_with_attributes_are_refused() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, "before").unwrap();
    let file = File::open(&path).unwrap();
    let flags = ioctl_getflags(&file).unwrap();
    for attribute in [IFlags::APPEND, IFlags::IMMUTABLE] {
        ioctl_setflags(&file, flags | attribute).unwrap();
        let refused = save_to(&path);
        ioctl_setflags(&file, flags).unwrap();
        assert_refused(refused, "chattr");
    }
    assert_eq!(fs::read(&path).unwrap(), b"before");
}

pub(crate) fn a_link_to_a_deleted_file_leads_to_no_other() {
    let folder = folder();
    let [path, other] = ["file", "file (deleted)"].map(|name| folder.path().join(name));
    fs::write(&path, "before").unwrap();
    fs::write(&other, "other").unwrap();
    let open = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert_refused(save_to(format!("/proc/self/fd/{}", open.as_raw_fd())), "name is gone");
    assert_eq!((fs::read(&other).unwrap(), contents(folder.path()).len()), (b"other".to_vec(), 1));
}
