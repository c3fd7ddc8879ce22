//! What to do about an error, in the words of where it appears: the one table of remedies whose wording differs.

use std::fmt;

/// Whose words a message uses: methods and types in Rust, flags in the command, arguments in Python.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Vocabulary {
    /// Callers of the library: `Backend::Auto`, `staging_bytes`.
    Rust,
    /// Users of the `tensorhold` command: `--backend auto`, `--staging-bytes`.
    Command,
    /// Callers of the Python package: `backend="auto"`, `staging_bytes`.
    Python,
}

/// What to do about an error.
///
/// A text that suits all [vocabularies](Vocabulary) converts to one: `"free memory on the device".into()`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Remedy(Text);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Text {
    /// The same for all.
    Plain(&'static str),
    Worded(&'static Wording),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Wording {
    rust: &'static str,
    command: &'static str,
    python: &'static str,
}

impl Remedy {
    /// The text in that vocabulary.
    pub const fn text(self, vocabulary: Vocabulary) -> &'static str {
        match (self.0, vocabulary) {
            (Text::Plain(text), _) => text,
            (Text::Worded(wording), Vocabulary::Rust) => wording.rust,
            (Text::Worded(wording), Vocabulary::Command) => wording.command,
            (Text::Worded(wording), Vocabulary::Python) => wording.python,
        }
    }
}

impl From<&'static str> for Remedy {
    fn from(text: &'static str) -> Self {
        Self(Text::Plain(text))
    }
}

/// Displays the text for callers of the Rust library.
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(Vocabulary::Rust))
    }
}

