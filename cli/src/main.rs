//! The `tensorhold` command: looks into safetensors checkpoints, loads them, and shows that what arrived is what the
//! files hold.
//!
//! Results go to standard output, errors and progress bars to standard error. Exit codes: 0, 1 for a failure or a
//! difference, 2 for wrong usage.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod args;
mod demo;
mod device;
mod inspect;
mod load;
mod map;
mod output;
mod pool;
mod replay;
mod target;
mod trace;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Command};

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Inspect(args) => inspect::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Map(args) => map::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Trace(args) => trace::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::print_error(&error);
            ExitCode::FAILURE
        }
    }
}
