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
