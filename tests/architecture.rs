//! The structure of `src/`: which module may use which, and how large folders and files may be.
//!
//! Arrows are checked on paths that begin with `crate`, `super` or `self`, in `use` lines and elsewhere. Comments,
//! strings and `#[cfg(test)]` items do not count.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "architecture/source.rs"]
mod source;

use source::{paths, strip};

/// The units of `src/`, and the other units that each may use. A unit is a module with its descendants, without
/// those that are units themselves. It uses only units further down, so there are no cycles.
const UNITS: &[(&str, &[&str])] = &[
    ("store", &["loader", "weights", "error"]),
    (
        "loader",
        &[
            "loader/pipeline",
            "loader/tuning",
            "loader/plan",
            "loader/staging",
            "loader/metadata",
            "loader/transform",
            "loader/parallel",
            "loader/pools",
            "loader/progress",
            "weights",
            "group",
            "report",
            "tensor",
            "io",
            "device",
            "format",
            "fork",
            "settings",
            "error",
            "names",
            "dtype",
        ],
    ),
    (
        "loader/pipeline",
        &[
            "loader/pipeline/stats",
            "loader/tuning",
            "loader/plan",
            "loader/staging",
            "loader/metadata",
            "loader/transform",
            "loader/pools",
            "loader/progress",
            "report",
            "io",
            "device",
            "error",
            "limits",
        ],
    ),
    ("loader/pipeline/stats", &["loader/transform", "report", "device", "error"]),
    ("loader/tuning", &["loader/plan", "loader/staging", "report", "io", "settings", "error"]),
    ("loader/plan", &["loader/metadata", "loader/transform", "report", "tensor", "io", "format", "error"]),
    ("loader/staging", &["loader/parallel", "device", "error"]),
    (
        "loader/metadata",
        &[
            "loader/transform",
            "loader/parallel",
            "weights",
            "tensor",
            "io",
            "device",
            "format",
            "error",
            "names",
            "limits",
        ],
    ),
    ("loader/transform", &["group", "tensor", "device", "format", "error", "shape", "dtype"]),
    ("loader/parallel", &["fork"]),
    ("loader/pools", &["device", "error"]),
    ("loader/progress", &[]),
    ("save", &["weights", "tensor", "device", "format", "fork", "regular", "error", "shape", "dtype"]),
    ("weights", &["report", "tensor", "error", "names"]),
    ("group", &["tensor", "device", "error", "shape", "dtype"]),
    ("report", &["device", "format"]),
    ("tensor", &["device", "format", "error", "shape", "dtype"]),
    ("io", &["device", "settings", "regular", "error", "limits"]),
    ("device", &["fork", "error"]),
    ("format", &["regular", "error", "names", "shape", "dtype"]),
    ("fork", &["error"]),
    ("regular", &["error"]),
    ("settings", &["error"]),
    ("error", &["limits"]),
    ("names", &[]),
    ("limits", &[]),
    ("shape", &["dtype"]),
    ("dtype", &[]),
];

/// Folders with a limited size and without circles of files, with their subfolders.
const LIMITED: &[&str] = &["loader"];
const MAX_FILES: usize = 16;
const MAX_LINES: usize = 450;

#[test]
fn modules_use_only_the_units_below_them() {
    let (mut violations, mut arrows) = (Vec::new(), BTreeSet::new());
    for (file, text) in sources() {
        let module = module_of(&file);
        // The crate's root declares the modules and re-exports their items.
        if module.is_empty() {
            continue;
        }
        let Some((unit, allowed)) = unit_of(&module) else {
            violations.push(format!("{}: not in a unit of UNITS", file.display()));
            continue;
        };
        for path in paths(&text) {
            let target = resolve(&module, &path);
            match unit_of(&target) {
                Some((used, _)) if used == unit || allowed.contains(&used) => {
                    arrows.insert((unit, used));
                }
                Some((used, _)) => violations.push(format!("{}: {unit} uses {used}", file.display())),
                None => violations.push(format!("{}: {path:?} is not in a unit", file.display())),
            }
        }
    }
    let all = UNITS.iter().flat_map(|(unit, allowed)| allowed.iter().map(move |used| (*unit, *used)));
    let unused: Vec<_> = all.filter(|arrow| !arrows.contains(arrow)).collect();
    assert!(violations.is_empty(), "{violations:#?}");
    assert!(unused.is_empty(), "arrows of UNITS that nothing uses: {unused:?}");
}

