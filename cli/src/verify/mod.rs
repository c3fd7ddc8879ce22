//! `tensorhold verify`: shows that what was loaded is what the files hold.
//!
//! [`reference`] reads the files with none of the library's code, [`compare`] compares; this file reports.

mod compare;
mod reference;
#[cfg(test)]
mod tests;

use std::io::{self, Write};

use serde::Serialize;
use tensorhold::allocator::Bytes;

use crate::args::VerifyArgs;
use crate::device;
use crate::load;
use crate::output::{self, count};

pub(crate) use compare::{Verification, compare};

/// Differences that are listed as text; JSON has them all.
const LISTED: usize = 10;

pub(crate) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let options = &args.options;
    let loaded = load::load(&args.path, options, device::choose(options.device)?)?;
    let verification = compare(&loaded.weights, |name| options.selection.wants(name))?;
    output::print(|out| {
        if args.json {
            let equal = verification.differences.is_empty();
            return output::write_json(
                out,
                &Document { equal, verification: &verification, load: loaded.document() },
            );
        }
        loaded.write_text(out)?;
        verification.write_text(out)
    })?;
    verification.check()
}

/// The JSON form.
#[derive(Serialize)]
struct Document<'a> {
    equal: bool,
    #[serde(flatten)]
    verification: &'a Verification,
    load: load::Document<'a>,
}

impl Verification {
    pub(crate) fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let (tensors, all) = (self.equal_tensors, count(self.tensors, "tensor"));
        let (bytes, all_bytes) =
            (Bytes(self.equal_bytes).beside(&[self.bytes]), Bytes(self.bytes).beside(&[self.equal_bytes]));
        writeln!(
            out,
            "verified in {:.3} s: {tensors} of {all}, {bytes} of {all_bytes}, equal the files",
            self.seconds
        )?;
        for difference in self.differences.iter().take(LISTED) {
            writeln!(out, "  differs: {difference}")?;
        }
        match self.differences.len().checked_sub(LISTED) {
            Some(more @ 1..) => writeln!(out, "  and {more} more"),
            _ => Ok(()),
        }
    }

    /// An error if anything differs, with the first difference as its source.
    pub(crate) fn check(self) -> anyhow::Result<()> {
        let (different, all) = (self.differences.len(), count(self.tensors, "tensor"));
        match self.differences.into_iter().next() {
            None => Ok(()),
            Some(first) => {
                let summary = format!(
                    "verify: {different} of {all} differ from the files; check that no one writes to them, and report \
                     it as a bug of tensorhold if no one does"
                );
                Err(anyhow::Error::msg(first).context(summary))
            }
        }
    }
}
