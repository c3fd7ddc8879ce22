//! Which of several sets of weights in a folder is loaded, and what an index has authority over.

mod support;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::{Spec, assert_all_back, assert_holds, bytes_tensor, devices, pool_for, write};
use tempfile::TempDir;
use tensorhold::{Batching, Device, Error, LeftOut, Loader, Pool, Result, Weights};

const INDEX: &str = "model.safetensors.index.json";

/// A folder of files, each with one tensor that has the file's name.
fn folder(files: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, &[bytes_tensor(file, 7)]);
    }
    folder
}

/// Writes an index of these tensors, each with its file.
fn index(path: &Path, tensors: &[(&str, &str)]) {
    let entries: Vec<_> = tensors.iter().map(|(tensor, file)| format!(r#""{tensor}":"{file}""#)).collect();
    fs::write(path, format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))).unwrap();
}

fn loader(path: &Path) -> Loader {
    Loader::new(Device::host()).checkpoint(path).unwrap()
}

/// The names of all tensors, the same by each way to load; or the error, the same too.
fn load(path: &Path, variant: Option<&str>) -> Result<Vec<String>> {
    let loader = || variant.into_iter().fold(loader(path), Loader::variant);
    let names = |weights: Weights| weights.names().map(str::to_owned).collect::<Vec<_>>();
    let loaded = loader().load().map(names);
    let inspected =
        loader().inspect().map(|found| found.tensors.iter().map(|info| info.name.to_string()).collect());
    let opened = loader().open().map(|opened| opened.names().map(str::to_owned).collect());
    let streamed = loader().stream().and_then(|stream| stream.finish()).map(names);
    let batches = loader().batches(Batching::new());
    let batched: Result<Vec<_>> = batches.and_then(|batches| batches.collect());
    let batched = batched.map(|batches| batches.into_iter().flat_map(names).collect());
    let text = |loaded: &Result<Vec<String>>| loaded.as_ref().map_err(ToString::to_string).cloned();
    for other in [inspected, opened, streamed, batched] {
        assert_eq!(text(&other), text(&loaded), "{path:?}");
    }
    loaded
}

#[track_caller]
fn assert_loads(folder: &TempDir, variant: Option<&str>, expected: &[&str]) {
    assert_eq!(load(folder.path(), variant).unwrap(), expected);
}

#[track_caller]
fn assert_refuses(folder: &TempDir, variant: Option<&str>, words: &[&str]) {
    let error = load(folder.path(), variant).expect_err("it is ambiguous or incomplete");
    let message = error.to_string();
    assert!(matches!(error, Error::Checkpoint { .. } | Error::Index { .. }), "{message}");
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
    assert!(message.len() < 1500, "{message}");
}

/// The names of the files that are left out, each with the reason.
fn left_out(left_out: &[LeftOut]) -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    left_out.iter().map(|left_out| (name(&left_out.path), left_out.why.clone())).collect()
}

#[test]
fn one_of_several_sets_is_loaded_and_the_others_are_reported() {
    let sets = [
        "model-1-of-2.safetensors",
        "model-2-of-2.safetensors",
        "model.fp16.safetensors",
        "consolidated.safetensors",
    ];
    let folder = folder(&sets);
    assert_loads(&folder, None, &sets[..2]);
    assert_loads(&folder, Some("fp16"), &sets[2..3]);
    let all = [
        ("consolidated.safetensors", "the weights \"model\" come before \"consolidated\""),
        ("model.fp16.safetensors", "it is of variant \"fp16\", and none was chosen"),
    ];
    let all = all.map(|(name, why)| (name.to_owned(), why.to_owned()));
    assert_eq!(left_out(&loader(folder.path()).inspect().unwrap().left_out), all);
    let opened = loader(folder.path()).open().unwrap();
    assert_eq!(left_out(opened.left_out()), all);
    let batches = opened.loader().batches(Batching::new()).unwrap();
    let mut weights: Vec<_> = batches.collect::<Result<_>>().unwrap();
    weights.push(loader(folder.path()).load().unwrap());
    weights.push(opened.loader().load().unwrap());
    weights.push(loader(folder.path()).stream().unwrap().finish().unwrap());
    for weights in weights {
        assert_eq!(left_out(&weights.report().left_out), all);
    }
    let json = serde_json::to_value(loader(folder.path()).load().unwrap().report()).unwrap();
    assert_eq!(json["left_out"].as_array().unwrap().len(), 2);
}

#[test]
fn metadata_of_systems_and_downloads_is_no_part() {
    let folder = folder(&["model.safetensors", "any.safetensors"]);
    for name in ["._model.safetensors", ".model.safetensors", "._model.safetensors.index.json"] {
        fs::write(folder.path().join(name), "\0\u{5}\u{16}\u{7}").unwrap();
    }
    fs::remove_file(folder.path().join("any.safetensors")).unwrap();
    assert_loads(&folder, None, &["model.safetensors"]);
    assert!(loader(folder.path()).inspect().unwrap().left_out.is_empty());
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = Loader::new(Device::host()).checkpoint(folder.path()).unwrap_err();
    assert!(error.to_string().contains("no *.safetensors file"), "{error}");
}

