//! Settings from the environment reach the loader, and wrong ones are errors.

mod support;

use serde_json::Value;
use support::{checkpoint, command};

#[test]
fn the_number_of_threads_is_taken_from_the_environment() {
    let folder = checkpoint();
    let mut command = command();
    let output =
        command.env("TENSORHOLD_THREADS", "3").args(["load", "--device", "cpu", "--json"]).arg(folder.path());
    let report: Value = serde_json::from_slice(&output.output().unwrap().stdout).unwrap();
    let choice = &report["choices"][0];
    assert_eq!((&choice["picked"], &choice["why"]), (&"3".into(), &"by TENSORHOLD_THREADS".into()));
}

#[test]
fn a_setting_that_is_no_number_is_an_error() {
    let folder = checkpoint();
    let mut command = command();
    let output =
        command.env("TENSORHOLD_THREADS", "many").args(["load", "--device", "cpu"]).arg(folder.path());
    let output = output.output().unwrap();
    let message = support::failure(&output, 1);
    assert!(
        message.contains("setting TENSORHOLD_THREADS: got \"many\", expected a whole number"),
        "{message}"
    );
}

#[test]
fn a_number_out_of_range_blames_the_setting_that_it_comes_from() {
    let folder = checkpoint();
    for (setting, value, got) in [
        ("TENSORHOLD_THREADS", "100000", "got 100000, expected 1 to 1024"),
        ("TENSORHOLD_THREADS", "0", "got 0, expected 1 to 1024"),
        ("TENSORHOLD_THREADS", "99999999999999999999", "expected a whole number, 1 to 1024"),
        ("TENSORHOLD_THREADS", "x", "expected a whole number, 1 to 1024"),
        ("TENSORHOLD_STAGING_BYTES", "64k", "expected a whole number, at least 131072 B"),
        ("TENSORHOLD_STAGING_BYTES", "131071", "got 131071 B, expected at least 131072 B"),
        ("TENSORHOLD_BACKEND", "gds", "got gds onto host memory, expected a CUDA device"),
    ] {
        let mut command = command();
        let output = command.env(setting, value).args(["load", "--device", "cpu"]).arg(folder.path());
        let message = support::failure(&output.output().unwrap(), 1);
        assert!(message.contains(&format!("setting {setting}: ")) && message.contains(got), "{message}");
        assert!(message.contains("correct or unset it") && !message.contains("option"), "{message}");
    }
}

#[test]
fn a_flag_that_is_given_is_blamed_though_the_setting_is_there() {
    let folder = checkpoint();
    let mut command = command();
    command.env("TENSORHOLD_STAGING_BYTES", "1048576");
    let output = command.args(["load", "--device", "cpu", "--staging-bytes", "131071"]).arg(folder.path());
    let message = support::failure(&output.output().unwrap(), 1);
    assert!(
        message.contains("option --staging-bytes: got 131071 B, expected at least 131072 B"),
        "{message}"
    );
}
