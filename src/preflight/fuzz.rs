//! What a fuzzer feeds to this part.

use std::collections::BTreeSet;

use super::{Known, check};
use crate::{
    json::parse_lenient,
    workflow::{Document, Edits, NodeDefinitions, finding::MAX_FINDINGS},
};

/// The input is `{"prompt": …, "object_info": …, "given": […], "parameters": {…}}`. Parameters are set or refused, a graph is
/// judged the same each time, what is found is on its nodes, and there is not too much of it.
pub(crate) fn look(input: &[u8]) {
    let Ok(document) = parse_lenient(input) else { return };
    let Ok(Document::Graph(mut graph)) = Document::read(document["prompt"].clone()) else { return };
    let definitions = NodeDefinitions::read(&document["object_info"]);
    let edits = Edits {
        parameters: document["parameters"].as_object().cloned().unwrap_or_default(),
        randomize_seeds: document["randomize_seeds"] == true,
    };
    let (before, seeds) = (graph.clone(), graph.seeds());
    if edits.apply(&mut graph, &seeds, &definitions, || 7).is_err() {
        assert_eq!(graph, before);
    }
    let given: Vec<String> =
        document["given"].as_array().into_iter().flatten().filter_map(|name| name.as_str().map(Into::into)).collect();
    let replaced = BTreeSet::from(["Gone".to_owned()]);
    let known =
        Known { definitions: &definitions, replaced: &replaced, version: document["version"].as_str(), given: &given };
    let report = check(&graph, &known, &|| false);
    assert!(report.findings.len() <= MAX_FINDINGS);
    for finding in report.findings.iter().chain(report.files.iter().map(|file| &file.missing)) {
        let is_there = graph.node(&finding.node_id.as_str().into()).is_some();
        assert!(is_there || finding.node_id.is_empty(), "{finding:?}");
    }
    assert_eq!(check(&graph, &known, &|| false), report);
}
