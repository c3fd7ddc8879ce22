//! `tensorhold map`.

mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use support::{command, failure, run, stdout, write};

/// The widths of the rectangles with this title, added up.
fn width(svg: &str, title: &str) -> f64 {
    let lines = svg.lines().filter(|line| line.contains(&format!("<title>{title}")));
    let width = |line: &str| {
        line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap()
    };
    lines.map(width).sum()
}

#[test]
fn each_tensor_has_an_area_like_its_bytes_and_a_name_that_is_no_markup() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(
        &path,
        &[
            ("large", &[3000, 100]),
            ("small", &[1000, 100]),
            ("</title><script>&\"\u{1b}", &[64]),
            ("none", &[0]),
        ],
    );
    let svg = stdout(&run("map", &path, &["--device", "cpu"]));
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("4 fragments") && svg.contains("in 1 region") && svg.contains("nothing free"));
    assert!(svg.contains("1 fragment without a byte"), "{svg}");
    let ratio = width(&svg, "large:") / width(&svg, "small:");
    assert!((ratio - 3.0).abs() < 0.01, "{ratio}");
    assert!(width(&svg, "&lt;/title&gt;&lt;script&gt;&amp;&quot;\\u{1b}: 256 B") > 0.0);
    assert!(!svg.contains("<script"));
    // Of 24 rows as wide, all but the last end is covered by the region.
    assert!((width(&svg, "free") - 1160.0 * 24.0).abs() < 1160.0);

    let file = folder.path().join("map.svg");
    let written = run("map", &path, &["--device", "cpu", "--out", file.to_str().unwrap()]);
    assert_eq!(stdout(&written), "");
    assert_eq!(fs::read_to_string(file).unwrap().lines().count(), svg.lines().count());
}

#[test]
fn a_picture_and_a_log_go_into_devices_and_pipes_which_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[("a", &[300])]);
    let devices = || {
        let about = fs::symlink_metadata("/dev/null").unwrap();
        (about.file_type().is_char_device(), about.rdev(), about.ino())
    };
    let before = devices();
    for options in [["map", "--out"], ["load", "--events"]] {
        let [command, option] = options;
        assert!(run(command, &path, &["--device", "cpu", option, "/dev/null"]).status.success());
    }
    assert!(devices() == before && before.0);
    // Of this program, it is a pipe.
    let svg = stdout(&run("map", &path, &["--device", "cpu", "--out", "/dev/stdout"]));
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
}

#[test]
fn a_snapshot_with_holes_is_drawn_and_damaged_ones_are_refused() {
    use tensorhold::allocator::{HostMemory, Pool, Request};

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot.json");
    let map = |options: &[&str]| command().arg("map").args(options).output().unwrap();
    let pool = Pool::builder(std::sync::Arc::new(HostMemory::new())).region_bytes(1 << 20).build().unwrap();
    let place = |label: &str| pool.place(label, Request::new(256 << 10, 256)).unwrap();
    let (_a, b, _c) = (place("a"), place("b"), place("c"));
    drop(b);
    pool.trim();
    fs::write(&file, serde_json::to_vec(&pool.snapshot()).unwrap()).unwrap();
    let svg = stdout(&map(&["--snapshot", file.to_str().unwrap()]));
    assert!(svg.contains("512.0 KiB free, 50 % of it outside the largest hole"), "{svg}");
    assert!((width(&svg, "a: 256.0 KiB at 0x0") - width(&svg, "c: 256.0 KiB at 0x80000")).abs() < 0.01);
    fs::write(&file, "{}").unwrap();
    assert!(failure(&map(&["--snapshot", file.to_str().unwrap()]), 1).contains("no snapshot of a pool"));
    assert!(failure(&map(&["--snapshot", "/nowhere.json"]), 1).contains("/nowhere.json"));
    failure(&map(&[]), 2);
}

#[test]
fn a_snapshot_without_end_is_refused() {
    let message = failure(&command().args(["map", "--snapshot", "/dev/zero"]).output().unwrap(), 1);
    assert!(message.contains("got more than 256.0 MiB"), "{message}");
}
