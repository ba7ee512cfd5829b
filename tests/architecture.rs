//! The direction between the modules of the daemon: what ARCHITECTURE.md draws, read from the sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use soci_tests::process::repository;

/// From the outside in. A module may use its own group and those after it, never those before.
const ORDER: &[&[&str]] = &[
    &["main"],
    &["check"],
    &["daemon", "keeper"],
    &["listen", "grpc", "cri", "args"],
    &["snapshots"],
    &["image"],
    &["mount"],
    &["device"],
    &["layer"],
    &["store", "tree", "places", "fetch"],
    &["config", "logging", "metrics"],
    &["cpu"],
    &["sync"],
];

#[test]
fn modules_of_the_daemon_use_only_what_lies_further_in() {
    let root = repository().join("crates/snapshotter/src");
    let mut wrong = Vec::new();
    for (module, uses) in uses(&root) {
        let Some(from) = place(&module) else {
            wrong.push(format!("{module} has no place in the order"));
            continue;
        };
        for (used, file) in uses {
            if place(&used).is_some_and(|to| to < from) {
                wrong.push(format!("{} uses {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The libraries that each library may use.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("ztoc", &[]),
    ("erofs", &[]),
    ("bolt", &[]),
    ("oci", &[]),
    ("flags", &[]),
    ("status", &[]),
    ("registry", &["oci"]),
    ("store", &["oci", "registry", "ztoc"]),
    ("index", &["bolt", "oci", "registry", "store", "ztoc"]),
];

#[test]
fn libraries_use_only_what_lies_further_in() {
    for (library, allowed) in LIBRARIES {
        let manifest = repository().join(format!("crates/{library}/Cargo.toml"));
        let manifest = fs::read_to_string(manifest).expect("a manifest");
        let depends = manifest
            .split("[dev-dependencies]")
            .next()
            .unwrap_or_default();
        for (other, _) in LIBRARIES {
            let uses = depends.contains(&format!("\nsoci-{other}.workspace"));
            assert!(!uses || allowed.contains(other), "{library} uses {other}");
        }
    }
}

fn place(module: &str) -> Option<usize> {
    ORDER.iter().position(|group| group.contains(&module))
}

/// For every module of the crate the other modules that its files name, tests left out.
fn uses(root: &Path) -> BTreeMap<String, Vec<(String, PathBuf)>> {
    let mut found: BTreeMap<String, Vec<(String, PathBuf)>> = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("list the sources").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains("test") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let inside = path.strip_prefix(root).expect("below the root");
            let first = inside.iter().next().unwrap_or_default().to_string_lossy();
            let module = first.trim_end_matches(".rs").to_owned();
            if module == "lib" {
                continue;
            }
            let text = fs::read_to_string(&path).expect("read a source");
            let code = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap_or_default();
            let named = found.entry(module.clone()).or_default();
            for used in crate_modules(code)
                .into_iter()
                .filter(|used| *used != module)
            {
                named.push((used, inside.to_path_buf()));
            }
        }
    }
    found
}

/// The first segments behind `crate::`, also of braced lists.
fn crate_modules(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0_u32;
        let mut item = String::new();
        for c in list.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.push(word(item.trim_start()));
                    item.clear();
                    continue;
                }
                _ => {}
            }
            item.push(c);
        }
        found.push(word(item.trim_start()));
    }
    found.retain(|used| !used.is_empty());
    found
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}
