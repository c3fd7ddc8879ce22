//! Messages of the command use its own words: flags and subcommands, and no names of the library.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use support::{checkpoint, command, failure, run, write};

/// Failing calls of the command, each with what it prints to standard error.
fn failures(folder: &Path) -> Vec<String> {
    let file = |name: &str| folder.join(name);
    write(&file("model.safetensors"), &[("a", &[2, 2]), ("b", &[3])]);
    let model = file("model.safetensors");
    write(&file("same.safetensors"), &[("a", &[2, 2])]);
    fs::write(file("empty.safetensors"), "").unwrap();
    fs::write(file("text.safetensors"), "<!DOCTYPE html><html></html>").unwrap();
    fs::write(file("model.safetensors.index.json"), "{}").unwrap();
    fs::write(file("no.json"), "no JSON").unwrap();
    fs::create_dir(file("nothing")).unwrap();
    fs::create_dir(file("fifos")).unwrap();
    symlink("/nowhere", file("gone.safetensors")).unwrap();
    symlink(file("loop.safetensors"), file("loop.safetensors")).unwrap();
    symlink("/dev/null", file("device.safetensors")).unwrap();
    symlink("/dev/null", file("fifos/device.safetensors")).unwrap();
    symlink(file("nothing"), file("fifos/folder.safetensors")).unwrap();
    let mut messages = Vec::new();
    let paths: Vec<PathBuf> = [
        "empty.safetensors",
        "text.safetensors",
        "model.safetensors.index.json",
        "no.json",
        "nothing",
        "fifos",
        "gone.safetensors",
        "loop.safetensors",
        "device.safetensors",
        "missing",
        "model.safetensors/below",
        "",
    ]
    .map(file)
    .into();
    for path in &paths {
        for subcommand in ["inspect", "load", "verify", "map"] {
            messages.push(failure(&run(subcommand, path, &[]), 1));
        }
    }
    for options in [
        &["--backend", "gds", "--device", "cpu"][..],
        &["--parts", "require", "--device", "pinned"],
        &["--device", "cuda:250"],
        &["--device", "cuda:0", "--backend", "gds"],
        &["--staging-bytes", "131071", "--device", "cpu"],
        &["--select", "nothing*", "--device", "cpu"],
    ] {
        let output = run("load", &model, options);
        // A machine with such a device has less to say.
        if !output.status.success() {
            messages.push(failure(&output, 1));
        }
    }
    for options in [
        &["load", "--device", "gpu"][..],
        &["load", "--threads", "0"],
        &["load", "--backend", "fast"],
        &["load", "--dtype", "f31"],
        &["load", "--parts", "maybe"],
        &["load", "--staging-bytes", "lots"],
        &["map"],
        &["load", "--dtype", "i8", "--device", "cpu"],
    ] {
        let output = command().args(options).arg(&model).output().unwrap();
        if !output.status.success() {
            messages.push(support::stderr(&output));
        }
    }
    for options in [&["replay"][..], &["trace"], &["map", "--snapshot"]] {
        for path in [&model, &file("missing"), folder] {
            messages.push(failure(&command().args(options).arg(path).output().unwrap(), 1));
        }
    }
    for out in ["/dev/full", "/nowhere/out.svg", "/"] {
        messages.push(failure(&run("map", &model, &["--device", "cpu", "--out", out]), 1));
        messages.push(support::stderr(&run("load", &model, &["--device", "cpu", "--events", out])));
    }
    let demo = ["/nowhere/x", "--device", "cpu", "--bytes", "1000"];
    messages.push(support::stderr(&run("demo", Path::new("--dir"), &demo)));
    messages
}

#[test]
fn no_message_has_names_of_the_library() {
    let folder = checkpoint();
    fs::create_dir(folder.path().join("cases")).unwrap();
    let messages = failures(&folder.path().join("cases"));
    assert!(messages.len() > 60);
    for message in &messages {
        assert!(message.starts_with("error: "), "{message}");
        for name in [
            "::",
            "()",
            "Device",
            "Backend",
            "Loader",
            "Pool",
            "staging_bytes",
            "memory_budget",
            "region_parts",
        ] {
            // A path of this test may have any letters, but none of these.
            assert!(!message.contains(name), "{name}: {message}");
        }
    }
}

#[test]
fn a_required_backend_is_named_by_its_flag() {
    let folder = checkpoint();
    let message = failure(&run("load", folder.path(), &["--backend", "gds", "--device", "cpu"]), 1);
    assert!(message.contains("option --backend: got gds onto host memory"), "{message}");
    assert!(message.contains("leave out --backend"), "{message}");
}

#[test]
fn errors_of_the_system_say_the_cause_and_what_helps() {
    let folder = checkpoint();
    let model = folder.path();
    for (out, cause, remedy) in [
        ("/dev/full", "no space is left", "free space"),
        ("/nowhere/out.svg", "there is no such file or directory", "check the path"),
        ("/", "it is a directory, not a file", "name a file"),
    ] {
        let message = failure(&run("map", model, &["--device", "cpu", "--out", out]), 1);
        assert!(message.contains(cause) && message.contains(remedy) && message.contains(out), "{message}");
        assert!(!message.contains("check the disk"), "{message}");
    }
}

#[test]
fn a_report_has_one_system_of_units() {
    let folder = checkpoint();
    let options = ["--device", "cpu"];
    for subcommand in ["load", "verify"] {
        let text = support::stdout(&run(subcommand, folder.path(), &options));
        assert!(text.contains("iB/s"), "{text}");
        let is_decimal = |word: &str| {
            let word = word.trim_end_matches(|c: char| !c.is_alphanumeric());
            ["kB", "MB", "GB", "GB/s", "TB"].contains(&word)
        };
        assert!(!text.split_whitespace().any(is_decimal), "{text}");
    }
    let text = support::stdout(&run("inspect", folder.path(), &[]));
    assert!(!text.contains("kB") && !text.contains("MB"), "{text}");
}
