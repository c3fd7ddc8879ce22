//! What the names of files say: the set of weights that a file belongs to, and its part of that set.
//!
//! ```text
//! STEM.safetensors                          STEM.VARIANT.safetensors
//! STEM-00001-of-00002.safetensors           STEM.VARIANT-00001-of-00002.safetensors    STEM-00001-of-00002.VARIANT.safetensors
//! STEM.safetensors.index.json               STEM.VARIANT.safetensors.index.json        STEM.safetensors.index.VARIANT.json
//! consolidated.00.safetensors               numbered parts, of well-known stems alone
//! ```
//!
//! Shards are also known without a stem (`00001-of-00002`), by other joints (`model.1-of-2`, `model_1of2`) and in capitals (`1-OF-2`).

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use foldhash::fast::RandomState;

const FILE_SUFFIX: &str = ".safetensors";
const INDEX_INFIX: &str = ".safetensors.index";

/// Stems that libraries give to the weights of a model, the preferred ones first: transformers, diffusers, old conversions, Mistral and
/// Llama, and last the adapters, which are no model by themselves (peft, MLX, diffusers).
pub(super) const WELL_KNOWN: [&str; 8] = [
    "model",
    "diffusion_pytorch_model",
    "pytorch_model",
    "weights",
    "consolidated",
    "adapter_model",
    "adapters",
    "pytorch_lora_weights",
];

/// Where a stem stands among the well-known ones.
pub(super) fn rank(stem: &str) -> Option<usize> {
    WELL_KNOWN.iter().position(|known| *known == stem)
}

/// Whether a file is safetensors by its name. Names that begin with a dot are metadata of systems and of downloads.
pub(super) fn is_file(name: &str) -> bool {
    !name.starts_with('.') && name.ends_with(FILE_SUFFIX)
}

/// What programs add to the name of a file while they download it: aria2, curl and Firefox, Chrome, Safari, the Hub's client, and others. aria2 adds it
/// to the name of a file of its own, and the download has its final length from the start.
const UNFINISHED: [&str; 7] =
    [".aria2", ".part", ".partial", ".crdownload", ".download", ".incomplete", ".tmp"];

/// The safetensors file or index of which a file is, or accompanies, an unfinished download by its name.
pub(super) fn unfinished(name: &str) -> Option<&str> {
    let target = without_unfinished_ending(name)?;
    (is_file(target) || is_index(target)).then_some(target)
}

/// The name of a file that is being written, perhaps with what makes it unique, without what says so.
pub(super) fn without_unfinished_ending(name: &str) -> Option<&str> {
    UNFINISHED.iter().find_map(|ending| name.strip_suffix(ending))
}

/// The control file of aria2 for a download.
pub(super) fn control_file(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".aria2");
    name.into()
}

/// Whether a file is an index of safetensors files by its name.
pub(super) fn is_index(name: &str) -> bool {
    !name.starts_with('.') && split_index(name).is_some()
}

/// The part of a set that a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// The shard `number` of `of`.
    Shard { number: u64, of: u64 },
    /// A numbered part of an unknown number.
    Numbered(u64),
}

/// What a name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'a> {
    pub(super) stem: &'a str,
    pub(super) variant: Option<&'a str>,
    pub(super) part: Part,
}

/// Reads names. Whether `b` is a variant in `a.b.safetensors` depends on the other names and on what the caller asks for.
#[derive(Debug, Default)]
pub(super) struct Reader<'a> {
    wanted: Option<&'a str>,
    /// What names of files and indexes begin with before `.safetensors`, without the number of a shard.
    heads: HashSet<&'a str, RandomState>,
    /// Variants by the names of indexes, `STEM.safetensors.index.VARIANT.json`, each with its stem.
    indexed: HashSet<(&'a str, &'a str), RandomState>,
}

impl<'a> Reader<'a> {
    /// A reader of these names of files and indexes, for a caller who wants that variant.
    pub(super) fn new(
        files: impl IntoIterator<Item = &'a str>,
        indexes: impl IntoIterator<Item = &'a str>,
        wanted: Option<&'a str>,
    ) -> Self {
        let mut reader = Self { wanted, ..Self::default() };
        for file in files {
            let base = file.strip_suffix(FILE_SUFFIX).unwrap_or(file);
            match split_shard(base) {
                Some(shard) if shard.tail.is_some() => {}
                Some(shard) => _ = reader.heads.insert(shard.head),
                None => _ = reader.heads.insert(base),
            }
        }
        for (stem, variant) in indexes.into_iter().filter_map(split_index) {
            match variant {
                Some(variant) => reader.indexed.insert((stem, variant)),
                None => reader.heads.insert(stem),
            };
        }
        reader
    }

