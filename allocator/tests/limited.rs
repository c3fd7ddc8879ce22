//! A process in a control group with a limit is refused what the system would end it for.
//!
//! The test needs the right to make control groups that limit memory; where it is missing, it is ignored, and counted as such.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tensorhold_allocator::{HostMemory, Pool, Request};

/// Given this argument and a number of bytes, the program places them and prints the outcome.
const PLACE: &str = "--place-bytes";

const LIMIT_BYTES: u64 = 256 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, first, bytes] = &arguments[..]
        && first == PLACE
    {
        return place(bytes.parse().unwrap());
    }
    let group = Group::new();
    let missing = group.is_err();
    drop(group);
    let trial = Trial::test("a_region_beyond_the_limit_of_a_group_above_is_refused", || {
        let group = Group::new()?;
        let program = std::env::current_exe()?;
        let outcome = |bytes: u64| -> io::Result<String> {
            // The shell enters the group, and becomes the program.
            let enter = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
            let mut command = Command::new("sh");
            command.args(["-c", enter]).arg(&group.inner).arg(&program).args([PLACE, &bytes.to_string()]);
            let output = command.output()?;
            Ok(format!("{} {}", output.status, String::from_utf8_lossy(&output.stdout)))
        };
        let within = outcome(LIMIT_BYTES / 2)?;
        let beyond = outcome(LIMIT_BYTES * 2)?;
        match within.contains("placed") && beyond.contains("refused: out of memory") {
            true => Ok(()),
            false => Err(Failed::from(format!("within the limit: {within}\nbeyond it: {beyond}"))),
        }
    })
    // ThreadSanitizer keeps several bytes beside each: a load that fits would not.
    .with_ignored_flag(missing || cfg!(tsan));
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit_code()
}

/// Places bytes in host memory and writes to each page of them, as a load does.
fn place(bytes: u64) -> ExitCode {
    let pool = Pool::builder(Arc::new(HostMemory::new())).build().unwrap();
    match pool.place("all", Request::new(bytes, 256)) {
        Ok(mut fragment) => {
            fragment.as_bytes_mut().unwrap().fill(1);
            println!("placed");
        }
        Err(error) => {
            let reasons =
                std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
            println!("refused: {}", reasons.last().unwrap());
        }
    }
    ExitCode::SUCCESS
}

/// A group with a limit, and one below it without.
struct Group {
    outer: PathBuf,
    inner: PathBuf,
}

impl Group {
    /// Makes them below this process's own group.
    fn new() -> io::Result<Self> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no control groups that limit memory");
        let groups = fs::read_to_string("/proc/self/cgroup")?;
        let one = groups.lines().find_map(|line| Some(line.split_once(":memory:")?.1));
        let two = groups.lines().find_map(|line| line.strip_prefix("0::"));
        let tries = [
            one.map(|group| ("/sys/fs/cgroup/memory", group, "memory.limit_in_bytes")),
            two.map(|group| ("/sys/fs/cgroup", group, "memory.max")),
        ];
        let mut tries = tries.into_iter().flatten().map(|(top, group, limit)| {
            let above = Path::new(top).join(group.trim_start_matches('/'));
            let outer = above.join(format!("tensorhold-test-{}", std::process::id()));
            fs::create_dir(&outer)?;
            let made = Self { inner: outer.join("inner"), outer };
            // Not there where the group above does not limit memory.
            fs::metadata(made.outer.join(limit))?;
            fs::write(made.outer.join(limit), LIMIT_BYTES.to_string())?;
            fs::create_dir(&made.inner)?;
            Ok(made)
        });
        tries.find(|group: &io::Result<Self>| group.is_ok()).unwrap_or_else(|| Err(missing()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.inner);
        let _ = fs::remove_dir(&self.outer);
    }
}
