//! What errors say: their cause, in the words of where they appear, and what helps.

mod support;

use std::error::Error as _;
use std::fs;
use std::path::{Path, PathBuf};

use support::{bytes_tensor, single};
use tensorhold::{Backend, BackendKind, Cut, DType, Device, Error, Loader, Vocabulary};

/// Errors of loads that cannot be followed, or of files that are not there.
fn failures(path: &Path) -> Vec<Error> {
    let loader = || Loader::new(Device::host()).files([path]);
    let failed = |loader: Loader| loader.load().map(drop).unwrap_err();
    let folder = path.parent().unwrap();
    let weights = loader().load().unwrap();
    vec![
        failed(loader().backend(Backend::Require(BackendKind::Gds))),
        failed(loader().threads(0)),
        failed(loader().staging_bytes(131_071)),
        failed(loader().memory_budget(1)),
        failed(loader().dtype(DType::I64)),
        failed(loader().cut("t", Cut::shard(0, 0, 4))),
        failed(loader().transform_on(tensorhold::TransformOn::Device).dtype_by(|_| Some(DType::BF16))),
        failed(Loader::new(Device::host())),
        failed(Loader::new(Device::host()).files([folder])),
        failed(Loader::new(Device::host()).files(["/dev/null"])),
        weights.view("x").map(drop).unwrap_err(),
        weights.tensor("t").unwrap().narrow(0, 3, 9).map(drop).unwrap_err(),
        weights.tensor("t").unwrap().narrow(4, 3, 9).map(drop).unwrap_err(),
        Device::cuda(977).map(drop).unwrap_err(),
    ]
}

/// A message with those of its sources, as a front shows it.
fn shown(error: &Error, words: Vocabulary) -> String {
    let mut message = words.describe(error);
    let mut source = error.source();
    while let Some(below) = source {
        message += &format!(": {}", words.describe(below));
        source = below.source();
    }
    message
}

#[test]
fn each_front_gets_its_own_words_and_the_library_those_of_rust() {
    let (_folder, path) = single(&[bytes_tensor("t", 9)]);
    for error in failures(&path) {
        let rust = Vocabulary::Rust.describe(&error);
        assert_eq!(rust, error.to_string());
        assert!(!rust.is_empty() && !rust.contains("--"), "{rust}");
        let command = shown(&error, Vocabulary::Command);
        for name in ["::", "()", "staging_bytes"] {
            assert!(!command.contains(name), "{command}");
        }
        let python = shown(&error, Vocabulary::Python);
        for name in ["::", "--", "names()", "shape()", "checkpoint()"] {
            assert!(!python.contains(name), "{python}");
        }
    }
}

#[test]
fn numbers_that_differ_are_told_apart() {
    let (_folder, path) = single(&[bytes_tensor("t", 9)]);
    let error = Loader::new(Device::host()).files([path]).staging_bytes(131_071).load().unwrap_err();
    assert!(error.to_string().contains("got 131071 B, expected at least 131072 B"), "{error}");
}

#[test]
fn errors_of_paths_say_the_systems_own_cause() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.safetensors");
    fs::write(&file, "").unwrap();
    std::os::unix::fs::symlink("loop.safetensors", folder.path().join("loop.safetensors")).unwrap();
    let cases: [(PathBuf, &str); 4] = [
        (file.join("below"), "is a file, not a directory"),
        (folder.path().join("n".repeat(300)), "is too long"),
        (folder.path().join("loop.safetensors"), "symbolic links"),
        (folder.path().join("missing"), "there is no such file"),
    ];
    for (path, cause) in cases {
        let error = Loader::new(Device::host()).files([&path]).load().unwrap_err();
        assert!(error.to_string().contains(cause), "{error}");
        assert!(!error.to_string().contains("disk"), "{error}");
    }
}

#[test]
fn a_file_of_another_format_is_named_by_every_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (content, words) in [
        (&b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"[..], "git lfs pull"),
        (b"<html><title>Sign in</title>", "an HTML page that says \"Sign in\""),
        (b"PK\x03\x04\0\0\0\0archive/data.pkl", "torch.save"),
        (b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0", "GGUF"),
        (&[0; 70_000], "zeros"),
    ] {
        fs::write(&path, content).unwrap();
        let loader = || Loader::new(Device::host()).files([&path]);
        let errors = [
            loader().load().map(drop).unwrap_err(),
            loader().open().map(drop).unwrap_err(),
            loader().inspect().map(drop).unwrap_err(),
            loader().stream().map(drop).unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, Error::Header { .. }) && error.to_string().contains(words), "{error}");
        }
    }
}
