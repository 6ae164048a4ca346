//! The layers of the library: `use crate::` points down.

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// From the ground up. A module imports only modules before it, and its own.
const LAYERS: &[&str] = &[
    "key",
    "retry",
    "clock",
    "error",
    "protocol",
    "outcome",
    "telemetry",
    "store",
    "lease",
    "keeper",
    "hub",
    "guard",
    "acquire",
    "client",
    "ext",
];

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = dirs.iter().flat_map(|dir| files_below(dir));
    files.into_iter().chain(below).collect()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    // Tests may look at anything.
    match dir.ends_with("tests") {
        true => Vec::new(),
        false => files(dir),
    }
}

fn layer(module: &str) -> usize {
    let found = LAYERS.iter().position(|layer| *layer == module);
    found.unwrap_or_else(|| panic!("{module} has no layer"))
}

/// The imports of a module in this text that point up, with their lines.
fn upward(module: &str, text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\n").next().unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let imports = lines.filter_map(|line| {
        let (_, path) = line.split_once("crate::")?;
        let imported = path.split(|char: char| !char.is_alphanumeric() && char != '_');
        Some((line, imported.into_iter().next()?))
    });
    let up = imports.filter(|(_, imported)| layer(imported) > layer(module));
    up.map(|(line, _)| line.trim().to_owned()).collect()
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for path in files(&src) {
        let inside = path.strip_prefix(&src).unwrap();
        let module = inside.iter().next().unwrap().to_str().unwrap();
        let module = module.trim_end_matches(".rs");
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        // The root names all of them, and a file of tests may look at anything.
        if !is_rust || module == "lib" || path.ends_with("tests.rs") {
            continue;
        }
        seen += 1;
        let up = upward(module, &read_to_string(&path).unwrap());
        assert!(up.is_empty(), "{}: {up:?}", inside.display());
    }
    assert!(seen > 40, "only {seen} files");
}

#[test]
fn an_import_that_points_up_is_found() {
    let text = "use crate::key::Key;\nuse crate::hub::Handle;\n// crate::ext\n";
    assert_eq!(upward("store", text), ["use crate::hub::Handle;"]);
    assert!(upward("guard", text).is_empty());
}
