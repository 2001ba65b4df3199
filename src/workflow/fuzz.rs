//! For the fuzzer: workflow files.

use super::{Graph, Source};

/// What is read as a graph is written as the same graph, and its order has each node once, whatever the links say.
pub(crate) fn workflow_file(input: &[u8]) {
    let Ok(source) = Source::parse(input) else { return };
    assert_eq!(Source::parse(source.to_value().to_string().as_bytes()).ok().as_ref(), Some(&source));
    let Source::Graph(graph) = source else { return };
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
