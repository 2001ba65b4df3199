//! The graph of a workflow: as it came, or converted for the box.

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::Value;

use super::{
    error::StepError,
    execution::Execution,
    link::Link,
    preflight::{refusal, suggest_classes},
};
use crate::{
    convert::{self, Conversion, ConvertError},
    workflow::{ErrorCode, Event, Finding, Graph, Source},
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
        let accepted = self.state()?.queue_time;
        let options = convert::Options { now: Some(local(accepted)), seed: seed(&self.id.to_string()) };
        let (graph, findings) = convert_on(link, document, options).await?;
        findings.iter().for_each(|finding| self.warn(finding.to_string()));
        Ok(graph)
    }
}

/// Converts a document for the box at the end of the link.
pub(super) async fn convert_on(
    link: &Link,
    document: Value,
    options: convert::Options,
) -> Result<(Graph, Vec<Finding>), StepError> {
    let definitions = link.client.definitions(&convert::classes(&document)).await?;
    let work = move || convert::convert(&document, &definitions, &options);
    let converted = tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a conversion ended early");
        StepError::fatal(ErrorCode::Internal, "internal error while converting the workflow; the log has more")
    })?;
    match converted {
        Ok(Conversion { prompt, findings }) => {
            let broken = |error| format!("The converted workflow {error}");
            let graph = Graph::from_document(prompt)
                .map_err(|error| StepError::fatal(ErrorCode::InvalidWorkflow, broken(error)))?;
            Ok((graph, findings))
        }
        Err(ConvertError::Refused(mut findings)) => {
            suggest_classes(link, &mut findings).await?;
            let message = format!("The workflow {}", ConvertError::Refused(findings.clone()));
            Err(StepError::Fatal(refusal(message, findings)))
        }
        Err(error) => Err(StepError::fatal(ErrorCode::InvalidWorkflow, format!("The workflow {error}"))),
    }
}

fn local(at: DateTime<Utc>) -> NaiveDateTime {
    at.with_timezone(&chrono::Local).naive_local()
}

/// Another one for each workflow, and always the same one for it.
fn seed(id: &str) -> u64 {
    use sha2::{Digest, Sha256};

    Sha256::digest(id).iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
