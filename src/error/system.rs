//! What the system's error numbers mean for files and threads, and what helps: the one table of these texts.
//!
//! The number decides, not the operation: a full disk, a missing file and a limit of the process have different causes, though a read or an
//! open fails by each of them.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::limits::{self, Reached};

/// A cause and its remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Explained {
    cause: Cow<'static, str>,
    remedy: Cow<'static, str>,
}

impl Explained {
    fn new(cause: &'static str, remedy: &'static str) -> Self {
        Self { cause: cause.into(), remedy: remedy.into() }
    }
}

impl Explained {
    /// The same for that path. If nothing is there and the path looks like something other than one, the remedy is for that.
    pub(super) fn of(mut self, path: &Path) -> Self {
        let is_missing = CAUSES.first().is_some_and(|(_, cause, _)| self.cause == *cause);
        if let Some(hint) = path.to_str().filter(|_| is_missing).and_then(not_a_path) {
            self.remedy = hint;
        }
        self
    }
}

/// What to do if a path is the name of something that is not in a file system.
fn not_a_path(path: &str) -> Option<Cow<'static, str>> {
    if path.starts_with('~') {
        return Some(
            "a shell expands `~`, this does not: write the home directory out, in Python by os.path.expanduser".into(),
        );
    }
    // Libraries for paths join the slashes of `https://`.
    if let Some((scheme, _)) = path.split_once(":/")
        && scheme.len() > 1
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        return Some("it looks like a URL: download the files first, and name their directory".into());
    }
    let (owner, model) = path.split_once('/')?;
    let is_part = |part: &str| {
        let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        part.bytes().all(is_of_names) && part.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    let is_file = [".safetensors", ".json"].iter().any(|ending| model.ends_with(ending));
    (is_part(owner) && is_part(model) && !is_file).then(|| {
        format!(
            "check the path; if it is a model on the Hugging Face Hub, download it first (hf download {path} --local-dir DIRECTORY), and \
             name the directory"
        )
        .into()
    })
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause, self.remedy)
    }
}

/// The cause and the remedy for an error of an operation on a file.
pub(super) fn explained(error: &io::Error) -> Explained {
    if let Some(Reached { problem, remedy }) = limits::of_files(error) {
        return Explained { cause: problem.into(), remedy: remedy.into() };
    }
    let found = errno(error).and_then(|errno| CAUSES.iter().find(|(listed, ..)| *listed == errno));
    match found {
        Some((_, cause, remedy)) => Explained::new(cause, remedy),
        None if error.raw_os_error().is_some() => Explained::new(
            "the system reports an error",
            "look up its number in errno(3), and see the kernel's log",
        ),
        // It comes from a library or a driver, and its own text follows.
        None => Explained::new("it failed", "see the cause that is reported with this error"),
    }
}

/// The same for a thread that the system refused to start.
pub(super) fn explained_for_thread(error: &io::Error) -> Explained {
    let Reached { problem, remedy } = limits::of_threads(error);
    Explained { cause: format!("the system refused the first one: {problem}").into(), remedy: remedy.into() }
}

/// The system's number; for errors without one, that which their kind stands for.
fn errno(error: &io::Error) -> Option<Errno> {
    Errno::from_io_error(error).or(match error.kind() {
        io::ErrorKind::NotFound => Some(Errno::NOENT),
        io::ErrorKind::PermissionDenied => Some(Errno::ACCESS),
        io::ErrorKind::Interrupted => Some(Errno::INTR),
        io::ErrorKind::WouldBlock => Some(Errno::AGAIN),
        io::ErrorKind::OutOfMemory => Some(Errno::NOMEM),
        _ => None,
    })
}

