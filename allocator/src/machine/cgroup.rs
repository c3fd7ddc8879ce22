//! The memory limits of the process's control groups.
//!
//! A limit of a group holds for all groups below it, so this reads the limits of the process's group and of each visible group above
//! it: of version 2 (`memory.max`, `memory.swap.max`) and of version 1 (`memory.limit_in_bytes`, `memory.memsw.limit_in_bytes`; for
//! invisible groups `memory.stat`). A system can have both. `/proc/self/cgroup` names the group, and `/proc/self/mountinfo` where it is
//! mounted, since a container sees a part of the tree at any path.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The versions of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The lowest limit of this process's groups on memory and swap space in bytes, on a system with `swap` bytes of swap space;
/// `u64::MAX` without a limit. `/proc` and the mounts are read below `root`.
pub(crate) fn memory_bytes(root: &Path, swap: u64) -> u64 {
    let read = |file: &str| fs::read(root.join(file)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let (mut own, mut shown) = (None, None);
    for mount in lines(&mounts).filter_map(Mount::parse) {
        let group = lines(&groups).find_map(|line| mount.version.group(line)).unwrap_or(Path::new("/"));
        let top = root.join(mount.place.strip_prefix("/").unwrap_or(&mount.place));
        let (limits, folder) = match mount.below(group) {
            Some(below) => (&mut own, top.join(below)),
            None => (&mut shown, top.clone()),
        };
        let folders = folder.ancestors().take_while(|folder| folder.starts_with(&top));
        let limit = folders.map(|folder| mount.version.limit(folder, swap)).chain(*limits).min();
        *limits = limit;
    }
    // If no mount shows the group, the mounts that there are count: a container that sees nothing else is in them.
    own.or(shown).unwrap_or(u64::MAX)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

impl Version {
    /// The process's group, from a line of `/proc/self/cgroup`: `4:memory:/a/b`, or `0::/a/b`.
    fn group(self, line: &[u8]) -> Option<&Path> {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match self {
            Self::One => has(controllers, b"memory"),
            Self::Two => number == b"0" && controllers.is_empty(),
        };
        is_it.then(|| Path::new(OsStr::from_bytes(path)))
    }

    /// The limit of the group of this folder in bytes.
    fn limit(self, folder: &Path, swap: u64) -> u64 {
        // Anything but a number, such as `max`, means no limit.
        let read = |file: &str| fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok();
        let limit = |file| read(file).unwrap_or(u64::MAX);
        // The group of a running process has some memory, so 0 means an unknown limit. It may have no swap space.
        let memory = |file| Some(limit(file)).filter(|&bytes| bytes > 0).unwrap_or(u64::MAX);
        match self {
            Self::One => {
                // Groups above those that a container sees have limits, too.
                let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
                let above = |name| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
                let above = |name| above(name).filter(|&bytes| bytes > 0);
                let least = |file, name| memory(file).min(above(name).unwrap_or(u64::MAX));
                let both = least("memory.memsw.limit_in_bytes", "hierarchical_memsw_limit ");
                least("memory.limit_in_bytes", "hierarchical_memory_limit ").saturating_add(swap).min(both)
            }
            Self::Two => memory("memory.max").saturating_add(limit("memory.swap.max").min(swap)),
        }
    }
}

/// Whether the comma-separated list has this word.
fn has(words: &[u8], word: &[u8]) -> bool {
    words.split(|&byte| byte == b',').any(|other| other == word)
}

/// A mount of control groups that can limit memory.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// The group at the root of the mount.
    shown: PathBuf,
    place: PathBuf,
}

impl Mount {
    /// From a line of `/proc/self/mountinfo`: `35 31 0:32 /shown /place rw,relatime shared:9 - cgroup cgroup rw,memory`.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let (shown, place) = (fields.nth(3)?, fields.next()?);
        let mut system = fields.skip_while(|&field| field != b"-").skip(1);
        let version = match (system.next()?, system.nth(1)?) {
            (b"cgroup2", _) => Version::Two,
            (b"cgroup", options) if has(options, b"memory") => Version::One,
            _ => return None,
        };
        Some(Self { version, shown: unescaped(shown), place: unescaped(place) })
    }

    /// The path of a group below the mount; `None` if the mount does not show it.
    fn below<'a>(&self, group: &'a Path) -> Option<&'a Path> {
        let below = group.strip_prefix(&self.shown).ok()?;
        // A group of another namespace is shown as `/../a`.
        below.components().all(|part| matches!(part, Component::Normal(_))).then_some(below)
    }
}

