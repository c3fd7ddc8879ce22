//! Modes, owners, groups and access control lists of files that are replaced.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::{XattrFlags, lgetxattr, setxattr};
use tensorhold::Error;
use tensorhold::save::Durability;

use crate::scene::*;
use crate::support::fork::in_child;

pub(crate) fn replaced_files_keep_their_mode() {
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

pub(crate) fn new_files_obey_the_mask() {
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

pub(crate) fn private_files_stay_private() {
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

pub(crate) fn replaced_files_keep_their_owner() {
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

pub(crate) fn replaced_files_keep_a_group() {
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

pub(crate) fn read_only_files_are_refused() {
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

pub(crate) fn list_of(path: &Path) -> Option<Vec<u8>> {
    let mut found = vec![0; 1000];
    let length = lgetxattr(path, "system.posix_acl_access", &mut found[..]).ok()?;
    found.truncate(length);
    Some(found)
}

pub(crate) fn lists_are_kept() {
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
pub(crate) fn writable_by_others() -> Vec<u8> {
    let mut bytes = list(0o4);
    let last = bytes.len() - 6;
    bytes[last] = 0o6;
    bytes
}

pub(crate) fn lists_are_not_inherited() {
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
