//! `tensorhold inspect`.

mod support;

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;

use serde_json::json;
use support::{checkpoint, command, failure, json, run, stdout, write};

#[test]
fn tensors_shards_and_the_total_are_listed() {
    let folder = checkpoint();
    let printed = stdout(&run("inspect", folder.path(), &[]));
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines.len(), 6, "{printed}");
    assert!(lines[0].contains("model-00001-of-00002.safetensors: 2 tensors, 36 B; file of "), "{printed}");
    assert_eq!(lines[1], "  a.bias    F32  [3]     12 B");
    assert_eq!(lines[2], "  a.weight  F32  [2, 3]  24 B");
    assert!(lines[3].contains("model-00002-of-00002.safetensors: 1 tensor, 20 B; file of "), "{printed}");
    assert_eq!(lines[4], "  b.weight  F32  [5, 1]  20 B");
    assert_eq!(lines[5], "total: 3 tensors, 56 B (56 bytes), in 2 files");
}

#[test]
fn json_has_the_same_numbers() {
    let folder = checkpoint();
    let document = json(&run("inspect", folder.path(), &["--json"]));
    assert_eq!(document["total"], json!({ "tensors": 3, "bytes": 56 }));
    let tensor = &document["tensors"][1];
    assert_eq!(
        (&tensor["name"], &tensor["dtype"], &tensor["nbytes"]),
        (&json!("a.weight"), &json!("F32"), &json!(24))
    );
    assert_eq!(tensor["shape"], json!([2, 3]));
    let path = folder.path().join("model-00002-of-00002.safetensors");
    let file = &document["files"][1];
    assert_eq!(file["path"], json!(path));
    assert_eq!((&file["tensors"], &file["bytes"]), (&json!(1), &json!(20)));
    assert_eq!(file["file_bytes"], json!(fs::metadata(path).unwrap().len()));
}

#[test]
fn a_selection_says_of_how_many() {
    let folder = checkpoint();
    let printed = stdout(&run("inspect", folder.path(), &["--select", "*.bias"]));
    assert!(printed.contains(": 1 of 2 tensors, 12 B; "), "{printed}");
    assert!(printed.contains(": 0 of 1 tensor, 0 B; "), "{printed}");
    assert!(printed.ends_with("total: 1 tensor, 12 B (12 bytes), in 2 files\n"), "{printed}");
    let document = json(&run("inspect", folder.path(), &["--json", "--select", "*.bias", "--select", "b.*"]));
    assert_eq!(document["total"], json!({ "tensors": 2, "bytes": 32 }));
}

#[test]
fn a_single_file_and_an_index_are_checkpoints() {
    let folder = checkpoint();
    let single = stdout(&run("inspect", &folder.path().join("model-00002-of-00002.safetensors"), &[]));
    assert!(single.ends_with("total: 1 tensor, 20 B (20 bytes), in 1 file\n"), "{single}");
    let index = stdout(&run("inspect", &folder.path().join("model.safetensors.index.json"), &[]));
    assert!(index.ends_with("total: 3 tensors, 56 B (56 bytes), in 2 files\n"), "{index}");
}

#[test]
fn control_characters_in_names_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("\u{1b}[2Jevil", &[1])]);
    let printed = stdout(&run("inspect", &path, &[]));
    assert!(printed.contains("\\u{1b}[2Jevil") && !printed.contains('\u{1b}'), "{printed}");
}

#[test]
fn headers_are_enough_to_inspect() {
    // A terabyte could not be read in the time of a test. The file is a hole but for its header.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let header = r#"{"huge":{"dtype":"U8","shape":[1000000000000],"data_offsets":[0,1000000000000]}}"#;
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(8 + header.len() as u64 + 1_000_000_000_000).unwrap();
    let printed = stdout(&run("inspect", &path, &[]));
    assert!(printed.contains("931.3 GiB"), "{printed}");
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let names: Vec<String> = (0..5000).map(|index| format!("model.layers.{index}.weight")).collect();
    write(&path, &names.iter().map(|name| (&**name, &[1][..])).collect::<Vec<_>>());
    for options in [&[][..], &["--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command().arg("inspect").arg(&path).args(options).stdout(writer).output().unwrap();
        assert_eq!(support::stderr(&output), "");
        assert!(output.status.success());
    }
}

#[test]
fn a_selection_of_nothing_is_an_error() {
    let folder = checkpoint();
    let message = failure(&run("inspect", folder.path(), &["--select", "bias"]), 1);
    assert!(message.starts_with("error: select: no tensor's name matches \"bias\""), "{message}");
}

#[test]
fn one_long_name_or_shape_does_not_widen_every_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let entry = |name: &str, ones: usize| {
        let shape = format!("[0{}]", ",1".repeat(ones));
        format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[0,0]}}"#)
    };
    let mut entries: Vec<_> = (0..1000).map(|number| entry(&format!("t{number}"), 0)).collect();
    entries.extend([entry(&"n".repeat(1_000_000), 0), entry("shape", 4000)]);
    let header = format!("{{{}}}", entries.join(","));
    fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()).unwrap();
    let printed = stdout(&run("inspect", &path, &[]));
    assert!(printed.contains("nnn... (1000000 characters)"));
    assert!(printed.len() < 1_000_000, "{} bytes", printed.len());
    let all = json(&run("inspect", &path, &["--json"]));
    let lengths =
        all["tensors"].as_array().unwrap().iter().map(|tensor| tensor["name"].as_str().unwrap().len());
    assert_eq!(lengths.max(), Some(1_000_000));
}

#[test]
fn a_path_that_is_not_utf8_is_a_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(OsStr::from_bytes(b"m\xffdel.safetensors"));
    write(&path, &[("t", &[2])]);
    assert!(stdout(&run("inspect", &path, &[])).contains("m\u{fffd}del.safetensors: 1 tensor"));
    let shown = json!(path.display().to_string());
    let document = json(&run("inspect", &path, &["--json"]));
    assert_eq!((&document["files"][0]["path"], &document["tensors"][0]["file"]), (&shown, &shown));
    for (subcommand, options) in
        [("load", &["--json"][..]), ("load", &[]), ("verify", &["--json"]), ("verify", &[])]
    {
        let output = command().arg(subcommand).arg(&path).args(options).output().unwrap();
        assert!(output.status.success(), "{subcommand} {options:?}: {output:?}");
    }
    let picture = folder.path().join(OsStr::from_bytes(b"m\xffp.svg"));
    let output = command().arg("map").arg(&path).arg("--out").arg(&picture).output().unwrap();
    assert!(output.status.success() && picture.exists(), "{output:?}");
}
