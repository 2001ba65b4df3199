//! The graph of a workflow: as it came, or converted for the box.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::Value;

use super::{error::StepError, execution::Execution, link::Link};
use crate::{
    convert::{self, Conversion, ConvertError, NodeDefinitions},
    workflow::{ErrorCode, ErrorDetail, Event, Failure, Graph, Source},
};

impl Execution {
    /// The graph to submit. What came in UI format is converted for this box, once; that graph is kept in its place.
    pub(super) async fn graph(&self, link: &Link) -> Result<Graph, StepError> {
        let graph = match self.store.source(&self.id).await? {
            Source::Graph(graph) => graph,
            Source::Ui(document) => {
                let graph = self.convert(link, document).await?;
                self.store.settle_graph(&self.id, graph.clone()).await?;
                graph
            }
        };
        if self.state()?.nodes.is_empty() {
            self.apply(Event::Converted(Box::new(graph.clone())));
        }
        Ok(graph)
    }

    async fn convert(&self, link: &Link, document: Value) -> Result<Graph, StepError> {
        let mut definitions = NodeDefinitions::default();
        let known = link.client.definitions(&convert::classes(&document)).await?;
        for (class, definition) in known.iter() {
            definitions.insert(class, &definition.raw);
        }
        let accepted = self.state()?.queue_time;
        let options = convert::Options { now: Some(local(accepted)), seed: seed(&self.id.to_string()) };
        let work = move || convert::convert(&document, &definitions, &options);
        let converted = tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "a conversion ended early");
            StepError::fatal(ErrorCode::Internal, "internal error while converting the workflow; the log has more")
        })?;
        let Conversion { prompt, findings } = converted.map_err(|error| StepError::Fatal(refused(error)))?;
        let graph = Graph::from_document(prompt)
            .and_then(|graph| graph.check_bounds().map(|()| graph))
            .map_err(|error| StepError::fatal(ErrorCode::InvalidWorkflow, format!("The converted workflow {error}")))?;
        findings.iter().for_each(|finding| self.warn(finding.to_string()));
        Ok(graph)
    }
}

/// The message names the first findings; the list has them all.
fn refused(error: ConvertError) -> Failure {
    let message = format!("The workflow {error}");
    let detail = match error {
        ConvertError::Refused(findings) => Some(Box::new(ErrorDetail {
            node_id: findings.first().map(|finding| finding.node_id.as_str().into()),
            findings,
            ..ErrorDetail::default()
        })),
        _ => None,
    };
    let node_type = detail.as_ref().and_then(|detail| detail.findings.first()).map(|first| first.node_type.clone());
    Failure { node_type, detail, ..Failure::new(ErrorCode::InvalidWorkflow, message) }
}

fn local(at: DateTime<Utc>) -> NaiveDateTime {
    at.with_timezone(&chrono::Local).naive_local()
}

/// Another one for each workflow, and always the same one for it.
fn seed(id: &str) -> u64 {
    use sha2::{Digest, Sha256};

    Sha256::digest(id).iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
