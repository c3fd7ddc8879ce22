//! What people name in place of a checkpoint: folders of other formats, and other files of a model.

use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::names::{is_file, is_index};
use super::sets::List;

/// Endings of files that hold weights in other formats.
const OTHER_FORMATS: [&str; 9] = ["bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "npz"];

/// Folders in a folder that are looked into for an error.
const LOOKED_INTO: usize = 256;

/// What is wrong with a folder that holds neither safetensors files nor indexes: it says where weights are instead.
pub(super) fn without_weights(folder: &Path) -> String {
    let (mut folders, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_of_another_format = Path::new(&name)
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| OTHER_FORMATS.contains(&extension));
        if name.starts_with('.') {
            continue;
        } else if is_of_another_format {
            others.push(name);
        } else if entry.file_type().is_ok_and(|kind| kind.is_dir() || kind.is_symlink()) {
            folders.push(name);
        }
    }
    folders.sort_unstable();
    folders.truncate(LOOKED_INTO);
    folders.retain(|name| has_weights(&folder.join(name)));
    others.sort_unstable();
    let nothing = "the folder holds no *.safetensors file and no index";
    match (&folders[..], &others[..]) {
        ([], []) => format!("{nothing}; name the folder that holds the weights"),
        ([], others) => format!(
            "{nothing}, but weights in other formats, {}; convert them to safetensors, or fetch the safetensors files",
            List::new(others.iter().map(|name| &**name))
        ),
        (folders, _) => format!(
            "{nothing}, but folders that do, {}; name one of these",
            List::new(folders.iter().map(|name| &**name))
        ),
    }
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
            ("my.json", "{}", "without a \"weight_map\""),
        ] {
            let said = json_without_weights(name, text);
            assert!(said.contains(what), "{name} {text}: {said}");
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
