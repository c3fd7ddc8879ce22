//! A save replaces regular files and makes new ones. Whatever else its paths lead to stays as it is.
//!
//! Tests run as root and as another user where root starts them, else as the user who starts them. A test that needs a right or a file system that is not
//! there is ignored, and counted as such.

mod support;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use libtest_mimic::{Arguments, Trial};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, makedev, mknodat, setxattr};
use support::fork::in_child;
use support::{Spec, assert_holds, bytes_tensor};
use tempfile::TempDir;
use tensorhold::save::{Draft, Durability, Entry, Item, PlanOptions, Saved, Saver, plan_shards, shard_paths};
use tensorhold::{DType, Device, Error, Loader};

/// A user, and a group, that owns nothing.
const NOBODY: u32 = 65534;

fn main() {
    let trial = |name: &str, missing: bool, test: fn()| {
        let run = move || {
            test();
            Ok(())
        };
        Trial::test(name, run).with_ignored_flag(missing)
    };
    let everyone = |name: &str, test: fn()| {
        let as_other = move || {
            if is_root() {
                as_nobody(&[], test);
            } else {
                test();
            }
            Ok(())
        };
        [
            trial(&format!("{name}::as_root"), !is_root(), test),
            Trial::test(format!("{name}::as_other"), as_other),
        ]
    };
    let (root, nodes, lists, namespaces) = (is_root(), has_nodes(), has_lists(), has_namespaces());
    let trials = [
        everyone("what_is_not_a_regular_file_stays_as_it_is", other_files_stay),
        everyone("links_to_what_is_not_a_regular_file_are_refused", links_to_other_files_are_refused),
        everyone("links_are_followed_and_stay", links_are_followed),
        everyone("links_that_lead_nowhere_are_refused", links_that_lead_nowhere_are_refused),
        everyone("of_a_file_with_two_names_only_the_named_one_changes", only_the_named_link_changes),
        everyone("paths_that_name_no_file_are_refused", paths_without_a_file_are_refused),
        everyone("a_replaced_file_keeps_its_mode", replaced_files_keep_their_mode),
        everyone("a_new_file_obeys_the_mask", new_files_obey_the_mask),
        everyone("no_one_else_reads_a_private_file_before_it_is_named", private_files_stay_private),
        everyone("all_paths_are_looked_at_before_anything_is_written", all_paths_are_looked_at_first),
        everyone("what_takes_a_name_before_the_commit_stays", what_takes_a_name_stays),
        everyone("a_file_that_is_saved_twice_at_once_is_the_later_one", a_regular_file_may_take_the_name),
        everyone("saves_to_one_path_at_the_same_time_are_no_error", saves_at_the_same_time_succeed),
        everyone("folders_are_found_through_links_and_descriptors", folders_are_found),
        everyone("two_paths_to_one_file_are_refused", two_paths_to_one_file_are_refused),
        everyone("a_thousand_files_need_few_descriptors", many_files_need_few_descriptors),
        everyone("a_draft_stays_where_it_began", drafts_do_not_follow_the_working_directory),
    ];
    let special = [
        trial("device_nodes_stay_as_they_are", !nodes, device_nodes_stay),
        trial("a_replaced_file_keeps_its_owner", !root, replaced_files_keep_their_owner),
        trial("a_replaced_file_keeps_the_group_of_its_user", !root, replaced_files_keep_a_group),
        trial("a_file_that_is_read_only_is_not_replaced", !root, read_only_files_are_refused),
        trial("folders_and_links_of_others_are_refused", !root, folders_of_others_are_refused),
        trial("a_file_that_is_a_mount_point_stays", !namespaces, mount_points_stay),
        trial("a_file_system_that_is_read_only_is_refused", !namespaces, read_only_systems_are_refused),
        trial("an_access_control_list_is_kept", !lists, lists_are_kept),
        trial("a_replaced_file_does_not_inherit_a_list", !lists, lists_are_not_inherited),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials.into_iter().flatten().chain(special).collect()).exit();
}

fn is_root() -> bool {
    // SAFETY: asks for a number.
    unsafe { libc::geteuid() == 0 }
}

/// Does `work` in a child of another user, who is in these groups.
fn as_nobody(groups: &[libc::gid_t], work: impl FnOnce()) {
    in_child(|| {
        // SAFETY: the child has one thread; the groups are there. It ends without going back.
        let left = unsafe {
            libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setresgid(NOBODY, NOBODY, NOBODY) == 0
                && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0
        };
        assert!(left && !is_root());
        work();
    });
}