    /// What the name of a safetensors file says. A name that says nothing is a stem.
    pub(super) fn file(&self, name: &'a str) -> Name<'a> {
        let base = name.strip_suffix(FILE_SUFFIX).unwrap_or(name);
        if let Some(Shard { head, number, of, tail, .. }) = split_shard(base) {
            let (stem, variant) = if tail.is_some() { (head, tail) } else { self.split_variant(head) };
            return Name { stem, variant, part: Part::Shard { number, of } };
        }
        if let Some((head, last)) = base.rsplit_once('.')
            && let Ok(number) = last.parse()
            && is_number(last)
            && rank(head).is_some()
            && self.wanted != Some(last)
        {
            return Name { stem: head, variant: None, part: Part::Numbered(number) };
        }
        let (stem, variant) = self.split_variant(base);
        Name { stem, variant, part: Part::Whole }
    }

    /// The stem and the variant of an index, by its name.
    pub(super) fn index(&self, name: &'a str) -> Option<(&'a str, Option<&'a str>)> {
        let (stem, variant) = split_index(name)?;
        Some(if variant.is_some() { (stem, variant) } else { self.split_variant(stem) })
    }

    /// Splits `STEM.VARIANT`. A variant has several words if it is the wanted one, or if they are all known: `fp16.ema`.
    fn split_variant(&self, head: &'a str) -> (&'a str, Option<&'a str>) {
        let last_word = || head.rsplit_once('.').filter(|(stem, word)| self.is_variant(stem, word));
        let wanted = self.wanted.and_then(|wanted| head.strip_suffix(wanted)?.strip_suffix('.'));
        let Some(mut stem) = wanted.or_else(|| Some(last_word()?.0)).filter(|stem| !stem.is_empty()) else {
            return (head, None);
        };
        while let Some((shorter, word)) = stem.rsplit_once('.')
            && !shorter.is_empty()
            && is_known_variant(word)
        {
            stem = shorter;
        }
        (stem, head.get(stem.len() + 1..))
    }

    fn is_variant(&self, stem: &str, word: &str) -> bool {
        let is_a_word = !word.is_empty() && !is_number(word);
        is_a_word
            && (is_known_variant(word) || self.heads.contains(stem) || self.indexed.contains(&(stem, word)))
    }
}

/// Words that say in which precision, or from which stage of training, weights are.
const WORDS: [&str; 34] = [
    "fp64", "fp32", "fp16", "fp8", "fp6", "fp4", "f64", "f32", "f16", "f8", "float64", "float32", "float16",
    "bfloat16", "bf16", "half", "int8", "int4", "uint8", "uint4", "nf4", "mxfp8", "mxfp4", "nvfp4", "e4m3",
    "e4m3fn", "e5m2", "8bit", "4bit", "awq", "gptq", "ema", "emaonly", "noema",
];

/// Words that qualify those.
const QUALIFIERS: [&str; 5] = ["non", "no", "only", "scaled", "pruned"];

/// Whether a word, such as `fp16`, `non_ema` or `fp16.ema`, is known to name a variant.
pub(super) fn is_known_variant(word: &str) -> bool {
    let word = word.to_ascii_lowercase();
    let mut knows_one = false;
    let all = word.split(['_', '-', '.']).all(|token| {
        let is_known = WORDS.contains(&token);
        knows_one |= is_known;
        is_known || QUALIFIERS.contains(&token)
    });
    all && knows_one
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A shard, by a name without its suffix.
struct Shard<'a> {
    /// What stands before the number: perhaps nothing.
    head: &'a str,
    number: u64,
    of: u64,
    /// What stands after the count, as a variant may.
    tail: Option<&'a str>,
    /// Where the number is.
    digits: Range<usize>,
}

/// Splits `HEAD-00001-of-00002`, `HEAD-00001-of-00002.TAIL` and what tools write in their place: other joints or none around `of`, capitals, no head.
fn split_shard(base: &str) -> Option<Shard<'_>> {
    let infixes = base.as_bytes().windows(2).enumerate().rev();
    infixes
        .filter(|(_, bytes)| bytes.eq_ignore_ascii_case(b"of"))
        .find_map(|(at, _)| split_shard_at(base.get(..at)?, base.get(at + 2..)?))
}

