//! The committed archive of images: it has one for each kernel, of the digests in the manifest, and the sources compile to them.
//!
//! The last test needs NVRTC, which `build --fetch` downloads into `target/nvrtc`. Without it the test is ignored, and counted as such.

use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use sha2::{Digest, Sha256};
use tensorhold_kernels::{Kernel, pairs};

fn main() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nvrtc/libnvrtc.so.12");
    let trials = vec![
        Trial::test("each_kernel_has_the_image_of_the_manifest", each_kernel_has_the_image_of_the_manifest),
        Trial::test("the_images_are_what_the_sources_give", the_images_are_what_the_sources_give)
            .with_ignored_flag(!library.exists()),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn each_kernel_has_the_image_of_the_manifest() -> Result<(), Failed> {
    let mut digests: Vec<String> = Vec::new();
    for kernel in Kernel::all() {
        let (name, image) = (kernel.name().to_str()?, kernel.ptx()?);
        let ptx = image.to_str()?;
        let entries: Vec<&str> =
            ptx.lines().filter_map(|line| line.strip_prefix(".visible .entry ")).collect();
        assert_eq!(entries, [format!("{name}(")]);
        assert!(ptx.contains("\n.version 8.0\n.target sm_75\n") && ptx.ends_with("}\n"), "{name}");
        let digest: String = Sha256::digest(ptx).iter().map(|byte| format!("{byte:02x}")).collect();
        digests.push(format!("{digest}  {name}.ptx"));
    }
    digests.sort_by(|a, b| a.split_at(66).1.cmp(b.split_at(66).1));
    let manifest: Vec<&str> = include_str!("../images.sha256").lines().collect();
    assert_eq!(digests, manifest);
    assert_eq!(digests.len(), pairs().count() + 7);
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
