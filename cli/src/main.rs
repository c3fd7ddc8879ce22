//! The `tensorhold` command.
fn main() {}