/// Number, cause, remedy.
const CAUSES: &[(Errno, &str, &str)] = &[
    // The path.
    (Errno::NOENT, "there is no such file or directory", "check the path"),
    (Errno::NOTDIR, "a part of the path is a file, not a directory", "check the path"),
    (Errno::ISDIR, "it is a directory, not a file", "name a file"),
    (Errno::NAMETOOLONG, "the path, or a name in it, is too long", "use a shorter one"),
    (Errno::LOOP, "the path has too many symbolic links, or they form a loop", "correct the links"),
    (Errno::EXIST, "something of that name exists already", "remove it, or use another name"),
    (Errno::NOTEMPTY, "the directory is not empty", "empty it, or name another"),
    (Errno::XDEV, "the paths are on different file systems", "name paths on one file system"),
    (
        Errno::INVAL,
        "the file system does not support this operation or name",
        "use another file system or name",
    ),
    (Errno::ILSEQ, "the file system cannot store this name", "use another name"),
    // Permission.
    (
        Errno::ACCESS,
        "permission denied",
        "give this user permission for the file, and to search the directories above it",
    ),
    (
        Errno::PERM,
        "the system does not permit it",
        "check the file's attributes (lsattr), its owner, and the security policy of this process or its container",
    ),
    (Errno::ROFS, "the file system is mounted read-only", "mount it for writing, or write elsewhere"),
    (Errno::TXTBSY, "it is a program that is running", "stop the program, or write elsewhere"),
    (Errno::BUSY, "it is in use", "try again when nothing uses it"),
    (Errno::NOKEY, "the file is encrypted, and its key is not loaded", "unlock the directory"),
    (Errno::KEYEXPIRED, "the credentials for the file server have expired", "renew them (kinit)"),
    // Room.
    (
        Errno::NOSPC,
        "no space is left on the file system",
        "free space or inodes there (df, df -i), or write elsewhere",
    ),
    (Errno::DQUOT, "the disk quota is used up", "free space, raise the quota, or write elsewhere"),
    (
        Errno::FBIG,
        "the file would be larger than the file system or a limit allows",
        "raise the limit on file sizes (ulimit -f), write smaller files, or use another file system",
    ),
    (Errno::OVERFLOW, "the file is too large for this system's calls", "use smaller files"),
    (
        Errno::NOMEM,
        "the system lacks the memory for it",
        "free memory, or raise the memory limit of the process or its cgroup",
    ),
    // Storage.
    (
        Errno::IO,
        "the storage reports an input/output error",
        "check the disk or the mount (see the kernel's log), and restore the file from a copy",
    ),
    (
        Errno::BADMSG,
        "a checksum of the storage does not match the data",
        "check the disk and the file system, and restore the file from a copy",
    ),
    (Errno::UCLEAN, "the file system is damaged", "unmount and check it (fsck)"),
    (Errno::NODEV, "the device behind the file is gone", "check the device and the mount"),
    (Errno::NXIO, "there is no device behind the file, or no data there", "check the device and the mount"),
    (Errno::NOMEDIUM, "no medium is in the device", "insert the medium"),
    // File servers.
    (
        Errno::STALE,
        "the file server no longer knows the file",
        "open it again; if that fails, mount the file system again",
    ),
    (
        Errno::TIMEDOUT,
        "the storage or the file server did not answer in time",
        "check the network and the server, and try again",
    ),
    (Errno::NOTCONN, "the file system's server is not connected", "mount it again"),
    (Errno::CONNABORTED, UNREACHABLE, CHECK_SERVER),
    (Errno::CONNREFUSED, UNREACHABLE, CHECK_SERVER),
    (Errno::CONNRESET, UNREACHABLE, CHECK_SERVER),
    (Errno::HOSTDOWN, UNREACHABLE, CHECK_SERVER),
    (Errno::HOSTUNREACH, UNREACHABLE, CHECK_SERVER),
    (Errno::NETDOWN, UNREACHABLE, CHECK_SERVER),
    (Errno::NETUNREACH, UNREACHABLE, CHECK_SERVER),
    (Errno::SHUTDOWN, UNREACHABLE, CHECK_SERVER),
    (Errno::REMOTEIO, "the file server reports an input/output error", "check the server's storage"),
    (Errno::NOLCK, "the file server has no lock to give", "check the server's lock service"),
    // The process and the kernel.
    (Errno::AGAIN, "the system had no resources for it", "try again"),
    (Errno::INTR, "signals interrupted it again and again", "try again with fewer signals, as of a profiler"),
    (Errno::BADF, "its file descriptor is not open", "close only descriptors that your code opened"),
    (Errno::FAULT, "the memory to read or write is not mapped", "keep memory mapped until the call returns"),
    (Errno::NOSYS, UNSUPPORTED, "use another kernel, or allow the call in the container's seccomp profile"),
    (Errno::OPNOTSUPP, UNSUPPORTED, "use another file system"),
];

