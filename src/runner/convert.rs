//! The graph of a workflow: as it came, or converted for the box.

use std::{collections::BTreeSet, sync::Arc};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::{Map, Value};

use super::{
    error::StepError,
    execution::Execution,
    known_boxes::Learned,
    link::Link,
    preflight::{BoxFacts, refusal, suggest_classes},
};
use crate::{
    comfy::ComfyError,
    convert::{self, Conversion, ConvertError},
    workflow::{
        Document, Edits, ErrorCode, Event, Finding, FindingCode, Graph, Node, NodeDefinitions, Severity, Source,
        edits::{Place, Seed},
        finding::Several,
    },
};

impl Execution {
    /// The graph to submit. What came in UI format is converted for this box, and what the user wants changed is changed,
    /// once; that graph is kept in the source's place. With it comes what of the box is known by now.
    pub(super) async fn graph(&self, link: &Link) -> Result<(Graph, Learned), StepError> {
        let source = self.store.source(&self.id).await?;
        let was_settled = source.is_settled();
        let remembered = self.remembered(link).await?;
        let options = self.conversion_options()?;
        let Settled { graph, known, findings } = settle(link, source, &options, remembered).await?;
        if !was_settled {
            self.store.settle_graph(&self.id, graph.clone()).await?;
            findings.iter().for_each(|finding| self.warn(finding.to_string()));
        }
        if self.state()?.nodes.is_empty() {
            self.apply(Event::Converted(Box::new(graph.clone())));
        }
        Ok((graph, known))
    }

    fn conversion_options(&self) -> Result<convert::Options, StepError> {
        let accepted = self.state()?.queue_time;
        Ok(conversion_options(accepted, &self.id.to_string()))
    }
}

/// Another choice of texts for each name, and always the same one for it.
pub(super) fn conversion_options(at: DateTime<Utc>, name: &str) -> convert::Options {
    convert::Options { now: Some(local(at)), seed: seed(name) }
}

/// The graph that a source means on a box.
#[derive(Debug)]
pub(super) struct Settled {
    pub(super) graph: Graph,
    /// What is known of the box, the definitions that were needed for the graph included.
    pub(super) known: Learned,
    /// What its author should know; warnings only.
    pub(super) findings: Vec<Finding>,
}

/// Converts a source for the box at the end of the link, and changes what is to be changed. What is remembered of the box
/// need not be asked for.
pub(super) async fn settle(
    link: &Link,
    source: Source,
    options: &convert::Options,
    remembered: Learned,
) -> Result<Settled, StepError> {
    let (mut settled, seeds) = match source.document {
        Document::Graph(graph) => {
            let seeds = if source.edits.randomize_seeds { graph.seeds() } else { Vec::new() };
            (Settled { graph, known: remembered, findings: Vec::new() }, seeds)
        }
        Document::Ui(document) => convert_for(link, document, *options, remembered).await?,
    };
    let refused = |message: String| {
        let finding = Finding::of_all(Severity::Error, FindingCode::UnknownParameter, message.clone());
        StepError::Fatal(refusal(message, vec![finding]))
    };
    settled.known = check_places(link, &source.edits, &settled).await?;
    settled.known = seed_definitions(link, &seeds, &settled).await?;
    // Of such an id the lower half is random but for its first bits.
    let random = || uuid::Uuid::new_v4().as_u64_pair().1;
    source.edits.apply(&mut settled.graph, &seeds, &settled.known.definitions, random).map_err(refused)?;
    Ok(settled)
}

/// What is known of the box and its definitions of these classes, as far as it tells.
async fn learn(link: &Link, classes: &BTreeSet<String>, known: Learned) -> Result<Learned, StepError> {
    let mut learned = known.clone();
    if let Some(definitions) = BoxFacts::ask(link, classes, known).await?.definitions {
        learned.definitions = Arc::unwrap_or_clone(definitions);
    }
    Ok(learned)
}

/// The definitions that tell how large seeds may be.
async fn seed_definitions(link: &Link, seeds: &[Seed], settled: &Settled) -> Result<Learned, StepError> {
    let node = |place: &Place| settled.graph.node(&place.node);
    let classes = seeds.iter().flatten().filter_map(|place| Some(node(place)?.class_type().to_owned())).collect();
    learn(link, &classes, settled.known.clone()).await
}

