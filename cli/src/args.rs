//! The command line.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use globset::{GlobBuilder, GlobMatcher};
use tensorhold::allocator::RegionParts;
use tensorhold::allocator::replay::Policy;
use tensorhold::{Backend, BackendKind, DType, Loader};

use crate::device::DeviceName;

#[derive(Debug, Parser)]
#[command(name = "tensorhold", version, about = "Loads safetensors checkpoints at the speed of the bus")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the tensors of a checkpoint; reads only the headers
    Inspect(InspectArgs),
    /// Load a checkpoint and say where the time went
    Load(LoadArgs),
    /// Load a checkpoint, read every tensor back and compare it with the files, byte by byte
    Verify(VerifyArgs),
    /// Draw where a checkpoint's tensors lie in memory, as an SVG
    Map(MapArgs),
    /// Place what a recorded pool placed by other policies, and compare what they need
    Replay(ReplayArgs),
    /// Show a recorded pool over time, as a trace for Perfetto or chrome://tracing
    Trace(TraceArgs),
    /// Write a Llama-shaped checkpoint sized to this machine, load it on the best device and verify it
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A checkpoint: a directory, an index (.json) or a safetensors file
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) set: WeightSet,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// A checkpoint: a directory, an index (.json) or a safetensors file
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) options: LoadOptions,
    /// Convert floats on their way, to f32, f16, bf16, f8_e4m3 or f8_e5m2 [default: they stay as they are]
    #[arg(long, value_name = "TYPE", value_parser = dtype)]
    pub(crate) dtype: Option<DType>,
    /// Record what happens in the pool of the tensors' memory to this file, until it has been closed; for `replay` and `trace`
    #[arg(long, value_name = "FILE")]
    pub(crate) events: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A checkpoint: a directory, an index (.json) or a safetensors file
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) options: LoadOptions,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What is loaded, and how.
#[derive(Debug, Default, Args)]
pub(crate) struct LoadOptions {
    /// Where to: cpu (or host), pinned, cuda:N [default: cuda:0 if there is one, else cpu]
    #[arg(long)]
    pub(crate) device: Option<DeviceName>,
    #[command(flatten)]
    pub(crate) set: WeightSet,
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// How many threads read [default: one a core, at most 16]
    #[arg(long, value_name = "N", value_parser = threads)]
    pub(crate) threads: Option<u16>,
    /// How files are read: auto, or by one way alone: buffered, direct, io-uring, gds [default: auto]
    #[arg(long, value_name = "BACKEND", value_parser = backend)]
    pub(crate) backend: Option<Backend>,
    /// Whether memory is put behind the tensors part by part, and goes back tensor by tensor: auto, require [default: as a whole]
    #[arg(long, value_name = "MODE", value_parser = parts)]
    pub(crate) parts: Option<RegionParts>,
    /// Staging memory of all threads together, such as 64MiB [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) staging_bytes: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// A checkpoint: a directory, an index (.json) or a safetensors file
    #[arg(required_unless_present = "snapshot", conflicts_with = "snapshot")]
    pub(crate) path: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: LoadOptions,
    /// Draw this snapshot of a pool instead, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) snapshot: Option<PathBuf>,
    /// Where to write the picture [default: the standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// A log of a pool's events, as `load --events` writes it
    pub(crate) log: PathBuf,
    /// Only this policy; may be repeated [default: all]
    #[arg(long = "policy", value_name = "POLICY", value_parser = policy())]
    pub(crate) policies: Vec<Policy>,
    /// Place in one space of this size, such as 16GiB [default: in regions that grow as the pool's do]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) capacity: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// A log of a pool's events, as `load --events` writes it
    pub(crate) log: PathBuf,
    /// Where to write the trace [default: the standard output]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where to write, created if missing [default: a new folder in the temporary directory]
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
    /// About how much to write, such as 2GiB [default: what suits this machine, at most 14.9 GiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) bytes: Option<u64>,
    /// Where to load to: cpu (or host), pinned, cuda:N [default: cuda:0 if there is one, else cpu]
    #[arg(long)]
    pub(crate) device: Option<DeviceName>,
    /// Keep the checkpoint (without this it is removed, unless the command is interrupted)
    #[arg(long)]
    pub(crate) keep: bool,
    /// Seed of the pseudo-random bytes
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = seed)]
    pub(crate) seed: u64,
}

/// Which set of weights of a directory is wanted.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WeightSet {
    /// Of a directory, the weights of this variant, such as fp16 for model.fp16.safetensors [default: those without one]
    #[arg(long, value_name = "NAME", value_parser = variant)]
    variant: Option<String>,
}

impl WeightSet {
    /// The same loader, for this set.
    pub(crate) fn of(&self, loader: Loader) -> Loader {
        self.variant.iter().fold(loader, Loader::variant)
    }
}

