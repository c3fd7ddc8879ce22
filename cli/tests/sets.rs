//! Which weights of a folder the command takes: the same for every subcommand.

mod support;

use std::fs;
use std::path::Path;

use serde_json::json;
use support::{checkpoint, command, failure, json, run, stdout, write};
use tempfile::TempDir;

fn folder(files: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        write(&folder.path().join(file), &[(file, &[3])]);
    }
    folder
}

/// What each subcommand that takes a checkpoint prints about a folder that it refuses.
fn refused(path: &Path, options: &[&str]) -> Vec<String> {
    let refused = |subcommand| failure(&run(subcommand, path, options), 1);
    ["inspect", "load", "verify", "map"].map(refused).to_vec()
}

#[test]
fn one_set_is_taken_and_the_others_are_told() {
    let folder = folder(&["model.safetensors", "consolidated.safetensors", "model.fp16.safetensors"]);
    for (subcommand, label) in [("inspect", "left out: "), ("load", "left out  "), ("verify", "left out  ")] {
        let printed = stdout(&run(subcommand, folder.path(), &[]));
        assert!(printed.contains("1 tensor"), "{printed}");
        for (file, why) in [("consolidated", "come before"), ("model.fp16", "of variant \"fp16\"")] {
            let line = printed.lines().find(|line| line.contains(label) && line.contains(file));
            assert!(line.is_some_and(|line| line.contains(why)), "{printed}");
        }
    }
    let document = json(&run("inspect", folder.path(), &["--json"]));
    assert_eq!(document["left_out"][0]["path"], json!(folder.path().join("consolidated.safetensors")));
    let document = json(&run("load", folder.path(), &["--json"]));
    assert_eq!(document["left_out"].as_array().unwrap().len(), 2);
}

#[test]
fn a_variant_is_taken_by_every_subcommand() {
    let folder = folder(&["model.safetensors", "model.fp16.safetensors"]);
    for subcommand in ["inspect", "load", "verify", "map"] {
        let output = run(subcommand, folder.path(), &["--variant", "fp16"]);
        let printed = stdout(&output);
        assert!(printed.contains(if subcommand == "map" { "<svg" } else { "1 tensor" }), "{printed}");
    }
    let printed = stdout(&run("inspect", folder.path(), &["--variant", "fp16"]));
    assert!(printed.contains("model.fp16.safetensors: 1 tensor"), "{printed}");
    for message in refused(folder.path(), &["--variant", "bf16"]) {
        assert!(message.contains("no weights of variant \"bf16\", but of \"fp16\""), "{message}");
    }
    for variant in ["", "a/b"] {
        let output = command().arg("load").arg(folder.path()).args(["--variant", variant]).output().unwrap();
        failure(&output, 2);
    }
}

#[test]
fn an_ambiguous_folder_names_the_option_of_the_command() {
    for files in [
        ["model.fp16.safetensors", "model.bf16.safetensors"],
        ["model.safetensors", "model.visual.safetensors"],
    ] {
        let folder = folder(&files);
        for message in refused(folder.path(), &[]) {
            assert!(message.contains("choose a variant with --variant"), "{message}");
        }
    }
}

#[test]
fn half_a_checkpoint_is_refused_by_every_subcommand() {
    let folder = checkpoint();
    fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    stdout(&run("verify", folder.path(), &[]));
    fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).unwrap();
    for message in refused(folder.path(), &[]) {
        assert!(message.contains("1 is missing: \"model-00002-of-00002.safetensors\""), "{message}");
    }
    stdout(&run("verify", &folder.path().join("model-00001-of-00002.safetensors"), &[]));
}

#[test]
fn a_patched_tensor_is_verified_against_the_file_that_the_index_names() {
    let folder = checkpoint();
    write(&folder.path().join("patch.safetensors"), &[("a.weight", &[7])]);
    let path = folder.path().join("model.safetensors.index.json");
    let index = fs::read_to_string(&path).unwrap();
    fs::write(&path, index.replace("\"a.weight\":\"model-00001-of-00002", "\"a.weight\":\"patch")).unwrap();
    let printed = stdout(&run("verify", folder.path(), &[]));
    assert!(printed.contains("3 of 3 tensors") && printed.contains("left out"), "{printed}");
    let printed = stdout(&run("inspect", folder.path(), &[]));
    assert!(printed.contains("a.weight  F32  [7]"), "{printed}");
}

#[test]
fn other_files_of_a_model_are_named_for_what_they_are() {
    let folder = folder(&["model.safetensors"]);
    let path = folder.path().join("config.json");
    fs::write(&path, r#"{"architectures": ["LlamaForCausalLM"]}"#).unwrap();
    for message in refused(&path, &[]) {
        assert!(message.contains("it is the configuration of a model"), "{message}");
        assert!(message.contains(&format!("name the folder {:?}", folder.path())), "{message}");
    }
}