const UNREACHABLE: &str = "the file server cannot be reached";
const CHECK_SERVER: &str = "check the network and the server, and try again";
const UNSUPPORTED: &str = "the system does not support it for this file";

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_not_a_path_is_named_for_what_it_looks_like() {
        let says = |path: &str, errno: i32| {
            explained(&io::Error::from_raw_os_error(errno)).of(Path::new(path)).to_string()
        };
        for (path, words) in [
            ("~/model", "expands `~`"),
            ("~user/model.safetensors", "expands `~`"),
            ("https://host/model.safetensors", "like a URL"),
            ("https:/host/model.safetensors", "like a URL"),
            ("s3://bucket/model", "like a URL"),
            ("org/Some-model_2.5", "hf download org/Some-model_2.5"),
        ] {
            let said = says(path, libc::ENOENT);
            assert!(said.starts_with("there is no such file") && said.contains(words), "{path}: {said}");
            assert!(!says(path, libc::EACCES).contains(words), "{path}");
        }
        for path in [
            "",
            "/",
            "model",
            "/org/model",
            "a/b/c",
            "./model",
            "../model",
            "a/",
            "folder/model.safetensors",
            "c:/x",
        ] {
            assert_eq!(
                says(path, libc::ENOENT),
                "there is no such file or directory; check the path",
                "{path}"
            );
        }
    }

    use std::collections::BTreeSet;

    use super::*;

    fn told(errno: Errno) -> String {
        explained(&errno.into()).to_string()
    }

    #[test]
    fn a_number_is_listed_once() {
        let numbers: BTreeSet<i32> = CAUSES.iter().map(|(errno, ..)| errno.raw_os_error()).collect();
        assert_eq!(numbers.len(), CAUSES.len());
    }

    #[test]
    fn only_errors_of_the_storage_blame_it() {
        let blamed: Vec<_> = CAUSES
            .iter()
            .map(|(errno, ..)| *errno)
            .filter(|&errno| told(errno).contains("disk or"))
            .collect();
        assert_eq!(blamed, [Errno::IO]);
    }

    #[test]
    fn each_cause_has_its_remedy() {
        for (errno, remedy) in [
            (Errno::ACCESS, "permission"),
            (Errno::PERM, "lsattr"),
            (Errno::ROFS, "mount it for writing"),
            (Errno::NOSPC, "free space"),
            (Errno::DQUOT, "quota"),
            (Errno::STALE, "open it again"),
            (Errno::LOOP, "links"),
            (Errno::NAMETOOLONG, "shorter"),
            (Errno::NOTDIR, "path"),
            (Errno::ISDIR, "name a file"),
            (Errno::FBIG, "ulimit -f"),
            (Errno::TIMEDOUT, "network"),
        ] {
            assert!(told(errno).contains(remedy), "{}", told(errno));
        }
    }

    #[test]
    fn an_unlisted_number_and_an_error_without_one_say_so() {
        assert!(told(Errno::DOM).contains("errno(3)"), "{}", told(Errno::DOM));
        let other = explained(&io::Error::other("a driver's")).to_string();
        assert!(other.contains("see the cause") && !other.contains("disk"), "{other}");
    }

    #[test]
    fn a_refused_thread_blames_the_limit_only_where_that_is_the_cause() {
        let told = |errno: Errno| explained_for_thread(&errno.into()).to_string();
        assert!(told(Errno::AGAIN).contains("RLIMIT_NPROC"));
        assert!(told(Errno::NOMEM).contains("memory") && !told(Errno::NOMEM).contains("NPROC"));
    }
}