/// Splits a shard at its `of`.
fn split_shard_at<'a>(before: &'a str, after: &'a str) -> Option<Shard<'a>> {
    let is_joint = |c| matches!(c, '-' | '_' | '.' | ' ');
    let before = before.strip_suffix(is_joint).unwrap_or(before);
    let after = after.strip_prefix(is_joint).unwrap_or(after);
    let is_digit = |c: char| c.is_ascii_digit();
    let head = before.trim_end_matches(is_digit);
    let tail = after.trim_start_matches(is_digit);
    let digits = head.len()..before.len();
    let number = before.get(digits.clone())?.parse().ok()?;
    let of = after.get(..after.len() - tail.len())?.parse().ok()?;
    let head = if head.is_empty() { head } else { head.strip_suffix(is_joint)? };
    let tail = match tail {
        "" => None,
        _ => Some(tail.strip_prefix(is_joint).filter(|tail| !tail.is_empty() && !is_number(tail))?),
    };
    Some(Shard { head, number, of, tail, digits })
}

/// The name of another shard of the set, by that of a shard.
pub(super) fn renumbered(name: &str, number: u64) -> Option<String> {
    let digits = split_shard(name.strip_suffix(FILE_SUFFIX)?)?.digits;
    let width = digits.len();
    Some(format!("{}{number:0width$}{}", name.get(..digits.start)?, name.get(digits.end..)?))
}

