//! `tensorhold inspect`: what a checkpoint's headers say.

use std::io::{self, Write};
use std::iter;

use serde::Serialize;
use tensorhold::allocator::Brief;
use tensorhold::{Device, Inspection, Loader, TensorInfo};

use crate::args::InspectArgs;
use crate::output::{self, brief, count, data, printable};

pub(crate) fn run(args: &InspectArgs) -> anyhow::Result<()> {
    let selection = args.selection.clone();
    let loader = args.set.of(Loader::new(Device::host()).checkpoint(&args.path)?);
    let inspection = loader.select(move |tensor| selection.wants(&tensor.name)).inspect()?;
    args.selection.check_matched(inspection.tensors.len())?;
    output::print(|out| match args.json {
        true => output::write_json(
            out,
            &Document { inspection: &inspection, total: Total::of(&inspection.tensors) },
        ),
        false => write_text(out, &inspection),
    })
}

/// The JSON form.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    inspection: &'a Inspection,
    total: Total,
}

/// The sum over some tensors.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Total {
    tensors: usize,
    bytes: u64,
}

impl Total {
    fn of<'a>(tensors: impl IntoIterator<Item = &'a TensorInfo>) -> Self {
        let add = |sum: Self, tensor: &TensorInfo| Self {
            tensors: sum.tensors + 1,
            bytes: sum.bytes.saturating_add(tensor.nbytes),
        };
        tensors.into_iter().fold(Self { tensors: 0, bytes: 0 }, add)
    }
}

/// Each file with its selected tensors, the total, and the files left out.
fn write_text(out: &mut dyn Write, inspection: &Inspection) -> io::Result<()> {
    let rows: Vec<[String; 4]> = inspection.tensors.iter().map(row).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [names, dtypes, shapes, sizes] = [0, 1, 2, 3].map(width);
    // The tensors come file by file, in the order of the files.
    let mut rest = inspection.tensors.iter().zip(&rows).peekable();
    for file in &inspection.files {
        let own: Vec<_> = iter::from_fn(|| rest.next_if(|(tensor, _)| tensor.file == file.path)).collect();
        let selected = Total::of(own.iter().map(|(tensor, _)| *tensor));
        let tensors = match count(file.tensors, "tensor") {
            all if selected.tensors == file.tensors => all,
            all => format!("{} of {all}", selected.tensors),
        };
        let (path, bytes) = (file.path.display().to_string(), data(selected.bytes));
        writeln!(out, "{}: {tensors}, {bytes}; file of {}", printable(&path), data(file.file_bytes))?;
        for (_, [name, dtype, shape, size]) in own {
            writeln!(out, "  {name:names$}  {dtype:dtypes$}  {shape:shapes$}  {size:>sizes$}")?;
        }
    }
    let Total { tensors, bytes } = Total::of(&inspection.tensors);
    let (tensors, files) = (count(tensors, "tensor"), count(inspection.files.len(), "file"));
    writeln!(out, "total: {tensors}, {} ({bytes} bytes), in {files}", data(bytes))?;
    output::left_out(&inspection.left_out).try_for_each(|line| writeln!(out, "left out: {line}"))
}

fn row(tensor: &TensorInfo) -> [String; 4] {
    let shape = Brief(format_args!("{:?}", tensor.shape)).to_string();
    [brief(&tensor.name), tensor.dtype.to_string(), shape, data(tensor.nbytes)]
}
