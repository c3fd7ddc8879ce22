//! Messages in the words of where they appear. Only the variants named here have texts that depend on it.

use std::borrow::Cow;
use std::error::Error as StdError;

use tensorhold_allocator as allocator;
use tensorhold_allocator::{Bytes, Quoted};

use super::{Error, Remedy, Vocabulary, named};

impl Vocabulary {
    /// The message of an error, without those of its sources, in this vocabulary. Errors of other crates have only one.
    ///
    /// ```
    /// use tensorhold::{Device, Loader, Vocabulary};
    ///
    /// let error = Loader::new(Device::host()).load().unwrap_err();
    /// assert_eq!(error.to_string(), "load: no files were given; name them with files() or checkpoint()");
    /// assert_eq!(Vocabulary::Command.describe(&error), "load: no files were given; name a checkpoint");
    /// ```
    pub fn describe(self, error: &(dyn StdError + 'static)) -> String {
        let own = error.downcast_ref::<Error>().and_then(|error| text(error, self));
        let below = || error.downcast_ref().and_then(|error| allocator_text(error, self));
        own.or_else(below).unwrap_or_else(|| error.to_string())
    }

    /// What an option of this crate is called.
    fn option(self, name: &str) -> Cow<'_, str> {
        let found = OPTIONS.iter().find(|(rust, ..)| *rust == name);
        let word = found.and_then(|(_, command, python)| match self {
            Self::Rust => None,
            Self::Command => *command,
            Self::Python => *python,
        });
        word.map_or_else(|| name.to_owned().into(), Cow::Borrowed)
    }
}

impl Error {
    /// What is wrong, without the operation and the remedy: for a text that has its own.
    pub fn reason(&self) -> String {
        match self {
            Self::Option { got, expected, .. } | Self::Setting { got, expected, .. } => {
                format!("got {got}, expected {expected}")
            }
            Self::Backend { detail, .. } | Self::Device { detail, .. } | Self::Group { detail, .. } => {
                detail.clone()
            }
            _ => self.to_string(),
        }
    }
}

/// Options by their names in Rust, with those of the command and of Python where these differ.
const OPTIONS: &[(&str, Option<&str>, Option<&str>)] = &[
    ("backend", Some("--backend"), None),
    ("cut", None, Some("cuts")),
    ("dtype", Some("--dtype"), None),
    ("memory_budget", None, None),
    ("region_parts", Some("--parts"), Some("parts")),
    ("select", Some("--select"), None),
    ("select, keep, dtype_by or cut_by", None, Some("select, keep, dtype or cuts")),
    ("staging_bytes", Some("--staging-bytes"), None),
    ("threads", Some("--threads"), None),
    ("transform_on", Some("--dtype"), Some("dtype or cuts")),
    ("variant", Some("--variant"), None),
];

/// The message for callers in Rust, of a variant whose text depends on that.
pub(super) fn rust(error: &Error) -> String {
    text(error, Vocabulary::Rust).unwrap_or_default()
}

fn text(error: &Error, words: Vocabulary) -> Option<String> {
    let remedy = |remedy: &Remedy| remedy.text(words);
    Some(match error {
        Error::NotAFile { path, what } => format!(
            "open {path:?}: it is {what}, expected a safetensors file; {}",
            remedy(&Remedy::NAME_A_FILE)
        ),
        Error::Checkpoint { path, problem } => {
            let choose = &Remedy::CHOOSE_VARIANT;
            let problem = problem.replace(choose.text(Vocabulary::Rust), remedy(choose));
            format!("find checkpoint {path:?}: {problem}")
        }
        Error::NoFiles => format!("load: no files were given; {}", remedy(&Remedy::FILES)),
        Error::Backend { backend, path, detail } => {
            let remedy = remedy(&Remedy::AUTO_BACKEND_OR_FILE_SYSTEM);
            format!("read {path:?} by backend {backend}: {detail}; {remedy}")
        }
        Error::Option { option, got, expected, remedy: found } => {
            format!("option {}: got {got}, expected {expected}; {}", words.option(option), remedy(found))
        }
        Error::OverBudget { needed, budget, tensors, largest } => format!(
            "load within {}: {} {} of device memory, expected at most {}; the largest are {}; {}",
            words.option("memory_budget"),
            if *tensors == 1 { "1 tensor needs".to_owned() } else { format!("{tensors} tensors need") },
            Bytes(*needed).beside(&[*budget]),
            Bytes(*budget).beside(&[*needed]),
            named(largest),
            remedy(&Remedy::OVER_BUDGET)
        ),
        Error::UnknownTensor { name, nearest, tensors } => {
            let hint = match nearest {
                Some(nearest) => format!("did you mean {}?", Quoted(nearest)),
                None => remedy(&Remedy::NAMES).to_owned(),
            };
            format!("find tensor {}: no such tensor among {tensors}; {hint}", Quoted(name))
        }
        Error::Tensor { operation, name, got, expected, remedy: found } => {
            let remedy = remedy(found);
            format!("{operation} of tensor {}: got {got}, expected {expected}; {remedy}", Quoted(name))
        }
        Error::Device { device, operation, detail, remedy: found } => {
            format!("{operation} on device {device:?}: {detail}; {}", remedy(found))
        }
        Error::Group { operation, rank, size, detail, remedy: found } => {
            format!("{operation} on rank {rank} of {size}: {detail}; {}", remedy(found))
        }
        Error::Memory(error) => return allocator_text(error, words),
        _ => return None,
    })
}

/// The message of the allocator's error where its callers know tensors and options instead of fragments and regions.
fn allocator_text(error: &allocator::Error, words: Vocabulary) -> Option<String> {
    if words == Vocabulary::Rust {
        return None;
    }
    match error {
        allocator::Error::NoParts { pool, .. } => Some(format!(
            "back the regions of pool {} in parts: the memory cannot; {}",
            Quoted(pool),
            Remedy::WHOLE_REGIONS.text(words)
        )),
        _ => None,
    }
}