macro_rules! remedies {
    ($($(#[$attribute:meta])* $name:ident: $rust:literal, $command:literal, $python:literal;)*) => {
        impl Remedy {
            $($(#[$attribute])* pub(crate) const $name: Self =
                Self(Text::Worded(&Wording { rust: $rust, command: $command, python: $python }));)*
        }

        #[cfg(test)]
        const ALL: &[Remedy] = &[$(Remedy::$name),*];
    };
}

// Of names that only one front has, the others' texts say what helps there.
remedies! {
    AUTO_BACKEND:
        "use Backend::Auto",
        "leave out --backend, or give it as auto",
        "leave out backend, or pass backend=\"auto\"";
    AUTO_BACKEND_OR_FILE_SYSTEM:
        "use Backend::Auto, or a file system that allows it",
        "leave out --backend, or read from a file system that allows it",
        "leave out backend, or read from a file system that allows it";
    AUTO_BACKEND_OR_TRANSFORM:
        "use TransformOn::Auto, or Backend::Auto",
        "leave out --backend or --dtype",
        "leave out backend, or dtype and cuts";
    AUTO_TRANSFORM:
        "use TransformOn::Auto",
        "leave out --dtype",
        "leave out dtype and cuts";
    BUDGET_OR_BACKEND:
        "raise it, or use another backend",
        "use another --backend",
        "raise it, or leave out backend";
    /// It is part of the problems of checkpoints.
    CHOOSE_VARIANT:
        "choose a variant with Loader::variant",
        "choose a variant with --variant",
        "choose a variant with the argument variant";
    CHUNK:
        "cut by another number, or into unequal parts by Cut::chunk()",
        "cut by another number, or into unequal parts",
        "cut by another number, or into unequal parts by Cut.chunk()";
    #[cfg_attr(feature = "cuda-external", allow(dead_code, reason = "of builds without CUDA"))]
    CUDA_FEATURE:
        "build with the `cuda` feature, or use Device::host()",
        "install a tensorhold with CUDA, or pass --device cpu",
        "install a tensorhold with CUDA, or pass device=\"cpu\"";
    CUFILE_LOG:
        "see its log (CUFILE_LOGFILE_PATH says where it goes), or use Backend::Auto",
        "see its log (CUFILE_LOGFILE_PATH says where it goes), or leave out --backend",
        "see its log (CUFILE_LOGFILE_PATH says where it goes), or leave out backend";
    CUFILE_NEEDS:
        "see docs/gds.md for what cuFile needs, or use Backend::Auto",
        "see docs/gds.md for what cuFile needs, or leave out --backend",
        "see docs/gds.md for what cuFile needs, or leave out backend";
    CUFILE_PROC:
        "mount /proc as a whole, or use Backend::Auto",
        "mount /proc as a whole, or leave out --backend",
        "mount /proc as a whole, or leave out backend";
    #[cfg_attr(not(feature = "cuda-external"), allow(dead_code, reason = "of builds with CUDA"))]
    DEVICES:
        "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use Device::host()",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES, or pass --device cpu",
        "check nvidia-smi and CUDA_VISIBLE_DEVICES, or pass device=\"cpu\"";
    FILES:
        "name them with files() or checkpoint()",
        "name a checkpoint",
        "name them in the list of paths";
    #[cfg_attr(not(feature = "cuda-external"), allow(dead_code, reason = "of builds with CUDA"))]
    DRIVER:
        "install NVIDIA driver r525 or newer, or use Device::host()",
        "install NVIDIA driver r525 or newer, or pass --device cpu",
        "install NVIDIA driver r525 or newer, or pass device=\"cpu\"";
    #[cfg_attr(not(feature = "cuda-external"), allow(dead_code, reason = "of builds with CUDA"))]
    DRIVER_OR_TRANSFORM:
        "install NVIDIA driver r525 or newer, or use TransformOn::Cpu",
        "install NVIDIA driver r525 or newer, or leave out --dtype",
        "install NVIDIA driver r525 or newer, or leave out dtype and cuts";
    NAME_A_FILE:
        "name a file, or load a directory with checkpoint()",
        "name a safetensors file, or the directory that holds it",
        "name a safetensors file, or the directory that holds it";
    NAMES:
        "names() lists them",
        "`tensorhold inspect` lists them",
        "keys() lists them";
    #[cfg_attr(not(feature = "cuda-external"), allow(dead_code, reason = "of builds with CUDA"))]
    NEWER_DEVICE:
        "use a newer device, or Device::host()",
        "name a newer device, or pass --device cpu",
        "name a newer device, or pass device=\"cpu\"";
    OTHER_LOADER:
        "load what it needs before, or by another loader",
        "load what it needs before",
        "load what it needs before, or from another safe_open()";
    OVER_BUDGET:
        "raise the budget, load fewer tensors or parts of them, or load in batches",
        "load fewer tensors (--select)",
        "raise memory_budget, load fewer tensors (select) or parts of them (cuts)";
    #[cfg_attr(not(feature = "cuda-external"), allow(dead_code, reason = "of builds with CUDA"))]
    PINNED_COPY:
        "use Device::pinned() and copy, or another device",
        "pass --device pinned, or another device",
        "pass device=\"pinned\" and copy, or another device";
    POOL:
        "make it over device.memory() or, for staging, device.staging_memory()",
        "leave it out",
        "make it with Pool(device) for the device of the load";
    RAISE_STAGING:
        "raise staging_bytes",
        "raise --staging-bytes",
        "raise staging_bytes";
    SHARD_OF_SHARED:
        "cut them with Shared::shard",
        "load whole tensors",
        "leave out cuts";
    TENSOR_POOL:
        "place it in a pool over device.memory()",
        "leave it out",
        "make the pool with Pool(device) for the device of the tensors";
    WHOLE_REGIONS:
        "use RegionParts::Auto, or another memory",
        "pass --parts auto, or another device",
        "leave out parts, or use another device";
    CHECK_SHAPE:
        "check the range against shape()",
        "check the range against the tensor's shape",
        "check the range against the tensor's shape";
    COPY_TO_HOST:
        "copy it with to_host()",
        "load to host memory (--device cpu)",
        "copy it with to_host()";
    CUDA_DEVICE:
        "use Device::cuda",
        "pass --device cuda:0",
        "pass device=\"cuda:0\"";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_wording_has_the_names_of_another_front() {
        for remedy in ALL {
            let command = remedy.text(Vocabulary::Command);
            assert!(
                !command.contains("::") && !command.contains("()") && !command.contains("=\""),
                "{command}"
            );
            let python = remedy.text(Vocabulary::Python);
            assert!(
                !python.contains("::") && !python.contains("--") && !python.contains("names()"),
                "{python}"
            );
            let rust = remedy.text(Vocabulary::Rust);
            assert!(!rust.contains("--") && !rust.contains("=\""), "{rust}");
        }
    }

    #[test]
    fn a_plain_text_is_the_same_in_all() {
        let remedy = Remedy::from("free memory");
        let texts =
            [Vocabulary::Rust, Vocabulary::Command, Vocabulary::Python].map(|front| remedy.text(front));
        assert_eq!(texts, ["free memory"; 3]);
    }
}
