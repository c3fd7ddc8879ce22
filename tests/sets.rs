//! Which of several sets of weights in a folder is loaded.

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use support::folders::{INDEX, assert_loads, assert_refuses, folder, index, left_out, load, loader};
use support::{bytes_tensor, write};
use tensorhold::{Batching, Device, Error, Loader, Result};

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
    // An unfinished download of a file left out does not matter; one that may be a shard does.
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
fn names_that_are_not_utf8_are_loaded_as_they_are() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    let folder = tempfile::tempdir().unwrap();
    for (name, tensor) in [(&b"m\xff.safetensors"[..], "x"), (b"m\xfe.safetensors", "y")] {
        write(&folder.path().join(OsStr::from_bytes(name)), &[bytes_tensor(tensor, 3)]);
    }
    assert_loads(&folder, None, &["y", "x"]);
}