/// Whether the parameters name inputs that the nodes have: those of the file, or optional ones that are not in it. Gives
/// what is known of the box by then.
async fn check_places(link: &Link, edits: &Edits, settled: &Settled) -> Result<Learned, StepError> {
    let graph = &settled.graph;
    let places = edits.places(graph).unwrap_or_default();
    let lacks = |place: &Place| graph.node(&place.node).filter(|node| node.input(&place.input).is_none());
    let new: Vec<_> = places.iter().filter_map(|(place, _)| Some((place, lacks(place)?))).collect();
    if new.is_empty() {
        return Ok(settled.known.clone());
    }
    let classes = new.iter().map(|(_, node)| node.class_type().to_owned()).collect();
    let mut known = learn(link, &classes, settled.known.clone()).await?;
    let mut findings = misplaced(&new, &known.definitions);
    if known.from_before && !findings.is_empty() {
        known = learn(link, &classes, known.anew()).await?;
        findings = misplaced(&new, &known.definitions);
    }
    if findings.is_empty() {
        return Ok(known);
    }
    let message = format!("A parameter fits no input: {}", Several(&findings));
    Err(StepError::Fatal(refusal(message, findings)))
}

/// Of inputs that are to be set on nodes, those that the nodes do not have. A class that the box lacks is found later,
/// with all others.
fn misplaced(new: &[(&Place, &Node)], definitions: &NodeDefinitions) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (place, node) in new {
        if definitions.class(node.class_type()).is_some_and(|definition| !definition.may_have(&place.input)) {
            let (id, input) = (&place.node, &place.input);
            let message = format!("has no input {input}, which a parameter is to set");
            let names = node.inputs().map(|(name, _)| name.as_str()).take(20).collect::<Vec<_>>().join(", ");
            let finding = Finding::of_node(Severity::Error, FindingCode::UnknownParameter, id, node, message);
            findings.push(finding.on_input(input).with_hint(format!("it has {names}")));
        }
    }
    findings
}

/// Converts with what is remembered of the box, and again with what it says now if there is anything to say about that.
async fn convert_for(
    link: &Link,
    document: Value,
    options: convert::Options,
    remembered: Learned,
) -> Result<(Settled, Vec<Seed>), StepError> {
    let (classes, document) = (convert::classes(&document), Arc::new(document));
    let (mut converted, mut known) = convert_with(link, &document, &classes, options, remembered).await?;
    let is_clean = |converted: &Conversions| converted.as_ref().is_ok_and(|conversion| conversion.findings.is_empty());
    if known.from_before && !is_clean(&converted) {
        (converted, known) = convert_with(link, &document, &classes, options, known.anew()).await?;
    }
    match converted {
        Ok(Conversion { prompt, seeds, findings }) => {
            let graph = graph_of(prompt).map_err(|why| StepError::fatal(ErrorCode::InvalidWorkflow, why))?;
            Ok((Settled { graph, known, findings }, seeds))
        }
        Err(ConvertError::Refused(mut findings)) => {
            suggest_classes(link, &mut findings).await?;
            let message = format!("The workflow {}", ConvertError::Refused(findings.clone()));
            Err(StepError::Fatal(refusal(message, findings)))
        }
        Err(error) => Err(StepError::fatal(ErrorCode::InvalidWorkflow, format!("The workflow {error}"))),
    }
}

/// What a conversion has come to, which may be nothing.
///
/// # Errors
/// Says why it can't be run.
pub(super) fn graph_of(prompt: Map<String, Value>) -> Result<Graph, String> {
    if prompt.is_empty() {
        return Err("The workflow has no node that runs: each is muted, bypassed, a note, or without a type".to_owned());
    }
    let graph = Graph::from_document(prompt).and_then(|graph| graph.check_bounds().map(|()| graph));
    graph.map_err(|error| format!("The converted workflow {error}"))
}

type Conversions = Result<Conversion, ConvertError>;

/// Asks for what is not known yet, and converts.
async fn convert_with(
    link: &Link,
    document: &Arc<Value>,
    classes: &BTreeSet<String>,
    options: convert::Options,
    mut known: Learned,
) -> Result<(Conversions, Learned), StepError> {
    let unknown = classes.iter().filter(|class| known.definitions.class(class).is_none()).cloned().collect();
    known.definitions.extend(link.client.definitions(&unknown).await.map_err(unconvertible)?);
    let document = Arc::clone(document);
    let work = move || (convert::convert(&document, &known.definitions, &options), known);
    tokio::task::spawn_blocking(work).await.map_err(|error| StepError::ended_early(&error, "converting the workflow"))
}

/// Definitions that can't be read now can't be read later.
fn unconvertible(error: ComfyError) -> StepError {
    match error {
        ComfyError::TooBig { .. } | ComfyError::Malformed { .. } => StepError::fatal(
            ErrorCode::InvalidWorkflow,
            format!(
                "The workflow can't be converted, since the box's node definitions can't be read: {error}; use what \
                 \"Export (API)\" writes"
            ),
        ),
        error => error.into(),
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
