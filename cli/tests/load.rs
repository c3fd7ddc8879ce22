//! `tensorhold load`.

mod support;

use std::fs::{self, OpenOptions};

use serde_json::json;
use support::{checkpoint, failure, json, run, stdout};

#[test]
fn the_report_says_what_was_loaded_and_where_the_time_went() {
    let folder = checkpoint();
    let printed = stdout(&run("load", folder.path(), &["--device", "cpu", "--threads", "2"]));
    assert!(printed.starts_with("loaded 3 tensors from 2 files, 56 B in "), "{printed}");
    for line in
        ["  device    host (as asked)", "  memory    ", "  time      plan ", "  threads   2 (as asked)"]
    {
        assert!(printed.contains(line), "{printed}");
    }
    assert!(printed.contains("in 1 region, 0 B of staging"), "{printed}");
}

#[test]
fn json_is_the_librarys_report_and_the_rate() {
    let folder = checkpoint();
    let report = json(&run("load", folder.path(), &["--device", "host", "--json"]));
    assert_eq!((&report["tensors"], &report["bytes"], &report["files"]), (&json!(3), &json!(56), &json!(2)));
    assert_eq!((&report["device"], &report["device_why"]), (&json!("host"), &json!("as asked")));
    let seconds = report["times"]["total"].as_f64().unwrap();
    let rate = report["gigabytes_per_second"].as_f64().unwrap();
    assert!((rate * seconds * 1e9 - 56.0).abs() < 0.1, "{report}");
    assert!(report["choices"].as_array().unwrap().iter().any(|choice| choice["about"] == "threads"));
}

#[test]
fn only_what_is_selected_is_loaded() {
    let folder = checkpoint();
    let load = |patterns: &[&str]| {
        let mut options = vec!["--device", "cpu", "--json"];
        options.extend(patterns.iter().flat_map(|pattern| ["--select", *pattern]));
        json(&run("load", folder.path(), &options))
    };
    assert_eq!(load(&["*.weight"])["bytes"], json!(44));
    assert_eq!(load(&["a.bias", "b*"])["bytes"], json!(32));
}

#[test]
fn floats_are_converted_if_that_is_asked() {
    let folder = checkpoint();
    let report = json(&run("load", folder.path(), &["--device", "cpu", "--dtype", "bf16", "--json"]));
    assert_eq!(
        (&report["tensors"], &report["bytes"], &report["cached_bytes"]),
        (&json!(3), &json!(28), &json!(56))
    );
    let message = failure(&run("load", folder.path(), &["--device", "cpu", "--dtype", "i64"]), 1);
    assert!(message.contains("option --dtype: got I64, expected one of F32"), "{message}");
    let message = failure(&run("load", folder.path(), &["--dtype", "float"]), 2);
    assert!(message.contains("expected f32, f16"), "{message}");
}

#[test]
fn a_selection_of_nothing_is_an_error() {
    let folder = checkpoint();
    let message = failure(&run("load", folder.path(), &["--device", "cpu", "--select", "c.*"]), 1);
    assert!(message.contains("\"c.*\""), "{message}");
}

#[test]
fn a_device_is_found_if_none_is_named() {
    let folder = checkpoint();
    let report = json(&run("load", folder.path(), &["--json"]));
    let (device, why) = (&report["device"], report["device_why"].as_str().unwrap());
    assert!(if device == "host" { why.starts_with("no CUDA: ") } else { device == "cuda:0" }, "{report}");
}

#[test]
fn a_missing_path_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let message = failure(&run("load", &folder.path().join("nothing"), &["--device", "cpu"]), 1);
    assert!(message.starts_with("error: ") && message.contains("nothing"), "{message}");
}

#[test]
fn a_corrupt_file_is_named() {
    let folder = checkpoint();
    let path = folder.path().join("model-00002-of-00002.safetensors");
    fs::write(&path, b"\xff\xff\xff\xff\xff\xff\xff\xffnot a header").unwrap();
    let message = failure(&run("load", folder.path(), &["--device", "cpu"]), 1);
    assert!(
        message.starts_with("error: ") && message.contains("model-00002-of-00002.safetensors"),
        "{message}"
    );
}

#[test]
fn a_truncated_file_is_named() {
    let folder = checkpoint();
    let path = folder.path().join("model-00001-of-00002.safetensors");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let message = failure(&run("load", folder.path(), &["--device", "cpu"]), 1);
    assert!(
        message.starts_with("error: ") && message.contains("model-00001-of-00002.safetensors"),
        "{message}"
    );
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let folder = checkpoint();
    let message = failure(&run("load", folder.path(), &["--device", "cuda:999"]), 1);
    assert!(message.contains("cuda:999"), "{message}");
}