#[test]
fn a_gap_among_shards_is_an_error_of_the_folder_and_not_of_files_that_are_named() {
    let folder = folder(&["model-00002-of-00003.safetensors"]);
    let missing =
        ["2 are missing", "\"model-00001-of-00003.safetensors\", \"model-00003-of-00003.safetensors\""];
    assert_refuses(&folder, None, &missing);
    let path = folder.path().join("model-00002-of-00003.safetensors");
    assert_eq!(load(&path, None).unwrap(), ["model-00002-of-00003.safetensors"]);
    assert_eq!(Loader::new(Device::host()).files([&path]).load().unwrap().len(), 1);
    // Downloads of five thousand shards may lack nearly all.
    let folder = self::folder(&["model-00001-of-05000.safetensors"]);
    assert_refuses(&folder, None, &["4999 are missing", "and 4991 more"]);
}

#[test]
fn a_part_of_a_model_is_not_taken_for_all_of_it() {
    for (files, words) in [
        (&["model", "model.visual"][..], ["\"model\" of variant \"visual\"", "name files"]),
        (&["model", "model.mtp", "model.fp16"], ["\"model\" of variant \"mtp\"", "Loader::variant"]),
        (&["00001-of-00002"], ["1 is missing", "\"00002-of-00002.safetensors\""]),
        (&["model.00001-of-00002"], ["1 is missing", "\"model.00002-of-00002.safetensors\""]),
        (&["model-00001-OF-00002"], ["1 is missing", "\"model-00002-OF-00002.safetensors\""]),
        (&["model-1of2"], ["1 is missing", "\"model-2of2.safetensors\""]),
        (&["m-0-of-3", "m-1-of-3", "m-3-of-3"], ["of the 4 shards", "\"m-2-of-3.safetensors\""]),
        (&["consolidated.01", "consolidated.02"], ["1 of them is missing", "the first of them 0"]),
    ] {
        let files: Vec<_> = files.iter().map(|stem| format!("{stem}.safetensors")).collect();
        let folder = folder(&files.iter().map(|file| &**file).collect::<Vec<_>>());
        assert_refuses(&folder, None, &words);
        let named = loader(&folder.path().join(&files[0])).load().unwrap();
        assert!(named.names().eq([&*files[0]]), "{files:?}");
    }
}

#[test]
fn shards_that_are_numbered_from_zero_to_their_count_are_complete() {
    let shards = ["m-0-of-2.safetensors", "m-1-of-2.safetensors", "m-2-of-2.safetensors"];
    assert_loads(&folder(&shards), None, &shards);
}

#[test]
fn a_variant_may_have_dots() {
    let names = ["model.safetensors", "model.fp16.safetensors", "model.fp16.ema.safetensors"];
    let folder = folder(&names);
    assert_loads(&folder, Some("fp16.ema"), &names[2..]);
    assert_loads(&folder, Some("fp16"), &names[1..2]);
    assert_loads(&folder, None, &names[..1]);
}

#[test]
fn an_unfinished_download_is_not_loaded() {
    for ending in ["aria2", "part", "crdownload", "incomplete", "download", "tmp", "partial"] {
        for name in ["model.safetensors", "model-1-of-1.safetensors", "any.safetensors"] {
            let folder = folder(&[name]);
            fs::write(folder.path().join(format!("{name}.{ending}")), "").unwrap();
            let control = format!("\"{name}.{ending}\"");
            assert_refuses(&folder, None, &["unfinished", &control]);
            index(&folder.path().join(INDEX), &[(name, name)]);
            assert_refuses(&folder, None, &["unfinished", &control]);
        }
    }
    // A file of what is left out does not matter, one of what may be a part does.
    let left_out = folder(&["model.safetensors", "model.fp16.safetensors"]);
    fs::write(left_out.path().join("model.fp16.safetensors.aria2"), "").unwrap();
    assert_loads(&left_out, None, &["model.safetensors"]);
    let part = folder(&["a.safetensors"]);
    fs::write(part.path().join("b.safetensors.part"), "").unwrap();
    assert_refuses(&part, None, &["\"b.safetensors\" is unfinished"]);
    // A file that is named is looked for with the file of aria2 alone, which writes the file in place.
    let path = left_out.path().join("model.fp16.safetensors");
    let error = Loader::new(Device::host()).checkpoint(path).unwrap_err();
    assert!(error.to_string().contains("unfinished"), "{error}");
    assert_eq!(load(&part.path().join("a.safetensors"), None).unwrap(), ["a.safetensors"]);
}

#[test]
fn files_of_a_pipeline_are_not_taken_for_one_model() {
    let folder = folder(&["flux1-dev.safetensors", "ae.safetensors"]);
    fs::write(folder.path().join("model_index.json"), "{}").unwrap();
    assert_refuses(&folder, None, &["pipeline", "\"ae\", \"flux1-dev\"", "name one of the files"]);
    fs::remove_file(folder.path().join("ae.safetensors")).unwrap();
    assert_loads(&folder, None, &["flux1-dev.safetensors"]);
}

