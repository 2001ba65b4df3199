//! For the fuzzer: workflows in UI format, and files that carry a workflow.

use std::collections::HashSet;

use chrono::NaiveDateTime;
use serde_json::json;

use super::{
    Conversion, ConvertError, NodeDefinitions, Options, Severity, convert,
    extract::{Workflow, extract},
};
use crate::json::parse_lenient;

/// The input is `{"ui": …, "object_info": …}`. There is an error for each refusal and none beside a prompt; a prompt comes
/// out the same each time, has only classes that are defined, and links only to nodes that are in it.
pub(crate) fn conversion(input: &[u8]) {
    let Ok(document) = parse_lenient(input) else { return };
    let definitions = NodeDefinitions::read(&document["object_info"]);
    let options = Options { now: Some(NaiveDateTime::default()), seed: input.len() as u64 };
    let converted = convert(&document["ui"], &definitions, &options);
    let is_error = |severity| severity == Severity::Error;
    let Conversion { prompt, findings, seeds } = match converted {
        Ok(conversion) => conversion,
        Err(ConvertError::Refused(findings)) => {
            return assert!(findings.iter().any(|finding| is_error(finding.severity)));
        }
        Err(_) => return,
    };
    assert!(!findings.iter().any(|finding| is_error(finding.severity)), "{findings:?}");
    let again = convert(&document["ui"], &definitions, &options);
    assert!(again.is_ok_and(|again| again.prompt == prompt && again.findings == findings));
    let ids: HashSet<&str> = prompt.keys().map(String::as_str).collect();
    for (id, node) in &prompt {
        assert!(node["class_type"].as_str().is_some_and(|class| definitions.class(class).is_some()), "{id}: {node}");
        for (name, value) in node["inputs"].as_object().into_iter().flatten() {
            let Some(link) = value.as_array() else { continue };
            let leads_to_a_node = link[0].as_str().is_some_and(|from| ids.contains(from));
            assert!(link.len() == 2 && leads_to_a_node && link[1].is_u64(), "{id}.{name}: {value}");
        }
    }
    for place in seeds.iter().flatten() {
        assert!(
            prompt[place.node.as_str()]["inputs"].get(&place.input).is_some_and(|value| !value.is_array()),
            "{place:?}"
        );
    }
    if !prompt.is_empty() {
        assert_found_again(&Workflow::Api(prompt));
    }
}

/// What is found in a file is found again when it is written as plain JSON.
pub(crate) fn carrier(input: &[u8]) {
    if let Ok(found) = extract(input) {
        assert_found_again(&found.workflow);
    }
}

fn assert_found_again(workflow: &Workflow) {
    let written = match workflow {
        Workflow::Api(prompt) => json!(prompt).to_string(),
        Workflow::Ui(ui) => ui.to_string(),
    };
    let again = extract(written.as_bytes());
    assert!(again.is_ok_and(|again| again.workflow == *workflow), "{written}");
}
