//! The choice among the sets of a folder: one set, or an error that lists them.
//!
//! 1. With a variant, only sets of that variant count; without, those that have none. If all sets are of one variant, that one counts.
//! 2. Of well-known stems, the first one counts. Other stems count together where no well-known one is there, and one of them alone if it has the
//!    only index.
//! 3. An index decides. Without one, names have to say that the set is complete.
//! 4. What does not count is left out only if its name says that it is another copy of the weights, or an adapter: by a later well-known stem, or by a variant
//!    that is known or not the one that was asked for. Otherwise the folder is ambiguous.

use tensorhold_allocator::Quoted;

use super::names::{is_known_variant, rank};
use super::sets::{LISTED, List, Set};
use crate::error::{Remedy, Vocabulary};

/// The sets that are loaded, and the others.
#[derive(Debug)]
pub(super) struct Choice<'s, 'a> {
    /// One, unless their stems are unknown.
    pub(super) sets: Vec<&'s Set<'a>>,
    pub(super) others: Vec<&'s Set<'a>>,
    variant: Option<&'a str>,
}

impl<'s, 'a> Choice<'s, 'a> {
    /// Chooses among sets.
    ///
    /// # Errors
    /// When no set counts, or several do; says what is wrong and what to do.
    pub(super) fn of(sets: &'s [Set<'a>], wanted: Option<&'a str>) -> Result<Self, String> {
        let variant = variant(sets, wanted)?;
        let (counting, mut others): (Vec<_>, Vec<_>) = sets.iter().partition(|set| set.variant == variant);
        let preferred =
            counting.iter().filter_map(|set| Some((rank(set.stem)?, *set))).min_by_key(|(rank, _)| *rank);
        let mut indexed = counting.iter().copied().filter(|set| !set.indexes.is_empty());
        let chosen = match (preferred, indexed.next(), indexed.next()) {
            (Some((_, set)), ..) | (None, Some(set), None) => vec![set],
            (None, Some(_), Some(_)) => {
                let indexes = counting.iter().flat_map(|set| &set.indexes).map(|index| index.name);
                return Err(format!(
                    "the folder holds several indexes, {}; name one of them",
                    List::new(indexes)
                ));
            }
            (None, None, _) => counting.clone(),
        };
        others.extend(
            counting.into_iter().filter(|set| !chosen.iter().any(|chosen| std::ptr::eq(*chosen, *set))),
        );
        let choice = Self { sets: chosen, others, variant };
        if let [set] = choice.sets[..] {
            match set.indexes[..] {
                [] => {}
                [_] => return Ok(choice),
                [..] => {
                    let indexes = List::new(set.indexes.iter().map(|index| index.name));
                    return Err(format!(
                        "the folder holds several indexes of {set}, {indexes}; name one of them"
                    ));
                }
            }
        }
        if let Some(other) = choice.others.iter().find(|set| !choice.may_leave_out(set, wanted.is_some())) {
            return Err(format!(
                "the folder holds {}, and their names do not say whether {other} belongs to the same weights; \
                 name files or an index{}",
                described(sets),
                match sets.iter().any(|set| set.variant.is_some()) {
                    true => format!(", or {}", Remedy::CHOOSE_VARIANT.text(Vocabulary::Rust)),
                    false => String::new(),
                }
            ));
        }
        match choice.sets.iter().find_map(|set| set.problem()) {
            Some(problem) if sets.len() > choice.sets.len() => {
                Err(format!("{problem}; in all, the folder holds {}", described(sets)))
            }
            Some(problem) => Err(problem),
            None => Ok(choice),
        }
    }

    /// Whether a set that does not count can be left out.
    fn may_leave_out(&self, set: &Set<'_>, has_asked: bool) -> bool {
        let is_of_another_variant = set.variant != self.variant;
        if has_asked && is_of_another_variant {
            return true;
        }
        // An unknown word may name a part of the model: `model.visual`.
        if is_of_another_variant && !set.variant.is_some_and(is_known_variant) {
            return false;
        }
        match (self.sets.first().and_then(|chosen| rank(chosen.stem)), rank(set.stem)) {
            (Some(chosen), Some(other)) => chosen <= other,
            (None, None) => is_of_another_variant && self.sets.iter().any(|chosen| chosen.stem == set.stem),
            _ => false,
        }
    }

    /// Why a set is left out.
    pub(super) fn why_not(&self, set: &Set<'_>) -> String {
        match (set.variant, self.variant) {
            (variant, chosen) if variant == chosen => {
                let first = self.sets.first().map_or("", |chosen| chosen.stem);
                format!("the weights {} come before {}", Quoted(first), Quoted(set.stem))
            }
            (Some(variant), None) => format!("it is of variant {}, and none was chosen", Quoted(variant)),
            (Some(variant), Some(chosen)) => {
                format!("it is of variant {}, and {} was chosen", Quoted(variant), Quoted(chosen))
            }
            (None, chosen) => {
                format!("it is of no variant, and {} was chosen", Quoted(chosen.unwrap_or_default()))
            }
        }
    }
}

