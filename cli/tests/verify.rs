//! `tensorhold verify`. Differences are found by the unit tests beside its code: no file that a load accepts differs.

mod support;

use std::fs;

use serde_json::json;
use support::{checkpoint, failure, json, run, stdout};

#[test]
fn what_was_loaded_is_equal() {
    let folder = checkpoint();
    let printed = stdout(&run("verify", folder.path(), &["--device", "cpu"]));
    assert!(printed.starts_with("loaded 3 tensors from 2 files"), "{printed}");
    assert!(printed.ends_with(" s: 3 of 3 tensors, 56 B of 56 B, equal the files\n"), "{printed}");
}

#[test]
fn json_says_that_all_is_equal() {
    let folder = checkpoint();
    let document = json(&run("verify", folder.path(), &["--device", "cpu", "--json"]));
    assert_eq!((&document["equal"], &document["differences"]), (&json!(true), &json!([])));
    assert_eq!((&document["tensors"], &document["equal_tensors"]), (&json!(3), &json!(3)));
    assert_eq!((&document["bytes"], &document["equal_bytes"]), (&json!(56), &json!(56)));
    assert_eq!(document["load"]["bytes"], json!(56));
}

#[test]
fn a_selection_is_verified_alone() {
    let folder = checkpoint();
    let document = json(&run("verify", folder.path(), &["--device", "cpu", "--json", "--select", "a.*"]));
    assert_eq!((&document["equal"], &document["equal_tensors"]), (&json!(true), &json!(2)));
}

#[test]
fn the_default_device_is_verified_too() {
    let folder = checkpoint();
    assert_eq!(json(&run("verify", folder.path(), &["--json"]))["equal_bytes"], json!(56));
}

#[test]
fn a_corrupt_file_is_an_error_and_no_result() {
    let folder = checkpoint();
    fs::write(folder.path().join("model-00001-of-00002.safetensors"), b"").unwrap();
    let message = failure(&run("verify", folder.path(), &["--device", "cpu"]), 1);
    assert!(message.contains("model-00001-of-00002.safetensors"), "{message}");
}