/// A folder that everyone may use.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    folder
}

fn has_nodes() -> bool {
    let folder = folder();
    make_node(&folder.path().join("node"), FileType::CharacterDevice)
}

fn has_lists() -> bool {
    let folder = folder();
    setxattr(folder.path(), "system.posix_acl_default", &list(0o4), XattrFlags::empty()).is_ok()
}

fn has_namespaces() -> bool {
    is_root()
        && Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success())
}

/// Does `work` in a child whose mounts no one else sees.
fn with_own_mounts(work: impl FnOnce()) {
    in_child(|| {
        // SAFETY: the child has one thread, and asks for numbers.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        mount(None, Path::new("/"), libc::MS_REC | libc::MS_PRIVATE);
        work();
    });
}

fn mount(from: Option<&Path>, to: &Path, flags: libc::c_ulong) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (from, to) = (from.map(text), text(to));
    let from = from.as_ref().map_or(ptr::null(), |from| from.as_ptr());
    // SAFETY: the texts end in NUL, and stay until the call returns.
    let mounted = unsafe { libc::mount(from, to.as_ptr(), ptr::null(), flags, ptr::null()) };
    assert_eq!(mounted, 0, "{}", std::io::Error::last_os_error());
}

/// A node of a device that takes and gives nothing of worth.
fn make_node(path: &Path, kind: FileType) -> bool {
    let device = if kind == FileType::BlockDevice { makedev(7, 200) } else { makedev(1, 3) };
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device).is_ok()
}

fn make_fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
}

fn spec() -> Spec {
    bytes_tensor("t", 100)
}

fn save_to(path: impl Into<PathBuf>) -> Result<Saved, Error> {
    Saver::new().threads(1).save_file(path, [item(&spec())])
}

fn item(spec: &Spec) -> Item<'_> {
    Item::bytes(Entry::new(&spec.name, DType::U8, &spec.shape).unwrap(), &spec.bytes).unwrap()
}

/// A set of three files and an index.
fn save_set(base: &Path) -> Result<Saved, Error> {
    let specs = [bytes_tensor("a", 10), bytes_tensor("b", 20), bytes_tensor("c", 30)];
    Saver::new().shards(3).index().threads(1).save(base, specs.iter().map(item))
}

fn draft(paths: &[PathBuf]) -> Result<Draft, Error> {
    let entries: Vec<Entry> =
        (0..paths.len()).map(|n| Entry::new(format!("t{n}"), DType::U8, &[10]).unwrap()).collect();
    Draft::create(plan_shards(&entries, paths, &PlanOptions::new()).unwrap(), 0)
}

fn assert_saved(path: &Path) {
    assert_holds(&Loader::new(Device::host()).files([path]).load().unwrap(), &[spec()]);
}

#[track_caller]
fn assert_refused<T>(result: Result<T, Error>, words: &str) {
    let Err(error) = result else { panic!("it was saved, expected an error of {words:?}") };
    let message = error.to_string();
    assert!(matches!(error, Error::Target { .. }) && message.contains(words), "{message}");
    assert!(message.contains(';') || message.contains("expected"), "{message}");
}