/// The variant that counts.
fn variant<'a>(sets: &[Set<'a>], wanted: Option<&'a str>) -> Result<Option<&'a str>, String> {
    let mut variants: Vec<_> = sets.iter().filter_map(|set| set.variant).collect();
    variants.sort_unstable();
    variants.dedup();
    let listed = List::new(variants.iter().copied());
    if let Some(wanted) = wanted {
        return match &variants[..] {
            [] => Err(format!(
                "the folder holds no weights of variant {}, and none of another variant; leave the variant out, or name a file",
                Quoted(wanted)
            )),
            variants if variants.contains(&wanted) => Ok(Some(wanted)),
            _ => Err(format!(
                "the folder holds no weights of variant {}, but of {listed}; choose one that is there, or leave the variant out",
                Quoted(wanted)
            )),
        };
    }
    match &variants[..] {
        _ if sets.iter().any(|set| set.variant.is_none()) => Ok(None),
        [variant] => Ok(Some(variant)),
        _ => Err(format!(
            "the folder holds weights of the variants {listed} alone; {}, or name a file",
            Remedy::CHOOSE_VARIANT.text(Vocabulary::Rust)
        )),
    }
}

/// The sets, for messages.
fn described(sets: &[Set<'_>]) -> String {
    let mut described: Vec<_> = sets.iter().take(LISTED).map(ToString::to_string).collect();
    if sets.len() > LISTED {
        described.push(format!("{} more", sets.len() - LISTED));
    }
    match described.pop() {
        Some(last) if !described.is_empty() => format!("{} and {last}", described.join(", ")),
        only => only.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::{is_file, is_index};
    use super::super::sets::group;
    use super::*;

    /// The files and indexes of the chosen sets, without their suffix, or the error.
    fn choose(names: &str, wanted: Option<&str>) -> Result<String, String> {
        let mut names: Vec<_> = names
            .split(' ')
            .map(|name| if name.ends_with(".json") { name.to_owned() } else { format!("{name}.safetensors") })
            .collect();
        names.sort();
        let (indexes, files): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| is_index(name));
        assert!(files.iter().all(|name| is_file(name)));
        let sets = group(&files, &indexes, wanted);
        let choice = Choice::of(&sets, wanted)?;
        let chosen = choice.sets.iter().flat_map(|set| match &set.indexes[..] {
            [] => set.files.iter().map(|(file, _)| file.name).collect::<Vec<_>>(),
            indexes => indexes.iter().map(|index| index.name).collect(),
        });
        let chosen: Vec<_> = chosen.map(|name| name.trim_end_matches(".safetensors")).collect();
        for other in &choice.others {
            assert!(!choice.why_not(other).is_empty());
        }
        Ok(chosen.join(" "))
    }

    const INDEX: &str = "model.safetensors.index.json";

    #[test]
    fn one_set_is_chosen_by_the_documented_precedence() {
        for (names, chosen) in [
            ("model", "model"),
            ("any", "any"),
            ("model consolidated", "model"),
            ("model-1-of-2 model-2-of-2 consolidated", "model-1-of-2 model-2-of-2"),
            ("consolidated.00 consolidated.01 adapter_model", "consolidated.00 consolidated.01"),
            ("diffusion_pytorch_model adapter_model pytorch_lora_weights", "diffusion_pytorch_model"),
            ("model diffusion_pytorch_model pytorch_model weights", "model"),
            ("adapter_model adapters", "adapter_model"),
            ("model model.fp16 model.non_ema model.fp16.ema consolidated.bf16", "model"),
            ("model.fp16", "model.fp16"),
            ("model.fp16-1-of-2 model-2-of-2.fp16", "model-2-of-2.fp16 model.fp16-1-of-2"),
            ("a b", "a b"),
            ("a b a.fp16 b.fp16", "a b"),
            ("layer.0 layer.1 layer.5", "layer.0 layer.1 layer.5"),
            // As tools that load layer by layer cut models.
            (
                "model.embed_tokens model.layers.0 model.norm lm_head",
                "lm_head model.embed_tokens model.layers.0 model.norm",
            ),
        ] {
            assert_eq!(choose(names, None).as_deref(), Ok(chosen), "{names}");
        }
    }

    #[test]
    fn an_index_decides_whatever_else_is_there() {
        for names in [
            "a b model.safetensors.index.json",
            "model model-1-of-2 model.safetensors.index.json",
            "model-1-of-2 consolidated other model.safetensors.index.json",
            "model-1-of-2 model.fp16 model.safetensors.index.json consolidated.safetensors.index.json",
            "model-1-of-2 model.safetensors.index.json model.safetensors.index.fp16.json",
        ] {
            assert_eq!(choose(names, None).as_deref(), Ok(INDEX), "{names}");
        }
        let other = "other.safetensors.index.json";
        assert_eq!(choose("a b other.safetensors.index.json", None).as_deref(), Ok(other));
        let half = "model.fp16-1-of-2 model model.safetensors.index.fp16.json";
        assert_eq!(choose(half, Some("fp16")).as_deref(), Ok("model.safetensors.index.fp16.json"));
        assert_eq!(choose(half, None).as_deref(), Ok("model"));
    }

    #[test]
    fn a_variant_is_chosen_alone() {
        for (names, variant, chosen) in [
            ("model model.fp16 consolidated", "fp16", "model.fp16"),
            (
                "diffusion_pytorch_model diffusion_pytorch_model.non_ema",
                "non_ema",
                "diffusion_pytorch_model.non_ema",
            ),
            ("m m.any x", "any", "m.any"),
            ("model model.fp16.ema model.fp16", "fp16.ema", "model.fp16.ema"),
            ("model model.fp16.ema model.fp16", "fp16", "model.fp16"),
            ("model model.visual", "visual", "model.visual"),
            ("m.q8 m.q4", "q4", "m.q4"),
            ("a a.fp16 b b.fp16", "fp16", "a.fp16 b.fp16"),
            ("m m.fp16-1-of-2 m.fp16-2-of-2", "fp16", "m.fp16-1-of-2 m.fp16-2-of-2"),
        ] {
            assert_eq!(choose(names, Some(variant)).as_deref(), Ok(chosen), "{names}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_an_error_that_lists_the_sets_and_says_how_to_choose() {
        for (names, wanted, words) in [
            ("model.fp16 model.bf16", None, &["\"bf16\", \"fp16\"", "choose a variant"][..]),
            ("model", Some("fp16"), &["no weights of variant \"fp16\"", "leave the variant out"]),
            ("model model.bf16", Some("fp16"), &["\"fp16\", but of \"bf16\""]),
            ("model model.visual", None, &["\"model\" of variant \"visual\"", "name files"]),
            ("model model.fp16 model.fp16.mtp", None, &["\"fp16.mtp\""]),
            ("model-1-of-1 model-1-of-1.vae", None, &["\"model\" of variant \"vae\""]),
            ("model consolidated consolidated.visual", None, &["\"visual\""]),
            ("model mtp", None, &["\"model\" and \"mtp\"", "name files"]),
            ("model.fp16 mtp.fp16", None, &["\"mtp\" of variant \"fp16\""]),
            ("model model.fp16 mtp.fp16", Some("fp16"), &["\"mtp\" of variant \"fp16\""]),
            ("model.fp16 consolidated", None, &["\"model\" of variant \"fp16\""]),
            ("a b.fp16", None, &["\"a\"", "\"b\" of variant \"fp16\"", "choose a variant"]),
            ("a a.q4", None, &["\"a\" of variant \"q4\""]),
            ("model model-1-of-2 consolidated", None, &["in two forms", "\"consolidated\""]),
            (
                "model-1-of-2 consolidated",
                None,
                &["1 is missing", "\"model-2-of-2.safetensors\"", "\"consolidated\""],
            ),
            ("a b-1-of-2", None, &["\"b-2-of-2.safetensors\""]),
            (
                "a.safetensors.index.json b.safetensors.index.json",
                None,
                &["several indexes", "a.saf", "b.saf"],
            ),
            (
                "model.safetensors.index.fp16.json model.fp16.safetensors.index.json",
                Some("fp16"),
                &["several indexes of \"model\""],
            ),
        ] {
            let problem = choose(names, wanted).expect_err(names);
            assert!(words.iter().all(|word| problem.contains(word)), "{names}: {problem}");
        }
        let many = (0..5000).map(|number| format!("a{number}.fp16 b{number}")).collect::<Vec<_>>().join(" ");
        let problem = choose(&many, None).expect_err("they are ambiguous");
        assert!(problem.contains("and 9992 more") && problem.len() < 1000, "{problem}");
    }
}