#[test]
fn units_use_only_units_further_down_the_table() {
    for (place, (unit, allowed)) in UNITS.iter().enumerate() {
        for used in *allowed {
            let below = UNITS.iter().position(|(other, _)| other == used);
            assert!(below.is_some_and(|below| below > place), "{unit} may not use {used}");
        }
    }
}

#[test]
fn files_of_a_folder_do_not_use_each_other_in_a_circle() {
    let mut files = Vec::new();
    for (file, text) in sources() {
        let (module, folder) = (module_of(&file), module_of(file.parent().unwrap()));
        let is_limited = LIMITED.iter().any(|limited| file.starts_with(limited));
        if is_limited && module != folder {
            let used = paths(&text).iter().map(|path| resolve(&module, path)).collect::<Vec<_>>();
            files.push((module, used));
        }
    }
    // A file that uses no sibling is not part of a circle. Removes such files until only circles are left.
    loop {
        let modules: Vec<_> = files.iter().map(|(module, _)| module.clone()).collect();
        let uses_sibling = |module: &[String], used: &[Vec<String>]| {
            let siblings = modules.iter().filter(|other| {
                *other != module
                    && other.len() == module.len()
                    && other[..other.len() - 1] == module[..module.len() - 1]
            });
            siblings.into_iter().any(|other| used.iter().any(|path| path.starts_with(other)))
        };
        let before = files.len();
        files.retain(|(module, used)| uses_sibling(module, used));
        if files.len() == before {
            break;
        }
    }
    let circle: Vec<_> = files.iter().map(|(module, _)| module.join("/")).collect();
    assert!(circle.is_empty(), "{circle:?}");
}

#[test]
fn limited_folders_and_files_are_small() {
    let source = source_folder();
    let mut violations = Vec::new();
    for limited in LIMITED {
        let files = files_in(&source.join(limited));
        let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
        for folder in folders {
            let count = files.iter().filter(|file| file.parent() == Some(folder)).count();
            if count > MAX_FILES {
                violations.push(format!("{}: {count} files, of {MAX_FILES} at most", folder.display()));
            }
        }
        for file in files {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            if lines > MAX_LINES {
                violations.push(format!("{}: {lines} lines, of {MAX_LINES} at most", file.display()));
            }
        }
    }
    assert!(violations.is_empty(), "{violations:#?}");
}

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All Rust files in a folder and its subfolders.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_in(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The files of `src/`, relative to it, without those of `#[cfg(test)]` modules; and their code.
fn sources() -> Vec<(PathBuf, String)> {
    let source = source_folder();
    let (mut sources, mut tests) = (Vec::new(), Vec::new());
    for path in files_in(&source) {
        let file = path.strip_prefix(&source).unwrap().to_path_buf();
        let (code, test_modules) = strip(&fs::read_to_string(&path).unwrap());
        tests.extend(test_modules.into_iter().map(|name| [module_of(&file), vec![name]].concat()));
        sources.push((file, code));
    }
    sources.retain(|(file, _)| {
        let module = module_of(file);
        !tests.iter().any(|test| module.starts_with(test))
    });
    sources
}

/// The module of a file: `["loader", "plan"]` for `loader/plan/mod.rs`.
fn module_of(file: &Path) -> Vec<String> {
    let file = file.with_extension("");
    let mut module: Vec<String> = file.iter().map(|segment| segment.to_str().unwrap().to_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib")) {
        module.pop();
    }
    module
}

/// The unit of a module or an item in it: the one with the longest name that is a prefix.
fn unit_of(path: &[String]) -> Option<(&'static str, &'static [&'static str])> {
    let is_prefix = |unit: &str| {
        let unit: Vec<&str> = unit.split('/').collect();
        path.len() >= unit.len() && unit.iter().zip(path).all(|(segment, name)| segment == name)
    };
    UNITS.iter().filter(|(unit, _)| is_prefix(unit)).max_by_key(|(unit, _)| unit.len()).copied()
}

/// The absolute path, without `crate`, of a path in a module.
fn resolve(module: &[String], path: &[String]) -> Vec<String> {
    let mut absolute = match path.first().map(String::as_str) {
        Some("crate") => Vec::new(),
        _ => module.to_vec(),
    };
    for segment in path {
        match segment.as_str() {
            "crate" | "self" => {}
            "super" => drop(absolute.pop()),
            _ => absolute.push(segment.clone()),
        }
    }
    absolute
}
