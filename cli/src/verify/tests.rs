//! Differences are found: the files are changed after they were loaded.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;
use tensorhold::{Device, Loader, Weights};

use super::{Verification, compare};

/// Longer than one piece, and not a multiple of one.
const LARGE_SHAPE: [usize; 3] = [1, 5000, 4001];
const LARGE_BYTES: usize = 5000 * 4001;

fn write(path: &Path, large: &str, bias_shape: &[usize]) {
    let bytes: Vec<u8> = (0..LARGE_BYTES).map(|i| (i % 251) as u8).collect();
    let tensor = |shape: &[usize]| {
        let bytes = &bytes[..shape.iter().product()];
        TensorView::new(Dtype::U8, shape.to_vec(), bytes).unwrap()
    };
    let tensors = [("bias", tensor(bias_shape)), ("empty", tensor(&[0])), (large, tensor(&LARGE_SHAPE))];
    safetensors::serialize_to_file(tensors, None, path).unwrap();
}

fn loaded(select: fn(&str) -> bool) -> (TempDir, PathBuf, Weights) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, "large", &[16]);
    let weights =
        Loader::new(Device::host()).files([&path]).select(move |info| select(&info.name)).load().unwrap();
    (folder, path, weights)
}

/// Flips all bits of the byte at this distance from the file's end.
fn flip(path: &Path, from_end: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let (at, mut byte) = (file.metadata().unwrap().len() - from_end, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// The differences as they are shown, without the file's path, which is in each.
fn differences(verification: &Verification, path: &Path) -> Vec<String> {
    let file = format!(" of {path:?}");
    let shown = verification.differences.iter().map(ToString::to_string);
    shown
        .inspect(|shown| assert!(shown.contains(&file), "{shown}"))
        .map(|shown| shown.replace(&file, ""))
        .collect()
}

#[test]
fn what_was_loaded_is_equal() {
    let (_folder, _, weights) = loaded(|_| true);
    let found = compare(&weights, |_| true).unwrap();
    let bytes = LARGE_BYTES as u64 + 16;
    assert_eq!((found.tensors, found.equal_tensors, found.bytes, found.equal_bytes), (3, 3, bytes, bytes));
    found.check().unwrap();
}

#[test]
fn the_first_byte_that_differs_is_named() {
    let (_folder, path, weights) = loaded(|_| true);
    assert_eq!(weights.names().last(), Some("large"));
    let (first, second) = (12_345_678, LARGE_BYTES as u64 - 1);
    for offset in [second, first] {
        flip(&path, LARGE_BYTES as u64 - offset);
    }
    let found = compare(&weights, |_| true).unwrap();
    let loaded = (first % 251) as u8;
    let expected = format!(
        "tensor \"large\": byte {first} is {:#04x} in the file and {loaded:#04x} on the device",
        !loaded
    );
    assert_eq!(differences(&found, &path), [expected.as_str()]);
    assert_eq!((found.tensors, found.equal_tensors, found.equal_bytes), (3, 2, 16));
    let error = found.check().unwrap_err();
    assert_eq!(error.source().unwrap().to_string(), expected.replace(':', &format!(" of {path:?}:")));
    assert!(error.to_string().starts_with("verify: 1 of 3 tensors differ"), "{error}");
}

#[test]
fn a_wrong_shape_is_named() {
    let (_folder, path, weights) = loaded(|_| true);
    write(&path, "large", &[4, 4]);
    let found = compare(&weights, |_| true).unwrap();
    let expected =
        "tensor \"bias\": it is U8 [4, 4] of 16 bytes in the file and U8 [16] of 16 bytes on the device";
    assert_eq!(differences(&found, &path), [expected]);
}

#[test]
fn names_of_one_side_only_are_differences() {
    let (_folder, path, weights) = loaded(|_| true);
    write(&path, "other", &[16]);
    let found = compare(&weights, |_| true).unwrap();
    let expected = [
        "tensor \"large\": it was loaded and is not in the file",
        "tensor \"other\": it is in the file and was not loaded",
    ];
    assert_eq!(differences(&found, &path), expected);
    assert_eq!((found.tensors, found.equal_tensors), (4, 2));
}

#[test]
fn what_was_not_wanted_is_not_missed() {
    let (_folder, path, weights) = loaded(|name| name == "bias");
    assert!(compare(&weights, |name| name == "bias").unwrap().differences.is_empty());
    let found = compare(&weights, |name| name != "empty").unwrap();
    assert_eq!(differences(&found, &path), ["tensor \"large\": it is in the file and was not loaded"]);
}

#[test]
fn a_file_that_went_away_is_an_error() {
    let (_folder, path, weights) = loaded(|_| true);
    std::fs::remove_file(&path).unwrap();
    assert!(compare(&weights, |_| true).unwrap_err().to_string().starts_with("open "));
}

#[test]
fn a_file_that_shrank_is_an_error() {
    let (_folder, path, weights) = loaded(|_| true);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    assert!(compare(&weights, |_| true).unwrap_err().to_string().contains("bytes of"));
}
