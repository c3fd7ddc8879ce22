//! Limits of the process and of the system: what they are, and which of them a failed call has reached.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// A limit that was reached, and what to do about it: texts of an error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) problem: String,
    pub(crate) remedy: String,
}

/// How many files the process may have open; `None` without a limit.
pub(crate) fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Whether an error says that no descriptor is left, for the process or for the system.
pub(crate) fn is_of_descriptors(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// The limit that a call on files has reached, if its error says so.
pub(crate) fn of_files(error: &io::Error) -> Option<Reached> {
    let reached = |problem: String, remedy: String| Some(Reached { problem, remedy });
    match Errno::from_io_error(error)? {
        Errno::MFILE => {
            let limit = getrlimit(Resource::Nofile);
            reached(
                format!("this process may open {} (RLIMIT_NOFILE), and has", files(limit.current)),
                format!(
                    "close files, or raise the limit with `ulimit -n`, up to the hard limit ({})",
                    value(limit.maximum)
                ),
            )
        }
        Errno::NFILE => reached(
            format!("the system may open {} (fs.file-max), and has", files(number("/proc/sys/fs/file-max"))),
            "close files of any process, or raise fs.file-max".into(),
        ),
        _ => None,
    }
}

/// The limit that kept a thread from being started.
pub(crate) fn of_threads(error: &io::Error) -> Reached {
    let remedy = "raise the limit that is reached, or end other threads";
    match Errno::from_io_error(error) {
        Some(Errno::NOMEM) => Reached {
            problem: "there is no memory for its stack".into(),
            remedy: "free memory, or raise the limit on address space (`ulimit -v`)".into(),
        },
        _ => Reached {
            problem: format!("the limits on threads are {}", thread_limits()),
            remedy: remedy.into(),
        },
    }
}

/// The limits on the threads of this process, those that are known.
fn thread_limits() -> String {
    let mut limits =
        format!("{} for this user (RLIMIT_NPROC, `ulimit -u`)", value(getrlimit(Resource::Nproc).current));
    if let Some(pids) = pids_max(Path::new("/")) {
        let _ = write!(limits, ", {pids} for its control group (pids.max)");
    }
    if let Some(threads) = number("/proc/sys/kernel/threads-max") {
        let _ = write!(limits, ", {threads} for the system (kernel.threads-max)");
    }
    limits
}

/// The limit that kept an `io_uring` from being made, if its error says so.
pub(crate) fn of_rings(error: &io::Error) -> Option<Reached> {
    match Errno::from_io_error(error)? {
        Errno::NOMEM => {
            let limit = value(getrlimit(Resource::Memlock).current);
            Some(Reached {
                problem: format!("this user may lock {limit} bytes of memory (RLIMIT_MEMLOCK)"),
                remedy: "raise the limit with `ulimit -l`".into(),
            })
        }
        Errno::PERM => Some(Reached {
            problem: match number("/proc/sys/kernel/io_uring_disabled") {
                Some(level @ 1..) => format!("kernel.io_uring_disabled is {level}"),
                _ => "a filter of system calls may forbid it".into(),
            },
            remedy: "allow io_uring".into(),
        }),
        _ => of_files(error),
    }
}

/// The least `pids.max` of the control group of this process and those above it, by version 2 or 1. `/proc` and `/sys` are looked for below `root`.
fn pids_max(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, group) = rest.split_once(':')?;
        let top = match controllers {
            "" => root.join("sys/fs/cgroup"),
            _ if controllers.split(',').any(|controller| controller == "pids") => {
                root.join("sys/fs/cgroup/pids")
            }
            _ => return None,
        };
        // A container may see its own group as the top.
        let folder = top.join(group.trim_start_matches('/'));
        let folders = folder.ancestors().take_while(|folder| folder.starts_with(&top));
        folders.filter_map(|folder| text_number(&folder.join("pids.max"))).min()
    });
    limits.min()
}

/// The number that a file holds; `None` where it is missing, or holds a word such as `max`.
fn text_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn number(path: &str) -> Option<u64> {
    text_number(Path::new(path))
}

fn files(limit: Option<u64>) -> String {
    match limit {
        Some(1) => "1 file".into(),
        Some(limit) => format!("{limit} files"),
        None => "a limited number of files".into(),
    }
}

fn value(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".into(), |limit| limit.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_descriptors_name_the_limit_its_value_and_the_command_that_raises_it() {
        let process = of_files(&Errno::MFILE.into()).unwrap();
        let soft = open_files().unwrap().to_string();
        assert!(process.problem.contains(&soft) && process.problem.contains("RLIMIT_NOFILE"), "{process:?}");
        assert!(process.remedy.contains("ulimit -n"), "{process:?}");
        let system = of_files(&Errno::NFILE.into()).unwrap();
        assert!(system.problem.contains("file-max") && !system.problem.contains("RLIMIT"), "{system:?}");
        assert_eq!(of_files(&Errno::IO.into()), None);
    }

    #[test]
    fn errors_of_threads_and_rings_name_their_limits() {
        let threads = of_threads(&Errno::AGAIN.into());
        assert!(
            threads.problem.contains("RLIMIT_NPROC") && threads.problem.contains("ulimit -u"),
            "{threads:?}"
        );
        assert!(of_threads(&Errno::NOMEM.into()).problem.contains("stack"));
        assert!(of_rings(&Errno::NOMEM.into()).unwrap().problem.contains("RLIMIT_MEMLOCK"));
        assert!(of_rings(&Errno::MFILE.into()).unwrap().problem.contains("RLIMIT_NOFILE"));
        assert_eq!(of_rings(&Errno::NOSYS.into()), None);
    }

    #[test]
    fn the_least_pids_max_of_a_group_and_those_above_it_counts() {
        let system = |groups: &str, files: &[(&str, &str)]| {
            let root = tempfile::tempdir().unwrap();
            for (file, text) in files.iter().chain(&[("proc/self/cgroup", groups)]) {
                let path = root.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            pids_max(root.path())
        };
        let two = "sys/fs/cgroup/a/pids.max";
        assert_eq!(system("0::/a/b\n", &[(two, "40\n"), ("sys/fs/cgroup/a/b/pids.max", "max\n")]), Some(40));
        assert_eq!(system("0::/a\n", &[(two, "max\n")]), None);
        assert_eq!(system("5:cpu:/\n4:pids:/a\n", &[("sys/fs/cgroup/pids/a/pids.max", "7\n")]), Some(7));
        assert_eq!(system("0::/\n", &[]), None);
        assert_eq!(system("nonsense\n", &[]), None);
        assert_eq!(pids_max(Path::new("/there/is/no/such/folder")), None);
    }
}
