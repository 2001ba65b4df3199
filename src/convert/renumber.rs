//! Ids that several graphs of a file use: since front end 1.58 every node of a file has an id of its own, so those that
//! come later get new ones on loading.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::ui::{Graph, Node, Workflow, text_or_number};

/// Gives new ids to the nodes in subgraphs whose ids are taken, by the root or by a subgraph before.
pub(super) fn renumber(workflow: &mut Workflow) {
    let mut used: HashSet<String> = workflow.root.nodes.keys().cloned().collect();
    let mut next = workflow.root.largest_id().max(workflow.last_node_id);
    let mut changes: HashMap<String, HashMap<String, String>> = HashMap::new();
    for (id, graph) in &mut workflow.subgraphs {
        let mut new_ids = HashMap::new();
        for node in graph.nodes.keys() {
            if used.insert(node.clone()) {
                continue;
            }
            next = next.saturating_add(1);
            while !used.insert(next.to_string()) {
                next = next.saturating_add(1);
            }
            new_ids.insert(node.clone(), next.to_string());
        }
        if !new_ids.is_empty() {
            graph.rename(&new_ids);
            changes.insert(id.clone(), new_ids);
        }
    }
    let graphs = std::iter::once(&mut workflow.root).chain(workflow.subgraphs.values_mut());
    for node in graphs.flat_map(|graph: &mut Graph| graph.nodes.values_mut()) {
        if let Some(new_ids) = changes.get(&node.class) {
            follow_in_proxies(node, new_ids);
        }
    }
    workflow.last_node_id = next;
}

/// The widgets that a subgraph's node shows are named by the ids of the nodes in it.
fn follow_in_proxies(node: &mut Node, new_ids: &HashMap<String, String>) {
    let proxies = node.properties.get_mut("proxyWidgets").and_then(Value::as_array_mut);
    for id in proxies.into_iter().flatten().filter_map(|pair| pair.get_mut(0)) {
        if let Some(new_id) = text_or_number(id).and_then(|id| new_ids.get(&id)) {
            *id = Value::String(new_id.clone());
        }
    }
}
