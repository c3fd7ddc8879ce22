//! Wrong usage: exit code 2, and a message that says what is right.

mod support;

use support::{command, failure, stdout};

fn usage(args: &[&str]) -> String {
    failure(&command().args(args).output().unwrap(), 2)
}

#[test]
fn a_wrong_device_is_answered_with_the_right_ones() {
    for subcommand in ["load", "verify"] {
        assert!(usage(&[subcommand, "x", "--device", "gpu"]).contains("cpu, pinned or cuda:N"));
    }
    assert!(usage(&["demo", "--device", "cuda"]).contains("cpu, pinned or cuda:N"));
}

#[test]
fn a_wrong_size_is_answered_with_examples() {
    assert!(usage(&["load", "x", "--staging-bytes", "lots"]).contains("64MiB"));
    assert!(usage(&["demo", "--bytes", "-5"]).contains("demo"));
    assert!(usage(&["replay", "x", "--capacity", "lots"]).contains("64MiB"));
}

#[test]
fn a_wrong_number_of_threads_is_answered_with_the_range() {
    for threads in ["0", "x", "1025", "-1", "1.5"] {
        let message = usage(&["load", "x", &format!("--threads={threads}")]);
        assert!(message.contains("expected a number from 1 to 1024"), "{message}");
    }
    assert!(usage(&["demo", "--seed", "x"]).contains("expected a number from 0 to 2^64 - 1"));
}

#[test]
fn a_dtype_that_is_none_is_answered_with_those_that_there_are() {
    assert!(usage(&["load", "x", "--dtype", "f31"]).contains("expected f32, f16, bf16, f8_e4m3 or f8_e5m2"));
}

#[test]
fn a_size_that_is_too_large_is_called_that() {
    for size in ["999999999999999999999", "99999EiB"] {
        assert!(usage(&["load", "x", "--staging-bytes", size]).contains("it is too large"));
    }
}

#[test]
fn sizes_in_help_are_in_the_units_of_reports() {
    let help = stdout(&command().args(["demo", "--help"]).output().unwrap());
    assert!(help.contains("2GiB") && !help.contains("GB"), "{help}");
}

#[test]
fn a_wrong_policy_is_answered_with_the_right_ones() {
    assert!(usage(&["replay", "x", "--policy", "worst-fit"]).contains("best-fit, "));
}

#[test]
fn a_wrong_pattern_is_a_usage_error() {
    assert!(usage(&["load", "x", "--select", "a[b"]).contains("a[b"));
}

#[test]
fn a_path_is_needed() {
    for subcommand in ["inspect", "load", "verify"] {
        assert!(usage(&[subcommand]).contains("<PATH>"));
    }
    for subcommand in ["replay", "trace"] {
        assert!(usage(&[subcommand]).contains("<LOG>"));
    }
}

#[test]
fn help_and_version_are_results() {
    let help = stdout(&command().arg("--help").output().unwrap());
    for subcommand in ["inspect", "load", "verify", "map", "replay", "trace", "demo"] {
        assert!(help.contains(subcommand), "{help}");
    }
    assert!(stdout(&command().arg("--version").output().unwrap()).starts_with("tensorhold "));
}