/// Splits `STEM.safetensors.index.json` and `STEM.safetensors.index.VARIANT.json`.
fn split_index(name: &str) -> Option<(&str, Option<&str>)> {
    let (stem, variant) = name.strip_suffix(".json")?.split_once(INDEX_INFIX)?;
    match variant {
        _ if stem.is_empty() => None,
        "" => Some((stem, None)),
        _ => Some((stem, Some(variant.strip_prefix('.').filter(|variant| !variant.is_empty())?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<'a>(names: &[&'a str], wanted: Option<&'a str>) -> Vec<Name<'a>> {
        let reader = Reader::new(names.iter().copied(), [], wanted);
        names.iter().map(|name| reader.file(name)).collect()
    }

    fn name<'a>(stem: &'a str, variant: Option<&'a str>, part: Part) -> Name<'a> {
        Name { stem, variant, part }
    }

    #[test]
    fn both_orders_of_variant_and_shard_are_read_with_any_number_of_digits() {
        let shard = |number, of| Part::Shard { number, of };
        for (file, expected) in [
            ("model.safetensors", name("model", None, Part::Whole)),
            ("model.fp16.safetensors", name("model", Some("fp16"), Part::Whole)),
            ("model-00001-of-000163.safetensors", name("model", None, shard(1, 163))),
            ("model_1-of-2.safetensors", name("model", None, shard(1, 2))),
            ("m.non_ema-2-of-2.safetensors", name("m", Some("non_ema"), shard(2, 2))),
            ("m-2-of-2.anything.safetensors", name("m", Some("anything"), shard(2, 2))),
            ("consolidated-00001-of-00010.safetensors", name("consolidated", None, shard(1, 10))),
            ("consolidated.07.safetensors", name("consolidated", None, Part::Numbered(7))),
            ("layer.0.safetensors", name("layer.0", None, Part::Whole)),
            ("qwen2.5-vl.safetensors", name("qwen2.5-vl", None, Part::Whole)),
            ("v1-5-pruned-emaonly.safetensors", name("v1-5-pruned-emaonly", None, Part::Whole)),
            ("model.norm.safetensors", name("model.norm", None, Part::Whole)),
            ("-1-of-2.safetensors", name("", None, shard(1, 2))),
            ("00001-of-00002.safetensors", name("", None, shard(1, 2))),
            ("1of2.safetensors", name("", None, shard(1, 2))),
            ("model.00001-of-00002.safetensors", name("model", None, shard(1, 2))),
            ("model-00001-OF-00002.safetensors", name("model", None, shard(1, 2))),
            ("model-1of2.safetensors", name("model", None, shard(1, 2))),
            ("model_part_1_Of_2.safetensors", name("model_part", None, shard(1, 2))),
            ("model 1 of 2.safetensors", name("model", None, shard(1, 2))),
            ("model.fp16.1-of-2.safetensors", name("model", Some("fp16"), shard(1, 2))),
            ("model-1-of-2-fp16.safetensors", name("model", Some("fp16"), shard(1, 2))),
            ("m-1-of-2.fp16.ema.safetensors", name("m", Some("fp16.ema"), shard(1, 2))),
            ("proof-2-of-3.safetensors", name("proof", None, shard(2, 3))),
            ("best-of-3.safetensors", name("best-of-3", None, Part::Whole)),
            ("v2of3.safetensors", name("v2of3", None, Part::Whole)),
            ("a-1-of-2b.safetensors", name("a-1-of-2b", None, Part::Whole)),
            ("a-1-of-2.5.safetensors", name("a-1-of-2.5", None, Part::Whole)),
            ("of.safetensors", name("of", None, Part::Whole)),
            ("é1of2é.safetensors", name("é1of2é", None, Part::Whole)),
            ("a-1-of-x.safetensors", name("a-1-of-x", None, Part::Whole)),
            (
                "a-1-of-99999999999999999999999.safetensors",
                name("a-1-of-99999999999999999999999", None, Part::Whole),
            ),
        ] {
            assert_eq!(read(&[file], None), [expected], "{file}");
        }
    }

    #[test]
    fn a_word_is_a_variant_where_it_is_known_or_wanted_or_the_stem_is_there_without_it() {
        assert_eq!(read(&["a.q4.safetensors"], None)[0].variant, None);
        assert_eq!(read(&["a.q4.safetensors"], Some("q4"))[0].variant, Some("q4"));
        assert_eq!(read(&["a.8.safetensors"], Some("8"))[0].variant, Some("8"));
        assert_eq!(read(&["a.q4.safetensors", "a.safetensors"], None)[0].variant, Some("q4"));
        assert_eq!(read(&["a.q4.safetensors", "a-1-of-2.safetensors"], None)[0].variant, Some("q4"));
        assert_eq!(read(&["layer.0.safetensors", "layer.safetensors"], None)[0].variant, None);
        let reader = Reader::new([], ["a.safetensors.index.q4.json", "b.safetensors.index.json"], None);
        assert_eq!(reader.file("a.q4-1-of-2.safetensors").variant, Some("q4"));
        assert_eq!(reader.file("b.q4.safetensors").variant, Some("q4"));
        assert_eq!(reader.file("c.q4.safetensors").variant, None);
    }

    #[test]
    fn a_variant_of_several_words_is_wanted_or_known() {
        let read = |file, wanted| read(&[file], wanted)[0];
        let part = Part::Whole;
        for wanted in [None, Some("fp16.ema"), Some("fp16"), Some("ema")] {
            assert_eq!(
                read("model.fp16.ema.safetensors", wanted),
                name("model", Some("fp16.ema"), part),
                "{wanted:?}"
            );
        }
        assert_eq!(read("m.a.b.safetensors", Some("a.b")), name("m", Some("a.b"), part));
        assert_eq!(read("m.a.b.safetensors", Some("b")), name("m.a", Some("b"), part));
        assert_eq!(read("m.ab.safetensors", Some("b")), name("m.ab", None, part));
    }

    #[test]
    fn precisions_and_averages_are_known_variants() {
        for word in
            ["fp16", "BF16", "non_ema", "fp8_e4m3fn", "fp8-scaled", "ema", "nf4", "no-ema", "fp16.ema"]
        {
            assert!(is_known_variant(word), "{word}");
        }
        for word in ["", "only", "pruned", "norm", "0", "fp", "fp16x", "embed_tokens"] {
            assert!(!is_known_variant(word), "{word}");
        }
    }

    #[test]
    fn an_index_is_known_by_its_name_in_each_spelling() {
        let reader = Reader::default();
        assert_eq!(reader.index("model.safetensors.index.json"), Some(("model", None)));
        assert_eq!(reader.index("model.safetensors.index.any.json"), Some(("model", Some("any"))));
        assert_eq!(reader.index("model.fp16.safetensors.index.json"), Some(("model", Some("fp16"))));
        for other in ["config.json", "pytorch_model.bin.index.json", ".safetensors.index.json", "a.json"] {
            assert!(!is_index(other), "{other}");
        }
        assert!(!is_index("._model.safetensors.index.json") && !is_file("._model.safetensors"));
        assert!(!is_index("model.safetensors.indexes.json"));
    }

    #[test]
    fn a_download_is_unfinished_by_the_name_of_the_file_that_it_writes() {
        assert_eq!(unfinished("model.safetensors.aria2"), Some("model.safetensors"));
        assert_eq!(unfinished("m.safetensors.index.json.crdownload"), Some("m.safetensors.index.json"));
        for other in
            ["model.safetensors", "model.bin.part", ".safetensors.tmp", ".aria2", "model.part.safetensors"]
        {
            assert_eq!(unfinished(other), None, "{other}");
        }
    }

    #[test]
    fn the_name_of_another_shard_has_as_many_digits() {
        let other = |name| renumbered(name, 12).unwrap();
        assert_eq!(other("model-00001-of-00020.safetensors"), "model-00012-of-00020.safetensors");
        assert_eq!(other("model.fp16-1-of-20.safetensors"), "model.fp16-12-of-20.safetensors");
        assert_eq!(other("model-01-of-20.fp16.safetensors"), "model-12-of-20.fp16.safetensors");
        assert_eq!(other("model.01OF20.safetensors"), "model.12OF20.safetensors");
        assert_eq!(other("01-of-20.safetensors"), "12-of-20.safetensors");
        assert_eq!(renumbered("model.safetensors", 1), None);
    }
}
