//! For the fuzzer: workflow files.

use super::{Document, Graph, Source};

/// What is read as a graph is written as the same graph, and its order has each node once, whatever the links say.
pub(crate) fn workflow_file(input: &[u8]) {
    let Ok(document) = Document::parse(input) else { return };
    let source = Source::from(document.clone());
    assert_eq!(Source::parse_kept(source.to_value().to_string().as_bytes()).ok().as_ref(), Some(&source));
    let Document::Graph(graph) = document else { return };
    let count = graph.nodes().count();
    let mut order = graph.order_of_all();
    assert_eq!(order.len(), count);
    order.sort();
    order.dedup();
    assert_eq!(order.len(), count);
    assert!(graph.nodes_in_cycles().len() <= count);
    let written = graph.to_value().to_string();
    let again = Graph::parse(written.as_bytes());
    assert!(again.is_ok_and(|again| again.to_value() == graph.to_value()), "{written}");
}