#[test]
fn a_file_that_is_named_twice_is_an_error_that_says_so() {
    let folder = folder(&["a.safetensors"]);
    let path = folder.path().join("a.safetensors");
    let error = Loader::new(Device::host()).files([&path, &path]).load().unwrap_err().to_string();
    assert!(error.contains("is named twice") && error.contains("name each file once"), "{error}");
}

#[test]
fn what_is_no_path_is_named_for_what_it_looks_like() {
    for (path, words) in [
        ("no-such-org/no-such-model", "hf download no-such-org/no-such-model"),
        ("https://example.org/model.safetensors", "URL"),
        ("~/no-such-folder/model.safetensors", "expands `~`"),
    ] {
        let error = Loader::new(Device::host()).checkpoint(path).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains(words), "{error}");
        let error = Loader::new(Device::host()).files([path]).load().unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

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
fn what_has_no_precedence_is_an_error_that_says_how_to_choose() {
    assert_refuses(
        &folder(&["model.fp16.safetensors", "model.bf16.safetensors"]),
        None,
        &["\"bf16\", \"fp16\"", "variant"],
    );
    assert_refuses(&folder(&["model.safetensors"]), Some("fp16"), &["no weights of variant \"fp16\""]);
    assert_refuses(
        &folder(&["model.safetensors", "mtp.safetensors"]),
        None,
        &["\"model\" and \"mtp\"", "name files"],
    );
    assert_refuses(&folder(&["model.safetensors", "model-1-of-1.safetensors"]), None, &["in two forms"]);
}

#[test]
fn files_of_unknown_names_load_together() {
    let names = ["a.safetensors", "b.safetensors", "layer.0.safetensors", "qwen2.5.safetensors"];
    assert_loads(&folder(&names), None, &names);
    // With the same tensors they are copies.
    let folder = folder(&names[..1]);
    fs::copy(folder.path().join(names[0]), folder.path().join(names[1])).unwrap();
    let error = load(folder.path(), None).unwrap_err();
    assert!(matches!(error, Error::DuplicateTensor { .. }) && error.to_string().contains("name"), "{error}");
}

#[test]
fn a_folder_of_folders_says_which_of_them_hold_weights() {
    let folder =
        folder(&["unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"]);
    fs::create_dir(folder.path().join("tokenizer")).unwrap();
    fs::write(folder.path().join("model_index.json"), "{}").unwrap();
    let error = Loader::new(Device::host()).checkpoint(folder.path()).unwrap_err();
    assert!(error.to_string().contains("\"unet\", \"vae\""), "{error}");
    assert_eq!(
        load(&folder.path().join("unet"), None).unwrap(),
        ["unet/diffusion_pytorch_model.safetensors"]
    );
    let fp16 = load(&folder.path().join("vae"), Some("fp16")).unwrap();
    assert_eq!(fp16, ["vae/diffusion_pytorch_model.fp16.safetensors"]);
}

#[test]
fn a_variant_that_no_name_can_have_is_an_error_of_the_option() {
    let folder = folder(&["model.safetensors"]);
    for variant in ["", "a/b", "\0"] {
        let error = loader(folder.path()).variant(variant).load().unwrap_err();
        assert!(matches!(error, Error::Option { option: "variant", .. }), "{error}");
    }
    let path = folder.path().join("model.safetensors");
    let error = loader(&path).variant("fp16").load().unwrap_err();
    assert!(error.to_string().contains("expected variant \"fp16\""), "{error}");
}

#[test]
fn a_dangling_link_is_told_with_its_target_where_its_set_is_loaded() {
    let folder = folder(&["model-1-of-2.safetensors"]);
    symlink("../blobs/gone", folder.path().join("model-2-of-2.safetensors")).unwrap();
    symlink("../blobs/other", folder.path().join("consolidated.safetensors")).unwrap();
    assert_refuses(&folder, None, &["model-2-of-2.safetensors", "link to \"../blobs/gone\""]);
    index(&folder.path().join(INDEX), &[("model-1-of-2.safetensors", "model-1-of-2.safetensors")]);
    assert_loads(&folder, None, &["model-1-of-2.safetensors"]);
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    index(&folder.path().join(INDEX), &[("x", "part/x.safetensors")]);
    fs::create_dir(folder.path().join("part")).unwrap();
    symlink("../../blobs/part", folder.path().join("part/x.safetensors")).unwrap();
    assert_refuses(&folder, None, &["part/x.safetensors", "link to \"../../blobs/part\""]);
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    symlink("../blobs/index", folder.path().join(INDEX)).unwrap();
    assert_refuses(&folder, None, &[INDEX, "link to \"../blobs/index\""]);
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

#[test]
fn names_that_are_not_utf8_are_loaded_as_they_are() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    for (name, tensor) in [(&b"m\xff.safetensors"[..], "x"), (b"m\xfe.safetensors", "y")] {
        write(&folder.path().join(OsStr::from_bytes(name)), &[bytes_tensor(tensor, 3)]);
    }
    assert_loads(&folder, None, &["y", "x"]);
}
