//! The architecture's lines: which part imports which. Read from the source, so that a crossed line fails here.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each part, the other parts that it may name, and the crates that it must not.
const RULES: &[(&str, &[&str], &[&str])] = &[
    ("workflow", &["json", "text"], &["tokio", "tracing", "axum", "reqwest", "russh"]),
    ("cli", &[], &["axum", "russh"]),
    ("convert", &["workflow", "json", "text"], &["tokio", "tracing", "axum", "reqwest", "russh"]),
    ("preflight", &["workflow", "text", "json"], &["tokio", "tracing", "axum", "reqwest", "russh"]),
    ("files", &[], &["tokio", "tracing", "axum", "reqwest", "russh"]),
    ("home", &[], &["tokio", "tracing"]),
    ("json", &[], &["tokio", "tracing"]),
    ("text", &[], &["tokio", "tracing"]),
    ("ssh", &["home", "files", "text"], &["axum", "reqwest", "tokio_tungstenite"]),
    ("comfy", &["workflow", "json", "text"], &["axum", "russh"]),
    ("store", &["workflow"], &["axum", "reqwest", "russh"]),
    (
        "runner",
        &["home", "files", "workflow", "convert", "preflight", "ssh", "comfy", "store"],
        &["axum", "hyper", "reqwest", "russh", "tokio_tungstenite"],
    ),
    ("http", &["workflow", "store", "runner", "text"], &["reqwest", "russh", "tokio_tungstenite"]),
    ("config", &["home", "files", "ssh", "store", "runner", "http"], &["axum", "russh"]),
    ("telemetry", &["home", "config"], &["axum", "russh"]),
    ("app", &["config", "ssh", "store", "runner", "http"], &["russh", "reqwest"]),
    ("demo", &["app", "config", "sandbox", "telemetry"], &["russh", "axum"]),
    ("sandbox", &[], &["reqwest"]),
    ("fuzz", &["workflow", "convert", "ssh", "comfy", "store", "runner", "preflight"], &["tokio"]),
];

#[test]
fn every_part_imports_only_what_it_may() {
    let mut crossed = Vec::new();
    for (part, allowed, forbidden_crates) in RULES {
        let files = sources(part);
        assert!(!files.is_empty(), "no source of {part}");
        for file in files {
            let text = without_comments(&fs::read_to_string(&file).unwrap());
            for named in parts_named(&text) {
                if named != *part && !allowed.contains(&named.as_str()) {
                    crossed.push(format!("{} names {named}", file.display()));
                }
            }
            for name in *forbidden_crates {
                if text.contains(&format!("{name}::")) {
                    crossed.push(format!("{} uses {name}", file.display()));
                }
            }
        }
    }
    assert_eq!(crossed, Vec::<String>::new());
}

#[test]
fn every_part_has_a_rule() {
    let parts: BTreeSet<String> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|name| !matches!(name.as_str(), "main" | "lib"))
        .collect();
    let ruled: BTreeSet<String> = RULES.iter().map(|(part, ..)| (*part).to_owned()).collect();
    assert_eq!(parts, ruled);
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// `src/<part>.rs` and everything below `src/<part>/`.
fn sources(part: &str) -> Vec<PathBuf> {
    let mut files = vec![root().join(format!("{part}.rs"))];
    let mut folders = vec![root().join(part)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs") && file.exists());
    files
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules named behind `crate::`, also in a braced list.
fn parts_named(text: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (0, String::new());
            for c in list.chars() {
                match c {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => named.extend(first_name(&std::mem::take(&mut item))),
                    _ => {}
                }
                if depth == 0 && c != ',' {
                    item.push(c);
                }
            }
            named.extend(first_name(&item));
        } else {
            named.extend(first_name(rest));
        }
    }
    named
}

fn first_name(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}
