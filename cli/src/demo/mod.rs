//! `tensorhold demo`: writes a Llama-shaped checkpoint, loads it and verifies it.
//!
//! [`shapes`] says what is in the checkpoint, [`write`] streams it to disk, [`folder`] takes it away again, [`size`]
//! decides how large it is. `--keep` makes it a source of files for benchmarks.

mod folder;
mod run;
mod shapes;
mod size;
mod write;

pub(crate) use run::run;
