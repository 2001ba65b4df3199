//! The documents tell the truth where a test can see it.

use std::{fs, path::Path, process::Command};

use crate::faults::{ACCIDENTS, Outcome, PHASES};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn every_route_is_in_the_api_document() {
    let source = read("src/http/mod.rs");
    let routes: Vec<&str> = source.split(".route(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(routes.len(), 10);
    let document = read("docs/API.md");
    for route in routes {
        let path = if route == "/health" { route.to_owned() } else { format!("/comfyui/workflow{route}") };
        assert!(document.contains(&path), "{path} is not in docs/API.md");
    }
}

#[test]
fn every_field_of_progress_is_in_the_api_document() {
    let source = read("src/http/view.rs");
    let view = source.split("struct WorkflowView").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap();
    let fields: Vec<&str> = view.lines().skip(1).filter_map(|line| line.trim().split(':').next()).collect();
    let fields: Vec<&str> = fields.into_iter().filter(|field| !field.is_empty()).collect();
    assert!(fields.len() >= 29, "{fields:?}");
    let document = read("docs/API.md");
    for field in fields {
        assert!(document.contains(&format!("`{field}`")), "{field} is not in docs/API.md");
    }
}

#[test]
fn every_code_of_a_finding_is_explained() {
    let source = read("src/workflow/finding.rs");
    let codes: Vec<&str> = source.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(codes.len() > 30 && codes.contains(&"value_not_in_list"), "{codes:?}");
    let documents = read("docs/PREFLIGHT.md") + &read("docs/CONVERSION.md");
    for code in codes.iter().filter(|code| !matches!(**code, "error" | "warning")) {
        assert!(documents.contains(&format!("`{code}`")), "{code} is explained nowhere");
    }
}

#[test]
fn the_table_of_faults_is_the_one_that_is_tested() {
    let documented = read("docs/FAULTS.md");
    let mut rows = documented.lines().filter(|line| line.starts_with("| ")).map(cells);
    let header = [vec!["accident".to_owned()], PHASES.iter().map(|(name, _)| format!("`{name}`")).collect()].concat();
    assert_eq!(rows.next(), Some(header));
    for (name, accident) in ACCIDENTS {
        let outcomes = PHASES.iter().map(|(_, phase)| match Outcome::of(*phase, *accident) {
            Outcome::Completed => "completed".to_owned(),
            Outcome::Cancelled => "cancelled".to_owned(),
            Outcome::JobLost => "`job_lost`".to_owned(),
        });
        assert_eq!(rows.next(), Some([vec![format!("`{name}`")], outcomes.collect()].concat()));
    }
    let told: Vec<String> = rows.filter_map(|row| row.into_iter().next()).collect();
    for (name, _) in ACCIDENTS {
        assert!(told.contains(&format!("`{name}`")), "{name} is not explained");
    }
}

/// The cells of a row of a Markdown table.
fn cells(row: &str) -> Vec<String> {
    row.trim_matches(['|', ' ']).split('|').map(|cell| cell.trim().to_owned()).collect()
}

#[test]
fn the_readmes_curl_example_is_a_request_that_the_service_takes() {
    let readme = read("README.md");
    let body = readme.split("-d '{").nth(1).and_then(|rest| rest.split("}'").next()).expect("a curl example");
    let body: serde_json::Value = serde_json::from_str(&format!("{{{body}}}")).unwrap();
    for file in [&body["workflow_file"], &body["input_images"][0]] {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file.as_str().unwrap()).is_file(), "{file}");
    }
}

#[test]
fn the_readme_links_to_what_is_there() {
    let pages = ["API", "ARCHITECTURE", "CONVERSION", "FAULTS", "GUARANTEES", "OPERATIONS", "SECURITY", "SOAK"]
        .map(|page| format!("docs/{page}.md"));
    for document in pages.iter().map(String::as_str).chain(["README.md"]) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(document).parent().unwrap().to_owned();
        for link in read(document).split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            assert!(
                link.is_empty() || link.contains("://") || folder.join(link).exists(),
                "{document} links to {link}"
            );
        }
    }
}

#[test]
fn only_the_agreed_names_are_at_the_top_level() {
    let listed = Command::new("git").args(["ls-files"]).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("git");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let agreed =
        ["Cargo.toml", "Cargo.lock", "src", "tests", "docs", "examples", "config.toml", "README.md", "benches", "fuzz"];
    for path in listed.lines() {
        let top = path.split('/').next().unwrap();
        assert!(top.starts_with('.') || agreed.contains(&top), "{path} is at the top level");
    }
}

/// The list that `tests/mutants/run` goes through must not point at what is no longer there.
#[test]
fn every_listed_mechanism_and_its_test_are_there() {
    let list: toml::Table = read("tests/mutants/list.toml").parse().unwrap();
    let mutants = list["mutant"].as_array().unwrap();
    assert!(mutants.len() >= 10, "{}", mutants.len());
    let tests = all_tests();
    for mutant in mutants {
        let text = |key: &str| mutant[key].as_str().unwrap_or_else(|| panic!("no {key} in {mutant}"));
        let times = read(text("file")).matches(text("line")).count();
        assert_eq!(times, 1, "{}: how often {:?} is in {}", text("mechanism"), text("line"), text("file"));
        assert_ne!(text("line"), text("becomes"), "{}", text("mechanism"));
        let known = match mutant.get("unit") {
            Some(_) => unit_test_exists(text("file"), text("test")),
            None => tests.iter().any(|test| test == text("test")),
        };
        assert!(known, "{}: there is no test {}", text("mechanism"), text("test"));
    }
}

/// A unit test stands in the file itself or in the folder of its module.
fn unit_test_exists(file: &str, test: &str) -> bool {
    let name = format!("fn {}(", test.rsplit("::").next().unwrap());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(file).with_extension("");
    let beside = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let parent = own.parent().unwrap().join("tests.rs");
    beside.chain([own, parent]).filter_map(|path| fs::read_to_string(path).ok()).any(|text| text.contains(&name))
}

#[test]
fn every_test_that_shows_a_guarantee_is_there() {
    assert!(tests_named_in("docs/GUARANTEES.md") > 40);
}

#[test]
fn every_test_that_holds_off_a_threat_is_there() {
    assert!(tests_named_in("docs/SECURITY.md") > 20);
}

/// How many tests a document names, all of which must be there.
fn tests_named_in(document: &str) -> usize {
    let (tests, text) = (all_tests(), read(document));
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect();
    for name in named.iter().filter(|name| **name != "faults::comfyui") {
        assert!(tests.iter().any(|test| test == name), "{document}: there is no test {name}");
    }
    named.len()
}

/// The names of the tests of this binary.
fn all_tests() -> Vec<String> {
    let listed = Command::new(std::env::current_exe().unwrap()).args(["--list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}
