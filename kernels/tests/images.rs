//! The committed images: there is one for each kernel, and they are what the sources give.
//!
//! The second needs NVRTC, which `build --fetch` puts into `target/nvrtc`; where it is not, the test is ignored, and counted as such.

use std::fs;
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use tensorhold_kernels::{Kernel, pairs};

fn main() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nvrtc/libnvrtc.so.12");
    let trials = vec![
        Trial::test("each_image_has_its_kernel_and_no_other", each_image_has_its_kernel_and_no_other),
        Trial::test("the_images_are_what_the_sources_give", the_images_are_what_the_sources_give)
            .with_ignored_flag(!library.exists()),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn each_image_has_its_kernel_and_no_other() -> Result<(), Failed> {
    let mut files: Vec<String> = Vec::new();
    for kernel in Kernel::all() {
        let (name, ptx) = (kernel.name().to_str()?, kernel.ptx().to_str()?);
        let entries: Vec<&str> =
            ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry ")).collect();
        assert_eq!(entries, [format!("{name}(")]);
        assert!(ptx.contains("\n.version 8.0\n.target sm_75\n") && ptx.ends_with("}\n"), "{name}");
        files.push(format!("{name}.ptx"));
    }
    files.sort();
    let mut there = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<String>>>()?;
    there.sort();
    assert_eq!(files, there);
    assert_eq!(files.len(), pairs().count() + 7);
    Ok(())
}

fn the_images_are_what_the_sources_give() -> Result<(), Failed> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("build");
    let output = Command::new("python3").arg(build).arg("--check").output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}
