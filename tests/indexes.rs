//! What an index has authority over, and files that are taken for one.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::folders::{INDEX, assert_loads, assert_refuses, folder, index, left_out, load, loader};
use support::{Spec, assert_all_back, assert_holds, bytes_tensor, devices, pool_for, write};
use tempfile::TempDir;
use tensorhold::{Device, Error, Loader, Pool};

#[test]
fn an_index_that_another_system_wrote_says_what_to_change() {
    let folder = folder(&["sub/m.safetensors"]);
    let path = folder.path().join(INDEX);
    fs::write(&path, "\u{feff}{\"weight_map\":{\"sub/m.safetensors\":\"sub/m.safetensors\"}}").unwrap();
    assert_refuses(&folder, None, &["byte order mark"]);
    fs::write(&path, r#"{"weight_map":{"sub/m.safetensors":"sub\\m.safetensors"}}"#).unwrap();
    assert_refuses(&folder, None, &["separates no folders", "write `/`"]);
    fs::write(&path, r#"{"weight_map":{"x":"..\\m.safetensors"}}"#).unwrap();
    assert_refuses(&folder, None, &["separates no folders"]);
}

#[test]
fn an_index_of_torch_says_which_safetensors_files_are_next_to_it() {
    let folder = folder(&["model.safetensors"]);
    let path = folder.path().join("pytorch_model.bin.index.json");
    fs::write(&path, r#"{"weight_map": {"x": "pytorch_model-1-of-2.bin"}}"#).unwrap();
    let error = load(&path, None).unwrap_err().to_string();
    assert!(error.contains("name the folder") && error.contains("\"model.safetensors\""), "{error}");
    index(&folder.path().join(INDEX), &[("model.safetensors", "model.safetensors")]);
    let error = load(&path, None).unwrap_err().to_string();
    assert!(error.contains(&format!("name the index \"{INDEX}\"")), "{error}");
}

#[test]
fn an_index_is_taken_with_its_quirks() {
    let folder = folder(&["a.safetensors", "part/b.safetensors", "extra.safetensors"]);
    fs::copy(folder.path().join("a.safetensors"), folder.path().join("copy.safetensors")).unwrap();
    let map =
        r#""weight_map":{"a.safetensors":"./a.safetensors","part/b.safetensors":"part/./b.safetensors"}"#;
    for text in [
        format!("{{{map}}}"),
        format!(r#"{{"metadata":{{}},{map}}}"#),
        format!(r#"{{"metadata":null,{map},"total_parameters":3.5,"more":[{{"weight_map":7}}]}}"#),
        format!(r#"{{"metadata":{{"total_size":"12 GB"}},{map}}}"#),
    ] {
        fs::write(folder.path().join(INDEX), text).unwrap();
        assert_loads(&folder, None, &["a.safetensors", "part/b.safetensors"]);
        let found = loader(folder.path()).inspect().unwrap();
        let why = "the index \"model.safetensors.index.json\" does not name it";
        let expected =
            ["copy.safetensors", "extra.safetensors"].map(|file| (file.to_owned(), why.to_owned()));
        assert_eq!(left_out(&found.left_out), expected);
        let by_path = loader(&folder.path().join(INDEX)).load().unwrap();
        assert_eq!(left_out(&by_path.report().left_out), expected);
    }
}

#[test]
fn an_index_without_its_files_says_that_and_what_is_missing() {
    let folder = folder(&["other.safetensors"]);
    let path = folder.path().join(INDEX);
    let shards: Vec<_> = (1..=5000).map(|n| format!("model-{n:05}-of-05000.safetensors")).collect();
    let tensors: Vec<_> = shards.iter().map(|shard| (&**shard, &**shard)).collect();
    index(&path, &tensors);
    assert_refuses(
        &folder,
        None,
        &[
            "none of the files",
            "5000 missing",
            "and 4992 more",
            "only the index was fetched",
            "\"other.safetensors\"",
        ],
    );
    index(&path, &[("x", "gone.safetensors")]);
    assert_refuses(&folder, None, &["none of the files", "\"gone.safetensors\"", "\"x\""]);
    index(
        &path,
        &[("x", "gone.safetensors"), ("other.safetensors", "other.safetensors"), ("y", "lost.safetensors")],
    );
    assert_refuses(&folder, None, &["2 of the 3 files", "\"gone.safetensors\", \"lost.safetensors\""]);
    index(&path, &[]);
    assert_refuses(&folder, None, &["\"weight_map\" is empty"]);
}

#[test]
fn other_json_files_are_named_for_what_they_are() {
    let folder = folder(&["model.safetensors"]);
    for (name, text, what) in [
        ("config.json", r#"{"architectures": ["LlamaForCausalLM"]}"#, "the configuration of a model"),
        ("generation_config.json", "{}", "generation"),
        ("tokenizer.json", "{}", "a tokenizer"),
        ("adapter_config.json", "{}", "an adapter"),
        ("model_index.json", "{}", "pipeline"),
        ("vocab.json", r#"["a"]"#, "a tokenizer"),
        ("modules.json", r#"[{"idx": 0}]"#, "the list of the modules"),
        ("list.json", r#"[{"idx": 0}]"#, "a JSON list"),
        ("any.json", "{}", "without a \"weight_map\""),
        (
            "pytorch_model.bin.index.json",
            r#"{"weight_map": {"x": "pytorch_model-1-of-2.bin"}}"#,
            "files of torch",
        ),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let error = load(&path, None).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(name), "{error}");
        fs::remove_file(&path).unwrap();
    }
}

/// Two files of `count` tensors each and a patch of the first, in a folder with their index. Returns the tensors that are to be loaded.
fn patched(count: usize) -> (TempDir, Vec<Spec>) {
    let folder = tempfile::tempdir().unwrap();
    let named = |file: &str| -> Vec<Spec> {
        (0..count).map(|n| bytes_tensor(&format!("{file}.{n}"), n % 300)).collect()
    };
    let (one, two) = (named("one"), named("two"));
    write(&folder.path().join("model-1-of-2.safetensors"), &one);
    write(&folder.path().join("model-2-of-2.safetensors"), &two);
    // Longer than what they replace.
    let patch: Vec<_> = one
        .iter()
        .step_by(2)
        .map(|old| Spec { name: old.name.clone(), ..bytes_tensor("patch", 301) })
        .collect();
    // And a tensor that the index does not know.
    let extra = bytes_tensor("extra", 5);
    write(&folder.path().join("model-patch.safetensors"), &[patch.clone(), vec![extra.clone()]].concat());
    let mut tensors = Vec::new();
    for (number, tensor) in one.iter().enumerate() {
        tensors.push((
            &*tensor.name,
            if number % 2 == 0 { "model-patch.safetensors" } else { "model-1-of-2.safetensors" },
        ));
    }
    tensors.extend(two.iter().map(|tensor| (&*tensor.name, "model-2-of-2.safetensors")));
    index(&folder.path().join(INDEX), &tensors);
    let mut expected: Vec<_> = one.iter().skip(1).step_by(2).cloned().collect();
    expected.extend(two);
    expected.extend(patch);
    expected.push(extra);
    (folder, expected)
}

#[test]
fn a_tensor_that_several_files_have_is_loaded_from_the_one_that_the_index_names() {
    // Few tensors, and enough that headers and index are read while the bytes are.
    for count in [4, 6000] {
        let (folder, expected) = patched(count);
        for device in devices() {
            let pool = pool_for(&device);
            let loader = || Loader::new(device.clone()).checkpoint(folder.path()).unwrap();
            let told = Arc::new(AtomicU64::new(0));
            let tell = Arc::clone(&told);
            let progress = loader().progress(move |progress| {
                tell.store(progress.done_bytes, Ordering::Relaxed);
                ControlFlow::Continue(())
            });
            for weights in [
                loader().load().unwrap(),
                progress.load().unwrap(),
                loader().pool(&pool).load().unwrap(),
                loader().select(|_| true).load().unwrap(),
                loader().stream().unwrap().finish().unwrap(),
                loader().open().unwrap().loader().load().unwrap(),
            ] {
                assert_holds(&weights, &expected);
                let reported = left_out(&weights.report().left_out);
                let why = format!(
                    "{} of its tensors, such as \"one.0\", are loaded from other files, by the index",
                    count / 2
                );
                assert_eq!(reported, [("model-1-of-2.safetensors".to_owned(), why)]);
            }
            let bytes: usize = expected.iter().map(|spec| spec.bytes.len()).sum();
            assert_eq!(told.load(Ordering::Relaxed), bytes as u64);
            assert_all_back(&pool);
        }
        let inspection = loader(folder.path()).inspect().unwrap();
        assert_eq!(inspection.tensors.len(), expected.len());
        // There is no room for the copies.
        let bytes: u64 = expected.iter().map(|spec| spec.bytes.len().next_multiple_of(256) as u64).sum();
        let bytes = bytes.next_multiple_of(64 << 10);
        let pool = Pool::builder(Device::host().memory()).limit_bytes(bytes).build().unwrap();
        for loader in [loader(folder.path()).memory_budget(bytes), loader(folder.path()).pool(&pool)] {
            assert_holds(&loader.load().unwrap(), &expected);
        }
    }
}

#[test]
fn a_copy_that_no_index_decides_about_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("model-a.safetensors"), folder.path().join("model-b.safetensors"));
    write(&a, &[bytes_tensor("x", 3), bytes_tensor("y", 4)]);
    write(&b, &[bytes_tensor("x", 3), bytes_tensor("z", 4)]);
    index(&folder.path().join(INDEX), &[("y", "model-a.safetensors"), ("z", "model-b.safetensors")]);
    assert!(matches!(load(folder.path(), None), Err(Error::DuplicateTensor { name, .. }) if name == "x"));
    // Nor has it authority over files that are named beside it.
    index(&folder.path().join(INDEX), &[("x", "model-a.safetensors"), ("y", "model-a.safetensors")]);
    let both = loader(folder.path()).files([&b]).load();
    assert!(matches!(both, Err(Error::DuplicateTensor { name, .. }) if name == "x"));
}
