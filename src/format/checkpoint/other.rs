//! What people name in place of a checkpoint: folders of other formats, and other files of a model.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::names::{self, is_file, is_index};
use super::sets::List;

/// Endings of files that hold weights in other formats.
const OTHER_FORMATS: [&str; 9] = ["bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "npz"];

/// Folders in a folder that are looked into for an error.
const LOOKED_INTO: usize = 256;

/// What is wrong with a folder that holds neither safetensors files nor indexes: it says where weights are instead.
pub(super) fn without_weights(folder: &Path) -> String {
    let (mut folders, mut others) = (Vec::new(), Vec::new());
    let (mut unfinished, mut misnamed) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        if name.starts_with('.') {
            continue;
        } else if extension.is_some_and(|extension| OTHER_FORMATS.contains(&extension)) {
            others.push(name);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folders.push(name);
        } else if name.to_ascii_lowercase().contains(".safetensors") {
            let is_unfinished = names::without_unfinished_ending(&name).is_some();
            if is_unfinished { &mut unfinished } else { &mut misnamed }.push(name);
        } else if entry.file_type().is_ok_and(|kind| kind.is_symlink()) {
            folders.push(name);
        }
    }
    folders.sort_unstable();
    folders.truncate(LOOKED_INTO);
    let mut with_weights: Vec<_> = folders.iter().flat_map(|name| within(folder, name)).collect();
    with_weights.truncate(LOOKED_INTO);
    with_weights.retain(|name| has_weights(&folder.join(name)));
    let nothing = "the folder holds no *.safetensors file and no index";
    let (what, remedy, mut names) = [
        ("folders that do", "name one of these", with_weights),
        ("unfinished downloads", "finish or repeat the download", unfinished),
        ("files of other names", "rename those that are safetensors files to end in .safetensors", misnamed),
        ("weights in other formats", "convert them to safetensors, or fetch the safetensors files", others),
    ]
    .into_iter()
    .find(|(.., names)| !names.is_empty())
    .unwrap_or_default();
    if names.is_empty() {
        return format!("{nothing}; name the folder that holds the weights");
    }
    names.sort_unstable();
    format!("{nothing}, but {what}, {}; {remedy}", List::new(names.iter().map(|name| &**name)))
}

/// The folders that may hold weights in a folder in `folder`: itself, or the snapshots in a cache of the Hugging Face Hub (`models--OWNER--MODEL/snapshots/REVISION`).
fn within(folder: &Path, name: &str) -> Vec<String> {
    let snapshots = match name {
        "snapshots" => name.to_owned(),
        _ if name.starts_with("models--") => format!("{name}/snapshots"),
        _ => return vec![name.to_owned()],
    };
    let entries = fs::read_dir(folder.join(&snapshots)).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.take(LOOKED_INTO).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    let mut names: Vec<_> = names.into_iter().map(|name| format!("{snapshots}/{name}")).collect();
    names.push(name.to_owned());
    names
}

fn has_weights(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| {
        let name = name.to_string_lossy();
        is_file(&name) || is_index(&name)
    })
}

/// Fields that say what a JSON file of a model is. What is in them does not matter.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fields {
    _class_name: Option<IgnoredAny>,
    _diffusers_version: Option<IgnoredAny>,
    architectures: Option<IgnoredAny>,
    model_type: Option<IgnoredAny>,
    peft_type: Option<IgnoredAny>,
    tokenizer_class: Option<IgnoredAny>,
    added_tokens: Option<IgnoredAny>,
}

