//! What must not compile, does not, and for the reason given; without its one wrong line it does.
//!
//! The programs are in `tests/compile-fail/src/bin`. Each compiles as it stands, which the build of the workspace
//! shows; here they are checked with the feature `broken`, and the compiler must report the error code on the first
//! line of each, and no other.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

/// The error codes that the compiler reports, by program.
fn reported_codes() -> BTreeMap<String, Vec<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--package", "compile-fail", "--features", "broken"])
        .args(["--keep-going", "--message-format", "json"])
        // A folder of its own: the one in use may be locked by the cargo that runs this test.
        .args([
            "--target-dir".as_ref(),
            Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile-fail").as_os_str(),
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::null())
        .output()
        .unwrap();
    let mut codes: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        if message["reason"] == "compiler-message" && message["message"]["level"] == "error" {
            let program = message["target"]["name"].as_str().unwrap().to_owned();
            if let Some(code) = message["message"]["code"]["code"].as_str() {
                codes.entry(program).or_default().push(code.to_owned());
            }
        }
    }
    codes
}

#[test]
fn broken_programs_fail_with_the_code_they_name() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile-fail/src/bin");
    let mut expected = BTreeMap::new();
    for entry in fs::read_dir(programs).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().next().unwrap().strip_prefix("// broken: ").unwrap().to_owned();
        expected.insert(path.file_stem().unwrap().to_str().unwrap().to_owned(), vec![code]);
    }
    assert!(expected.len() >= 8);
    assert_eq!(reported_codes(), expected);
}
