//! The look at a graph and the box before anything is uploaded or paid for.
//!
//! What is to be known of the box is asked for here; what follows from it is decided in [`preflight`].

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{
    error::StepError,
    execution::Execution,
    known_boxes::{Learned, StartedComfyUi},
    link::Link,
};
use crate::{
    comfy::ComfyError,
    preflight::{self, FileReference, Known, Report},
    workflow::{
        ErrorCode, ErrorDetail, Event, Failure, Finding, FindingCode, Graph, NodeDefinitions, NodeId, RemoteFile,
        Request, Secrets, Severity,
        finding::{self, Several},
    },
};

/// Files that are looked for on the box at once, and at all.
const LOOKS_AT_ONCE: usize = 4;
const MAX_LOOKS: usize = 100;

/// More warnings are not told one by one.
const MAX_WARNINGS: usize = 20;

/// What the box says about a graph's classes.
#[derive(Debug, Default)]
pub(super) struct BoxFacts {
    /// `None` when it does not tell; then only ComfyUI's own answer to the submission counts.
    pub(super) definitions: Option<Arc<NodeDefinitions>>,
    /// Why it does not.
    pub(super) untold: Option<Finding>,
    /// Whether some of it is from earlier, and may have changed.
    from_before: bool,
    started: Option<StartedComfyUi>,
}

impl BoxFacts {
    /// Asks for the definitions of a graph's classes, but for those that are known already.
    pub(super) async fn ask(link: &Link, classes: &BTreeSet<String>, known: Learned) -> Result<Self, StepError> {
        let Learned { started, mut definitions, from_before } = known;
        let unknown = classes.iter().filter(|class| definitions.class(class).is_none()).cloned().collect();
        match link.client.definitions(&unknown).await {
            Ok(more) => {
                definitions.extend(more);
                Ok(Self { definitions: Some(Arc::new(definitions)), untold: None, from_before, started })
            }
            Err(
                error @ (ComfyError::Unreachable { .. }
                | ComfyError::Timeout { .. }
                | ComfyError::TooSlow { .. }
                | ComfyError::Crowded { .. }),
            ) => Err(error.into()),
            Err(error) => {
                let message = format!("the box's node definitions could not be read: {error}");
                let finding = Finding::of_all(Severity::Warning, FindingCode::NoDefinitions, message);
                let hint = "nothing was checked beforehand; ComfyUI itself will say what is wrong";
                Ok(Self { untold: Some(finding.with_hint(hint)), started, ..Self::default() })
            }
        }
    }

    /// The nodes that will run, in the expected order; all of them where the box does not tell.
    pub(super) fn order(&self, graph: &Graph) -> Vec<NodeId> {
        match &self.definitions {
            Some(_) => graph.order_from(|_, node| self.is_output(node.class_type())),
            None => graph.order_of_all(),
        }
    }

    /// The nodes that put something out.
    pub(super) fn outputs<'a>(&self, graph: &'a Graph) -> impl Iterator<Item = &'a NodeId> {
        graph.nodes().filter(|(_, node)| self.is_output(node.class_type())).map(|(id, _)| id)
    }

    fn is_output(&self, class: &str) -> bool {
        let definition = self.definitions.as_ref().and_then(|definitions| definitions.class(class));
        definition.is_some_and(|definition| definition.output_node)
    }

    /// Everything that can be found out about the graph before it is submitted. `given` are the names of the files that
    /// come with it.
    pub(super) async fn look_at(
        &self,
        link: &Link,
        graph: &Graph,
        given: Vec<String>,
    ) -> Result<Vec<Finding>, StepError> {
        let Some(definitions) = &self.definitions else { return Ok(self.untold.clone().into_iter().collect()) };
        let lacks_some = graph.nodes().any(|(_, node)| definitions.class(node.class_type()).is_none());
        let replaced = if lacks_some { help(link.client.replaced_classes().await)? } else { BTreeSet::new() };
        let version = link.version();
        let (definitions, checked, gone) = (Arc::clone(definitions), graph.clone(), CancellationToken::new());
        let _asker = gone.clone().drop_guard();
        let check = move || {
            let known =
                Known { definitions: &definitions, replaced: &replaced, version: version.as_deref(), given: &given };
            preflight::check(&checked, &known, &|| gone.is_cancelled())
        };
        let Report { mut findings, files } = tokio::task::spawn_blocking(check)
            .await
            .map_err(|error| StepError::ended_early(&error, "checking the workflow"))?;
        findings.extend(look_for(link, files).await?);
        suggest_classes(link, &mut findings).await?;
        let secrets = Secrets::of(graph);
        Ok(findings.into_iter().map(|finding| secrets.hide_of(finding)).collect())
    }
}