/// Which tensors are wanted, by name.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Selection {
    /// Only tensors whose whole name matches; `*` matches anything, dots and slashes too; may be repeated
    #[arg(long = "select", value_name = "GLOB", value_parser = glob)]
    patterns: Vec<GlobMatcher>,
}

impl Selection {
    /// Whether every tensor is wanted.
    pub(crate) fn is_all(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the tensor of this name is wanted.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.is_all() || self.patterns.iter().any(|pattern| pattern.is_match(name))
    }

    /// Fails when patterns were given and none has matched: a load or comparison of nothing is not what was meant.
    pub(crate) fn check_matched(&self, tensors: usize) -> anyhow::Result<()> {
        if tensors > 0 || self.is_all() {
            return Ok(());
        }
        let patterns: Vec<_> =
            self.patterns.iter().map(|pattern| format!("{:?}", pattern.glob().glob())).collect();
        anyhow::bail!(
            "select: no tensor's name matches {}; `tensorhold inspect` lists them",
            patterns.join(" or ")
        )
    }
}

fn glob(text: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(text).literal_separator(false).backslash_escape(true).build()?.compile_matcher())
}

fn variant(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains('/') {
        true => Err("expected a part of a file's name, such as fp16".into()),
        false => Ok(text.into()),
    }
}

fn backend(text: &str) -> Result<Backend, String> {
    if text == "auto" {
        return Ok(Backend::Auto);
    }
    let kind = BackendKind::ALL.into_iter().find(|kind| kind.name() == text);
    kind.map(Backend::Require)
        .ok_or_else(|| format!("expected auto, {}", BackendKind::ALL.map(BackendKind::name).join(", ")))
}

fn dtype(text: &str) -> Result<DType, String> {
    let dtype = DType::ALL.iter().find(|dtype| dtype.name().eq_ignore_ascii_case(text));
    dtype.copied().ok_or_else(|| "expected f32, f16, bf16, f8_e4m3 or f8_e5m2".into())
}

fn policy() -> impl TypedValueParser<Value = Policy> {
    PossibleValuesParser::new(Policy::ALL.iter().map(|policy| policy.name()))
        .try_map(|name| name.parse::<Policy>())
}

fn parts(text: &str) -> Result<RegionParts, String> {
    match text {
        "auto" => Ok(RegionParts::Auto),
        "require" => Ok(RegionParts::Require),
        _ => Err("expected auto or require".into()),
    }
}

fn threads(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|threads| (1..=1024).contains(threads));
    number.ok_or_else(|| "expected a number from 1 to 1024".into())
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "expected a number from 0 to 2^64 - 1".into())
}

fn size(text: &str) -> Result<u64, String> {
    if let Ok(bytes) = text.parse() {
        return Ok(bytes);
    }
    match text.parse::<ByteSize>() {
        // Products that do not fit are cut off there.
        Ok(size) if size.as_u64() == u64::MAX => Err("it is too large, expected less than 16EiB".into()),
        Ok(size) => Ok(size.as_u64()),
        Err(_) if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() => {
            Err("it is too large, expected less than 16EiB".into())
        }
        Err(_) => Err("expected a size such as 64MiB, 16GB or 1000000".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{Arguments, Selection, glob, size};

    fn selects(pattern: &str, name: &str) -> bool {
        Selection { patterns: vec![glob(pattern).unwrap()] }.wants(name)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_decimal_binary_or_plain() {
        let sizes = ["64MiB", "16GB", "1000000", "1.5 KiB"].map(size);
        assert_eq!(sizes, [Ok(64 << 20), Ok(16_000_000_000), Ok(1_000_000), Ok(1536)]);
        assert_eq!(size("18446744073709551615"), Ok(u64::MAX));
        for large in ["18446744073709551616", "999999999999999999999", "99999EiB", "16 EiB"] {
            assert!(size(large).unwrap_err().contains("too large"), "{large}");
        }
        for wrong in ["many", "", "4 apples"] {
            assert!(size(wrong).unwrap_err().contains("such as 64MiB"), "{wrong}");
        }
        assert!(size("-1").is_err());
    }

    #[test]
    fn a_star_matches_dots_and_slashes() {
        assert!(selects("*.weight", "model.layers.0.mlp.weight"));
        assert!(selects("model*weight", "model/layers/0.weight"));
        assert!(selects("model.layers.[01].*", "model.layers.1.a/b.c"));
        assert!(selects("{a,b}.bias", "b.bias"));
    }

    #[test]
    fn a_pattern_is_about_the_whole_name() {
        assert!(!selects("weight", "model.weight"));
        assert!(!selects("model.?", "model.10"));
        assert!(!selects("*.weight", "model.weight_scale"));
    }

    #[test]
    fn no_pattern_wants_everything() {
        assert!(Selection::default().wants("anything"));
        assert!(Selection::default().check_matched(0).is_ok());
    }
}