/// What a JSON file is that is no index, by its name or by its text.
pub(in crate::format) fn json_without_weights(name: &str, text: &str) -> &'static str {
    match name {
        "config.json" | "params.json" => "the configuration of a model",
        "adapter_config.json" => "the configuration of an adapter",
        "generation_config.json" => "a model's settings for generation",
        "model_index.json" => "the list of a pipeline's parts, each of which has a folder",
        "tokenizer.json" | "vocab.json" | "added_tokens.json" | "tekken.json" => "a tokenizer",
        "tokenizer_config.json" | "special_tokens_map.json" => "the configuration of a tokenizer",
        "preprocessor_config.json" | "processor_config.json" | "video_preprocessor_config.json" => {
            "the configuration of a preprocessor"
        }
        "quantize_config.json" | "quantization_config.json" | "hf_quant_config.json" => {
            "the configuration of a quantization"
        }
        "scheduler_config.json" => "the configuration of a scheduler",
        "trainer_state.json" => "the state of a training",
        "modules.json" => "the list of the modules of a model for sentences",
        _ if text.trim_ascii_start().starts_with('[') => "a JSON list",
        _ => match serde_json::from_str::<Fields>(text).unwrap_or_default() {
            Fields { peft_type: Some(_), .. } => "the configuration of an adapter",
            Fields { tokenizer_class: Some(_), .. } => "the configuration of a tokenizer",
            Fields { _class_name: Some(_), .. } | Fields { _diffusers_version: Some(_), .. } => {
                "the configuration of a part of a pipeline"
            }
            Fields { architectures: Some(_), .. } | Fields { model_type: Some(_), .. } => {
                "the configuration of a model"
            }
            Fields { added_tokens: Some(_), .. } => "a tokenizer",
            _ => "a JSON file without a \"weight_map\"",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_file_is_known_by_its_name_or_by_its_fields() {
        for (name, text, what) in [
            ("config.json", "{}", "configuration of a model"),
            ("generation_config.json", "{}", "generation"),
            ("my.json", r#"{"model_type": "llama"}"#, "configuration of a model"),
            ("my.json", r#"{"peft_type": 1, "model_type": null}"#, "adapter"),
            ("my.json", r#"{"_class_name": "UNet"}"#, "part of a pipeline"),
            ("my.json", r#"{"tokenizer_class": "x"}"#, "configuration of a tokenizer"),
            ("my.json", r#"{"added_tokens": []}"#, "a tokenizer"),
            ("modules.json", r#"[{"idx": 0}]"#, "the list of the modules"),
            ("my.json", r#" [{"idx": 0}]"#, "a JSON list"),
            ("my.json", "[]", "a JSON list"),
            ("my.json", "{}", "without a \"weight_map\""),
        ] {
            let said = json_without_weights(name, text);
            assert!(said.contains(what), "{name} {text}: {said}");
        }
    }

    #[test]
    fn a_folder_whose_files_have_other_names_says_what_to_do_about_them() {
        for (names, words) in [
            (&["model.safetensors?download=true"][..], ["model.safetensors?download=true", "rename"]),
            (&["MODEL.SAFETENSORS"], ["\"MODEL.SAFETENSORS\"", "rename"]),
            (&["model.safetensors.1", "pytorch_model.bin"], ["\"model.safetensors.1\"", "rename"]),
            (&["model.safetensors.incomplete"], ["unfinished downloads, \"model", "finish"]),
            (
                &["model.safetensors.1a2b.tmp", "MODEL.SAFETENSORS"],
                ["\"model.safetensors.1a2b.tmp\"", "finish"],
            ),
            (&["model.safetensors.aria2", "config.json"], ["\"model.safetensors.aria2\"", "finish"]),
            (&["refs/main", "snapshots/abc/model.safetensors"], ["\"snapshots/abc\"", "name one"]),
            (
                &["models--o--m/snapshots/abc/model.safetensors", "models--o--n/refs/main"],
                ["\"models--o--m/snapshots/abc\"", "name one"],
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            for name in names {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            let problem = without_weights(folder.path());
            assert!(words.iter().all(|word| problem.contains(word)), "{names:?}: {problem}");
        }
    }

    #[test]
    fn a_folder_without_weights_says_where_some_are() {
        let folder = tempfile::tempdir().unwrap();
        let says = |words: &[&str]| {
            let problem = without_weights(folder.path());
            assert!(words.iter().all(|word| problem.contains(word)) && problem.len() < 1000, "{problem}");
        };
        says(&["no *.safetensors file", "name the folder that holds the weights"]);
        fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
        fs::create_dir(folder.path().join("scheduler")).unwrap();
        says(&["other formats, \"pytorch_model.bin\"", "convert"]);
        for number in 0..20 {
            let part = folder.path().join(format!("part{number:02}"));
            fs::create_dir(&part).unwrap();
            fs::write(part.join("model.safetensors"), "").unwrap();
        }
        fs::create_dir(folder.path().join(".cache")).unwrap();
        fs::write(folder.path().join(".cache/model.safetensors"), "").unwrap();
        says(&["folders that do, \"part00\", \"part01\"", "and 12 more", "name one of these"]);
    }
}
