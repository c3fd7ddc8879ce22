//! The folders of `src` depend on each other in one direction, and stay small enough to find one's way in.
//!
//! The arrows are read from `use` lines and inline paths (`crate::folder::`, `super::file::`). Tests may look anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders and files of `src`, and what each may import. A row names rows above it only, so there is no cycle.
const ARROWS: &[(&str, &[&str])] = &[
    ("bytes", &[]),
    ("quoted", &[]),
    ("fork", &[]),
    ("sync", &[]),
    ("machine", &[]),
    ("offsets", &[]),
    ("error", &["bytes", "quoted"]),
    ("memory", &["bytes", "error", "machine"]),
    ("stream", &["error", "sync"]),
    ("backing", &["error", "fork", "memory", "sync"]),
    ("events", &["fork", "offsets", "quoted"]),
    ("replay", &["events", "offsets"]),
    ("books", &["backing", "events", "memory", "offsets", "stream"]),
    ("core", &["books", "error", "events", "fork", "memory", "offsets", "stream", "sync"]),
    ("reclaim", &["books", "core", "error", "stream"]),
    ("fragment", &["core", "error", "memory", "stream"]),
    (
        "pool",
        &[
            "backing", "books", "bytes", "core", "error", "events", "fragment", "memory", "offsets",
            "reclaim", "stream", "sync",
        ],
    ),
];

/// Crate roots: documentation and re-exports, and the suite that is written as a user of the crate.
const ROOTS: &[&str] = &["lib", "conformance"];

const MAX_FILES: usize = 16;
const MAX_LINES: usize = 450;
const MAX_MEDIAN_LINES: usize = 250;

/// A file below `src`: the modules on its path, `mod` left out, and its lines.
struct Source {
    modules: Vec<String>,
    is_mod: bool,
    text: String,
}

impl Source {
    fn name(&self) -> String {
        self.modules.join("::")
    }

    /// The text without comments and without the unit tests at its end.
    fn code(&self) -> String {
        let end = ["#[cfg(test)]\nmod tests {", "#[cfg(all(test"]
            .iter()
            .filter_map(|tests| self.text.find(tests))
            .min();
        let lines = self.text[..end.unwrap_or(self.text.len())].lines();
        lines.map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
    }

    fn is_test(&self) -> bool {
        self.modules.last().is_some_and(|name| name.ends_with("tests"))
    }

    /// The paths that follow `prefix::`, those in braces one by one.
    fn paths(&self, prefix: &str) -> Vec<String> {
        let code = self.code();
        let mut paths = Vec::new();
        for (at, found) in code.match_indices(prefix) {
            let is_inner =
                code[..at].ends_with(|before: char| before.is_alphanumeric() || "_:$".contains(before));
            let rest = &code[at + found.len()..];
            match rest.strip_prefix('{') {
                _ if is_inner => {}
                Some(list) => {
                    let end = list.find("};").unwrap_or(list.len());
                    paths.extend(list[..end].split(',').map(|path| path.trim().to_owned()));
                }
                None => paths
                    .push(rest.chars().take_while(|&c| c.is_alphanumeric() || "_:".contains(c)).collect()),
            }
        }
        paths.retain(|path| !path.is_empty());
        paths
    }
}

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut sources) = (vec![src.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let modules = path.strip_prefix(&src).unwrap().with_extension("");
            let mut modules: Vec<String> =
                modules.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            let is_mod = modules.last().is_some_and(|name| name == "mod");
            if is_mod {
                modules.pop();
            }
            sources.push(Source { modules, is_mod, text: fs::read_to_string(path).unwrap() });
        }
    }
    sources.sort_by_key(|source| source.modules.clone());
    sources
}

fn first(path: &str) -> &str {
    path.split("::").next().unwrap_or(path)
}

#[test]
fn the_table_of_arrows_has_no_cycle_and_names_what_there_is() {
    let mut above = BTreeSet::new();
    for (name, imports) in ARROWS {
        for import in *imports {
            assert!(above.contains(import), "{name} imports {import}, which is no row above it");
        }
        above.insert(*name);
    }
    let there: BTreeSet<String> = sources().iter().map(|source| source.modules[0].clone()).collect();
    let named: BTreeSet<String> = above.into_iter().chain(ROOTS.iter().copied()).map(String::from).collect();
    assert_eq!(there, named);
}

#[test]
fn folders_import_what_the_table_allows_and_nothing_else() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for source in sources().iter().filter(|source| !source.is_test() && !ROOTS.contains(&&*source.modules[0]))
    {
        let folder = &*source.modules[0];
        for path in source.paths("crate::") {
            let target = first(&path);
            assert!(
                target == folder || allowed[folder].contains(&target),
                "src/{} imports crate::{path}: {folder} may import {:?} alone",
                source.name(),
                allowed[folder],
            );
            used.insert((folder.to_owned(), target.to_owned()));
        }
    }
    for (folder, imports) in ARROWS {
        for import in *imports {
            assert!(
                used.contains(&((*folder).into(), (*import).into())),
                "{folder} does not import {import} any more"
            );
        }
    }
}

/// A file names its neighbours by their files, so that arrows between files can be seen; re-exports are for other folders.
#[test]
fn files_of_a_folder_depend_on_each_other_in_one_direction() {
    let sources = sources();
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let code =
        sources.iter().filter(|source| source.modules.len() > 1 && !source.is_mod && !source.is_test());
    for source in code {
        let folder = source.modules[..source.modules.len() - 1].join("::");
        for path in source.paths("super::").iter().chain(&source.paths(&format!("crate::{folder}::"))) {
            let file = first(path);
            assert!(
                file.starts_with(char::is_lowercase)
                    && sources.iter().any(|other| other.name() == format!("{folder}::{file}")),
                "src/{} imports {path} from its folder: name the file that defines it",
                source.name()
            );
            arrows.entry(source.name()).or_default().insert(format!("{folder}::{file}"));
        }
    }
    // Files without arrows go, until only cycles are left.
    loop {
        let ends: Vec<String> = arrows
            .keys()
            .filter(|file| arrows[*file].iter().all(|to| !arrows.contains_key(to)))
            .cloned()
            .collect();
        if ends.is_empty() {
            break;
        }
        ends.iter().for_each(|file| _ = arrows.remove(file));
    }
    assert!(arrows.is_empty(), "these files depend on each other in a circle, or on such files: {arrows:#?}");
}

#[test]
fn folders_and_files_stay_small() {
    let sources = sources();
    let mut folders: BTreeMap<String, usize> = BTreeMap::new();
    let mut lines = Vec::new();
    for source in &sources {
        let count = source.text.lines().count();
        assert!(count <= MAX_LINES, "src/{} has {count} lines", source.name());
        lines.push(count);
        let depth = source.modules.len() - usize::from(!source.is_mod);
        *folders.entry(source.modules[..depth].join("::")).or_default() += 1;
    }
    for (folder, files) in folders {
        assert!(files <= MAX_FILES, "src/{folder} has {files} files");
    }
    lines.sort_unstable();
    assert!(lines[lines.len() / 2] <= MAX_MEDIAN_LINES);
}

#[test]
fn module_files_hold_documentation_and_re_exports_alone() {
    for source in sources().iter().filter(|source| source.is_mod) {
        let code = source.code();
        let items = ["fn ", "struct ", "enum ", "trait ", "impl ", "macro_rules!"];
        assert!(!items.iter().any(|item| code.contains(item)), "src/{}/mod.rs defines items", source.name());
    }
}
