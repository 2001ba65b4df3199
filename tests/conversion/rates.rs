//! How many of the recorded prompts come out the same: all of them, but where an older front end did otherwise, or where
//! the workflow does not fit the node definitions.

use comfy_remote::convert::{Options, convert};

use crate::cases::{cases, definitions, differences};

/// Converts a whole set; says how many there are and which came out wrong.
fn converted(set: &str, version: &str) -> (usize, Vec<String>) {
    let definitions = definitions(version);
    let cases = cases(set);
    let mut wrong = Vec::new();
    for case in &cases {
        match convert(&case.ui, &definitions, &Options::default()) {
            Ok(conversion) => {
                let differences = differences(&case.api, &conversion.prompt);
                if let Some(first) = differences.first() {
                    wrong.push(format!("{}: {first} ({} differences)", case.name, differences.len()));
                }
            }
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    let right = cases.len() - wrong.len();
    println!("{set}: {right} of {} the same\n  {}", cases.len(), wrong.join("\n  "));
    (cases.len(), wrong)
}

#[test]
fn small_graphs_of_one_feature_each_come_out_the_same() {
    assert_eq!(converted("handmade", "1.58"), (138, Vec::new()));
}

#[test]
fn official_templates_come_out_the_same() {
    assert_eq!(converted("templates", "1.58"), (228, Vec::new()));
}

#[test]
fn templates_with_muted_and_bypassed_nodes_come_out_the_same() {
    assert_eq!(converted("mutants", "1.58"), (401, Vec::new()));
}

#[test]
fn templates_of_the_year_before_come_out_the_same() {
    assert_eq!(converted("old-templates", "1.58"), (81, Vec::new()));
}

#[test]
fn workflows_for_other_versions_of_nodes_come_out_the_same_or_are_refused() {
    let (count, wrong) = converted("skewed", "1.58");
    assert_eq!((count, wrong.len()), (20, 12));
    // The front end links them to whatever stands in the place; a refusal is better.
    assert!(wrong.iter().all(|wrong| wrong.contains("which its definition does not offer")));
}

#[test]
fn an_older_front_end_differs_only_where_it_is_known_to() {
    let mut wrong = Vec::new();
    for (set, wanted, limit) in [("fe127-templates", 89, 6), ("fe127-mutants", 159, 10)] {
        let (count, differing) = converted(set, "1.27");
        assert_eq!((count, differing.len()), (wanted, limit), "{set}");
        wrong.extend(differing);
    }
    // It sent empty values for its players, and links through muted reroutes and nodes.
    wrong.retain(|wrong| !(wrong.contains(".audioUI is missing") || wrong.contains(".preview is missing")));
    assert_eq!(wrong.len(), 2);
}