impl Execution {
    /// Learns the box's node definitions, but for those that are known already, and cuts the nodes to those that will run.
    pub(super) async fn plan(&self, link: &Link, graph: &Graph, known: Learned) -> Result<BoxFacts, StepError> {
        let known = BoxFacts::ask(link, &graph.classes(), known).await?;
        if let Some(definitions) = &known.definitions {
            if let Some(started) = &known.started {
                self.known_boxes.remember(started.clone(), definitions);
            }
            let outputs = known.outputs(graph).cloned().collect();
            self.apply(Event::Planned { order: known.order(graph), outputs });
        }
        Ok(known)
    }

    /// What is known of the box from earlier runs.
    pub(super) async fn remembered(&self, link: &Link) -> Result<Learned, StepError> {
        let Request { ssh_connection, comfyui_port: port, .. } = self.request()?;
        let mark = help(link.client.server_mark().await)?;
        let started = mark.map(|mark| StartedComfyUi { ssh_connection, port, mark });
        Ok(started.map(|started| self.known_boxes.of(started)).unwrap_or_default())
    }

    /// Ends a run that the box would refuse, with everything that is wrong with it. What is remembered of the box is
    /// enough to find nothing wrong, and not to find something.
    pub(super) async fn preflight(&self, link: &Link, graph: &Graph, known: &mut BoxFacts) -> Result<(), StepError> {
        let given = names(&self.request()?.input_images);
        let mut findings = known.look_at(link, graph, given.clone()).await?;
        if known.from_before && !findings.is_empty() {
            *known = self.plan(link, graph, Learned { started: known.started.take(), ..Learned::default() }).await?;
            findings = known.look_at(link, graph, given).await?;
        }
        if findings.iter().any(|finding| finding.severity == Severity::Error) {
            let several = Several(&findings).to_string();
            return Err(StepError::Fatal(refusal(format!("The box would refuse the workflow: {several}"), findings)));
        }
        let more = findings.len().saturating_sub(MAX_WARNINGS);
        findings.iter().take(MAX_WARNINGS).for_each(|finding| self.warn(finding.to_string()));
        if more > 0 {
            self.warn(format!("{more} more warnings like these; a dry run shows them all"));
        }
        Ok(())
    }
}

/// A workflow that can't be submitted; the message names the first errors, the list has as much as is kept.
pub(super) fn refusal(message: String, mut findings: Vec<Finding>) -> Failure {
    finding::cut(&mut findings);
    let first = findings.iter().find(|finding| finding.severity == Severity::Error && !finding.node_id.is_empty());
    let node_id = first.map(|finding| finding.node_id.as_str().into());
    let node_type = first.map(|finding| finding.node_type.clone());
    let detail = ErrorDetail { node_id, findings, ..ErrorDetail::default() };
    Failure { node_type, detail: Some(detail.into()), ..Failure::new(ErrorCode::InvalidWorkflow, message) }
}

/// The names under which files come to the box if nothing is in the way there.
pub(super) fn names(images: &[PathBuf]) -> Vec<String> {
    images.iter().filter_map(|image| Some(image.file_name()?.to_str()?.to_owned())).collect()
}

/// Adds what the box has under much the same name to findings about classes that it lacks.
pub(super) async fn suggest_classes(link: &Link, findings: &mut [Finding]) -> Result<(), StepError> {
    if findings.iter().any(|finding| finding.code == FindingCode::MissingNodeType) {
        let names = help(link.client.class_names().await)?;
        preflight::suggest_classes(findings, &names);
    }
    Ok(())
}

/// What serves only for better advice may fail, unless the way to the box is gone.
fn help<T: Default>(answer: Result<T, ComfyError>) -> Result<T, StepError> {
    match answer {
        Err(error @ ComfyError::Unreachable { .. }) => Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, "no advice from the box");
            Ok(T::default())
        }
        Ok(answer) => Ok(answer),
    }
}

/// Of the files that nodes name, those that ComfyUI does not see.
async fn look_for(link: &Link, files: Vec<FileReference>) -> Result<Vec<Finding>, StepError> {
    let unseen = files.len().saturating_sub(MAX_LOOKS);
    let looks = stream::iter(files.into_iter().take(MAX_LOOKS)).map(|FileReference { file, missing }| async move {
        let file = RemoteFile {
            filename: file.filename,
            subfolder: file.subfolder,
            folder: file.folder,
            listed_as: String::new(),
        };
        match link.client.stat_view(&file).await {
            Ok(None) => Ok(Some(missing)),
            Ok(Some(_)) => Ok(None),
            Err(error) => help::<()>(Err(error)).map(|()| None),
        }
    });
    let found: Vec<_> = looks.buffered(LOOKS_AT_ONCE).collect().await;
    let mut missing = found.into_iter().filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
    if unseen > 0 {
        let message = format!("{unseen} more files that nodes name were not looked for on the box");
        missing.push(Finding::of_all(Severity::Warning, FindingCode::MissingInputFile, message));
    }
    Ok(missing)
}