/// A path of `mountinfo`, where spaces and the like are written as `\040`.
fn unescaped(field: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::with_capacity(field.len()), field);
    while let Some((&byte, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| byte == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                path.push(escaped);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                path.push(byte);
                rest = behind;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system of these files, by their paths.
    struct System(tempfile::TempDir);

    impl System {
        fn new(groups: &str, mounts: &str) -> Self {
            let system = Self(tempfile::tempdir().unwrap());
            system.with("proc/self/cgroup", groups).with("proc/self/mountinfo", mounts)
        }

        fn with(self, file: &str, text: &str) -> Self {
            let path = self.0.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn bytes(&self, swap: u64) -> u64 {
            memory_bytes(self.0.path(), swap)
        }
    }

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 master:2 - cgroup cgroup rw,memory\n";
    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn without_groups_there_is_no_limit() {
        assert_eq!(memory_bytes(tempfile::tempdir().unwrap().path(), 1), u64::MAX);
        assert_eq!(System::new("", "").bytes(0), u64::MAX);
        assert_eq!(System::new("0::/a\n", V2).with("sys/fs/cgroup/a/memory.max", "max\n").bytes(0), u64::MAX);
        let unlimited = "9223372036854771712\n";
        let file = "sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        assert!(System::new("4:memory:/a\n", V1).with(file, unlimited).bytes(0) >= 1 << 62);
    }

    #[test]
    fn a_limit_of_nothing_is_an_unknown_one() {
        assert_eq!(System::new("0::/a\n", V2).with("sys/fs/cgroup/a/memory.max", "0\n").bytes(0), u64::MAX);
        let file = "sys/fs/cgroup/memory/a/memory.";
        let one = System::new("4:memory:/a\n", V1).with(&format!("{file}limit_in_bytes"), "0\n");
        assert_eq!(one.with(&format!("{file}stat"), "hierarchical_memory_limit 0\n").bytes(0), u64::MAX);
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_counts() {
        for (groups, mounts, top, file) in [
            ("0::/a/b/c\n", V2, "sys/fs/cgroup", "memory.max"),
            ("5:cpu:/\n4:hugetlb,memory:/a/b/c\n", V1, "sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ] {
            for limits in
                [[5 << 30, 1 << 30, 3 << 30], [1 << 30, 2 << 30, 3 << 30], [3 << 30, 2 << 30, 1 << 30]]
            {
                let mut system = System::new(groups, mounts);
                for (group, limit) in ["a", "a/b", "a/b/c"].iter().zip(limits) {
                    system = system.with(&format!("{top}/{group}/{file}"), &format!("{limit}\n"));
                }
                // Of another group.
                let system = system.with(&format!("{top}/other/{file}"), "1\n");
                assert_eq!(system.bytes(0), 1 << 30, "{file} {limits:?}");
            }
        }
    }

    #[test]
    fn swap_space_counts_as_far_as_a_group_has_it() {
        let two = || System::new("0::/a\n", V2).with("sys/fs/cgroup/a/memory.max", "1000\n");
        assert_eq!(two().bytes(500), 1500);
        assert_eq!(two().with("sys/fs/cgroup/a/memory.swap.max", "200\n").bytes(500), 1200);
        let folder = "sys/fs/cgroup/memory/a/";
        let one =
            || System::new("4:memory:/a\n", V1).with(&format!("{folder}memory.limit_in_bytes"), "1000\n");
        assert_eq!(one().bytes(500), 1500);
        assert_eq!(one().with(&format!("{folder}memory.memsw.limit_in_bytes"), "1100\n").bytes(500), 1100);
    }

    #[test]
    fn a_container_that_sees_its_own_part_of_the_tree_is_limited_by_it() {
        let file = "sys/fs/cgroup/memory.max";
        // In a namespace of its own, and one below it.
        assert_eq!(System::new("0::/\n", V2).with(file, "4096\n").bytes(0), 4096);
        assert_eq!(System::new("0::/sub\n", V2).with(file, "4096\n").bytes(0), 4096);
        // Named as outside, with the part of the tree that it is in, at a place with a space in its name.
        let mounts = "35 31 0:32 /docker/x /groups\\040here rw - cgroup cgroup rw,memory\n";
        let file = "groups here/memory.limit_in_bytes";
        assert_eq!(System::new("4:memory:/docker/x\n", mounts).with(file, "4096\n").bytes(0), 4096);
        let inner = System::new("4:memory:/docker/x/y\n", mounts).with(file, "8192\n");
        assert_eq!(inner.with("groups here/y/memory.limit_in_bytes", "4096\n").bytes(0), 4096);
        // Others' groups that are to be seen, too, say nothing of this one.
        let both = format!("{V1}36 31 0:32 /docker/x /theirs rw - cgroup cgroup rw,memory\n");
        let own = System::new("4:memory:/own\n", &both).with("theirs/memory.limit_in_bytes", "4096\n");
        assert_eq!(own.with("sys/fs/cgroup/memory/own/memory.limit_in_bytes", "8192\n").bytes(0), 8192);
        // Of another part, or of another namespace.
        assert_eq!(System::new("4:memory:/else\n", mounts).with(file, "4096\n").bytes(0), 4096);
        assert_eq!(
            System::new("4:memory:/../x\n", V1).with("sys/fs/cgroup/x/memory.max", "1").bytes(0),
            u64::MAX
        );
    }

    #[test]
    fn groups_above_what_a_container_sees_limit_it_by_version_1() {
        let folder = "sys/fs/cgroup/memory/";
        let one = |stat: &str| {
            System::new("4:memory:/\n", V1)
                .with(&format!("{folder}memory.limit_in_bytes"), "9223372036854771712\n")
                .with(&format!("{folder}memory.stat"), stat)
        };
        let stat = "cache 0\nhierarchical_memory_limit 4096\nhierarchical_memsw_limit 9223372036854771712\n";
        assert_eq!(one(stat).bytes(100), 4196);
        assert_eq!(one("hierarchical_memory_limit 4096\nhierarchical_memsw_limit 4100\n").bytes(100), 4100);
        assert_eq!(one("hierarchical_memory_limit many\n").bytes(0), 9223372036854771712);
    }

    #[test]
    fn both_versions_may_be_there_at_once() {
        let mounts = format!("{V1}41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let system = System::new("4:memory:/a\n0::/b\n", &mounts);
        let system = system.with("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "8192\n");
        assert_eq!(system.bytes(0), 8192);
        assert_eq!(system.with("sys/fs/cgroup/unified/b/memory.max", "4096\n").bytes(0), 4096);
    }

    #[test]
    fn lines_that_are_no_mounts_of_groups_are_none() {
        for line in
            ["", "1 2 3", "35 31 0:32 / /x rw - cgroup", "35 31 0:32 / /x rw cgroup cgroup rw,memory", V1]
        {
            assert_eq!(Mount::parse(line.lines().next().unwrap_or("").as_bytes()), None, "{line}");
        }
        assert_eq!(unescaped(br"/a\040b\134\x\04"), Path::new(r"/a b\\x\04"));
    }
}