/// All that is in a folder: kinds, identities, modes, contents and links.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (u64, u32, u64, Vec<u8>)> {
    let about = |entry: fs::DirEntry| {
        let (path, metadata) = (entry.path(), entry.metadata().unwrap());
        let held = match metadata.file_type() {
            kind if kind.is_file() => fs::read(&path).unwrap_or_default(),
            kind if kind.is_symlink() => fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        (path, (metadata.ino(), metadata.mode(), metadata.rdev(), held))
    };
    fs::read_dir(folder).unwrap().map(|entry| about(entry.unwrap())).collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A directory, a FIFO and a socket, with what they are called in errors.
fn other_files(folder: &Path) -> Vec<(PathBuf, &'static str)> {
    let [directory, fifo, socket] = ["directory", "fifo", "socket"].map(|name| folder.join(name));
    fs::create_dir(&directory).unwrap();
    make_fifo(&fifo);
    drop(UnixListener::bind(&socket).unwrap());
    vec![(directory, "a directory"), (fifo, "a FIFO"), (socket, "a socket")]
}

fn other_files_stay() {
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

fn device_nodes_stay() {
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

fn links_to_other_files_are_refused() {
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

fn links_are_followed() {
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

fn links_that_lead_nowhere_are_refused() {
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

fn only_the_named_link_changes() {
    let folder = folder();
    let [file, other] = ["file", "other"].map(|name| folder.path().join(name));
    fs::write(&file, "before").unwrap();
    fs::hard_link(&file, &other).unwrap();
    save_to(&file).unwrap();
    assert_saved(&file);
    assert_eq!(fs::read(&other).unwrap(), b"before");
    assert_eq!(fs::metadata(&other).unwrap().nlink(), 1);
}

fn paths_without_a_file_are_refused() {
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

fn replaced_files_keep_their_mode() {
    let folder = folder();
    for (before, after) in [
        (0o600, 0o600),
        (0o664, 0o664),
        (0o640, 0o640),
        (0o666, 0o666),
        (0o200, 0o200),
        (0o777, 0o777),
        (0o4755, 0o755),
        (0o2755, 0o755),
        (0o2644, 0o2644),
    ] {
        for durability in [Durability::Cached, Durability::Synced] {
            let path = folder.path().join(format!("{before:o}"));
            fs::write(&path, "before").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
            draft(std::slice::from_ref(&path)).unwrap().commit(durability).unwrap();
            assert_eq!(mode(&path), after, "{before:o} became {:o}", mode(&path));
            fs::remove_file(&path).unwrap();
        }
    }
}

fn new_files_obey_the_mask() {
    let folder = folder();
    for mask in [0o000, 0o022, 0o027, 0o077, 0o277, 0o777] {
        // The mask is one for all threads.
        in_child(|| {
            // SAFETY: sets a number.
            unsafe { libc::umask(mask) };
            let path = folder.path().join(format!("{mask:o}"));
            save_to(&path).unwrap();
            assert_eq!(mode(&path), 0o666 & !mask);
        });
    }
}

fn private_files_stay_private() {
    let folder = folder();
    let path = folder.path().join("file");
    for durability in [Durability::Cached, Durability::Synced] {
        fs::write(&path, "before").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let draft = draft(std::slice::from_ref(&path)).unwrap();
        assert_eq!(draft.temporary_paths().map(mode).collect::<Vec<_>>(), [0o600]);
        // It is replaced as it is by then.
        fs::set_permissions(&path, Permissions::from_mode(0o400 | 0o200)).unwrap();
        draft.commit(durability).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
    // One that comes later, and one that goes.
    let late = folder.path().join("late");
    let draft_of_late = draft(std::slice::from_ref(&late)).unwrap();
    fs::write(&late, "before").unwrap();
    fs::set_permissions(&late, Permissions::from_mode(0o600)).unwrap();
    draft_of_late.commit(Durability::Cached).unwrap();
    assert_eq!(mode(&late), 0o600);
    let draft_of_gone = draft(std::slice::from_ref(&late)).unwrap();
    fs::remove_file(&late).unwrap();
    draft_of_gone.commit(Durability::Cached).unwrap();
    assert_eq!(mode(&late), 0o600);
}

fn all_paths_are_looked_at_first() {
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

fn what_takes_a_name_stays() {
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

fn a_regular_file_may_take_the_name() {
    let folder = folder();
    let path = folder.path().join("file");
    let [first, second] = [(), ()].map(|()| draft(std::slice::from_ref(&path)).unwrap());
    second.commit(Durability::Cached).unwrap();
    let id = fs::metadata(first.temporary_paths().next().unwrap()).unwrap().ino();
    first.commit(Durability::Cached).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().ino(), id);
    assert_eq!(contents(folder.path()).len(), 1);
}

fn saves_at_the_same_time_succeed() {
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

fn folders_are_found() {
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

fn two_paths_to_one_file_are_refused() {
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

fn many_files_need_few_descriptors() {
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

fn drafts_do_not_follow_the_working_directory() {
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

fn replaced_files_keep_their_owner() {
    let folder = folder();
    let path = folder.path().join("file");
    for (before, after) in [(0o640, 0o640), (0o4710, 0o710), (0o2660, 0o2660)] {
        fs::write(&path, "before").unwrap();
        chown(&path, Some(1234), Some(2345)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
        save_to(&path).unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid(), mode(&path)), (1234, 2345, after));
    }
}

fn replaced_files_keep_a_group() {
    let folder = folder();
    let path = folder.path().join("file");
    // A user who is in the group keeps it; of one who is not, the group may do what others could, too.
    let cases = [
        (&[2345][..], 0o660, Ok((2345, 0o660))),
        (&[2345], 0o2660, Ok((2345, 0o2660))),
        (&[], 0o646, Ok((NOBODY, 0o644))),
        (&[], 0o606, Ok((NOBODY, 0o600))),
        (&[], 0o662, Ok((NOBODY, 0o622))),
        (&[], 0o660, Err(ErrorKind::PermissionDenied)),
    ];
    for (groups, before, expected) in cases {
        let _ = fs::remove_file(&path);
        fs::write(&path, "before").unwrap();
        chown(&path, Some(1234), Some(2345)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(before)).unwrap();
        as_nobody(groups, || match (save_to(&path), expected) {
            (Ok(_), Ok(_)) => {}
            (Err(Error::Target { source: Some(source), .. }), Err(kind)) => assert_eq!(source.kind(), kind),
            (found, _) => panic!("{found:?}, expected {expected:?}"),
        });
        if let Ok((group, after)) = expected {
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid(), mode(&path)), (NOBODY, group, after), "of {before:o}");
        }
    }
}

fn read_only_files_are_refused() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, "before").unwrap();
    chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let before = contents(folder.path());
    as_nobody(&[], || {
        let error = save_to(&path).unwrap_err();
        assert!(
            matches!(&error, Error::Target { source: Some(source), .. } if source.kind() == ErrorKind::PermissionDenied)
        );
        assert_refused::<()>(Err(error), "may not write to the file");
    });
    assert_eq!(contents(folder.path()), before);
    // Root may write to it.
    save_to(&path).unwrap();
    assert_eq!(mode(&path), 0o444);
}

fn folders_of_others_are_refused() {
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

fn mount_points_stay() {
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

fn read_only_systems_are_refused() {
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

/// An access control list: its owner and a user of number 1234 may do something, others may not.
fn list(user: u16) -> Vec<u8> {
    const NO_ONE: u32 = u32::MAX;
    let entries =
        [(0x01, 0o6, NO_ONE), (0x02, user, 1234), (0x04, 0, NO_ONE), (0x10, user, NO_ONE), (0x20, 0, NO_ONE)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, may, who) in entries {
        bytes.extend([&u16::to_le_bytes(tag)[..], &u16::to_le_bytes(may), &u32::to_le_bytes(who)].concat());
    }
    bytes
}

fn list_of(path: &Path) -> Option<Vec<u8>> {
    let mut found = vec![0; 1000];
    let length = lgetxattr(path, "system.posix_acl_access", &mut found[..]).ok()?;
    found.truncate(length);
    Some(found)
}

fn lists_are_kept() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, "before").unwrap();
    setxattr(&path, "system.posix_acl_access", &list(0o4), XattrFlags::empty()).unwrap();
    let before = mode(&path);
    save_to(&path).unwrap();
    assert_eq!((list_of(&path), mode(&path)), (Some(list(0o4)), before));
    if !is_root() {
        return;
    }
    // Without the group, no one but the owner may do anything: who the list was for may be in the new group.
    fs::write(&path, "before").unwrap();
    chown(&path, Some(1234), Some(2345)).unwrap();
    setxattr(&path, "system.posix_acl_access", &writable_by_others(), XattrFlags::empty()).unwrap();
    as_nobody(&[], || drop(save_to(&path).unwrap()));
    assert_eq!((list_of(&path), mode(&path)), (None, 0o600));
}

/// The same, but others may write.
fn writable_by_others() -> Vec<u8> {
    let mut bytes = list(0o4);
    let last = bytes.len() - 6;
    bytes[last] = 0o6;
    bytes
}

fn lists_are_not_inherited() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, "before").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    setxattr(folder.path(), "system.posix_acl_default", &list(0o4), XattrFlags::empty()).unwrap();
    save_to(&path).unwrap();
    assert_eq!((list_of(&path), mode(&path)), (None, 0o640));
    // A new file is as the system makes it there.
    let [new, any] = ["new", "any"].map(|name| folder.path().join(name));
    save_to(&new).unwrap();
    fs::write(&any, "").unwrap();
    assert_eq!((list_of(&new), mode(&new)), (list_of(&any), mode(&any)));
    assert!(list_of(&new).is_some());
}
