//! Writes the prompt: every node that the server is to know, with values and links as `/prompt` takes them.

use std::collections::HashMap;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::{
    Conversion, ConvertError, MAX_FINDINGS, Options,
    finding::{Code, Finding, Severity},
    links::{Broken, End, Links},
    loaded::{Kind, Node, Source},
    room::Room,
    text,
    ui::Mode,
    virtual_nodes::Virtual,
    widgets::{Form, Widget, is_randomize},
};
use crate::{
    text::clip_to,
    workflow::edits::{Place, Seed},
};

/// Writes all nodes; says what there is to say about them.
///
/// # Errors
/// When the prompt would be too large.
pub(super) fn emit(links: &Links<'_>, options: &Options, room: &mut Room) -> Result<Conversion, ConvertError> {
    let mut emitter =
        Emitter { links, options, findings: Vec::new(), choices: 0, names: names(links), seeds: Seeds::default() };
    let mut prompt = Map::new();
    for instance in 0..links.instances.len() {
        emitter.keep_those_of_graph(instance);
        for place in 0..links.graphs[links.instances[instance].graph].nodes.len() {
            let Some((id, node)) = emitter.node(instance, place) else { continue };
            room.take_copy(&node)?;
            if prompt.insert(id, node).is_some() {
                emitter.doubled(instance, place);
            }
        }
    }
    let (seeds, findings) = (emitter.seeds.into_values().collect(), emitter.findings);
    Ok(Conversion { prompt, seeds, findings })
}

/// What a file names as the pack of nodes that come with ComfyUI.
const COMFYUI_ITSELF: &str = "comfy-core";

/// Inputs that get a new value with each run, by what holds the value and its control: those of one holder get the same.
type Seeds = IndexMap<(usize, usize, usize), Seed>;

/// Nodes of all instances by the name that file names can refer to: the names of references first, then titles.
type Names<'a> = [HashMap<&'a str, (usize, usize)>; 2];

fn names<'a>(links: &Links<'a>) -> Names<'a> {
    let mut names = [HashMap::new(), HashMap::new()];
    for instance in 0..links.instances.len() {
        for (place, node) in links.graphs[links.instances[instance].graph].nodes.iter().enumerate() {
            for (names, name) in names.iter_mut().zip([&node.reference_name, &node.title]) {
                names.entry(name.as_str()).or_insert((instance, place));
            }
        }
    }
    names
}

struct Emitter<'a> {
    links: &'a Links<'a>,
    options: &'a Options,
    findings: Vec<Finding>,
    /// How many choices have been made, so that each gets another number.
    choices: u64,
    names: Names<'a>,
    seeds: Seeds,
}

/// What stands in an input.
enum Content {
    /// A value as if typed into the node's own widget.
    Own(Value),
    /// A value from outside, which is not rewritten.
    Given(Value),
    Link(Value),
}

impl Emitter<'_> {
    /// A node's id and its entry in the prompt, if it has one.
    fn node(&mut self, instance: usize, place: usize) -> Option<(String, Value)> {
        let node = self.links.node(instance, place);
        match &node.kind {
            _ if node.mode != Mode::Active => return None,
            Kind::Class => {}
            Kind::Unknown => return self.unknown(instance, node),
            Kind::Virtual(Virtual::Unsupported) => return self.unsupported(instance, node),
            Kind::Subgraph(_) | Kind::Virtual(_) => return None,
        }
        if let Some((choice, value)) = &node.unknown_choice {
            self.unknown_choice(instance, node, choice, value);
            return None;
        }
        self.warn_of_counts(instance, node);
        let mut inputs = self.widgets(instance, place, node);
        for (at, slot) in node.slots.iter().enumerate().filter(|(_, slot)| slot.widget.is_none()) {
            match self.content(instance, place, at) {
                Some(Content::Link(link)) => _ = inputs.insert(slot.name.clone(), link),
                Some(Content::Given(value)) => _ = inputs.insert(slot.name.clone(), Form::default().sent(value)),
                Some(Content::Own(_)) | None => {}
            }
        }
        let entry = json!({"inputs": inputs, "class_type": node.class, "_meta": {"title": node.title}});
        Some((self.id(instance, node), entry))
    }

    /// The inputs that have widgets: what is linked to them, or what they hold.
    fn widgets(&mut self, instance: usize, place: usize, node: &Node) -> Map<String, Value> {
        let slots = node.slots.iter().enumerate();
        let linked: HashMap<usize, usize> = slots.filter_map(|(at, slot)| Some((slot.widget?, at))).collect();
        let mut inputs = Map::new();
        for (at, widget) in node.widgets.iter().enumerate() {
            let content = linked.get(&at).and_then(|slot| self.content(instance, place, *slot));
            if let Some(holder) = self.randomized(instance, place, at, &content) {
                let input = Place { node: self.id(instance, node).as_str().into(), input: widget.name.clone() };
                self.seeds.entry(holder).or_default().push(input);
            }
            let value = match content {
                Some(Content::Link(link)) => Some(link),
                _ if widget.form.browser => self.made_in_browser(instance, node, &widget.name),
                Some(Content::Given(value)) => Some(widget.form.sent(value)),
                Some(Content::Own(value)) => self.typed(instance, node, widget, value),
                None => self.own(instance, place, widget),
            };
            inputs.extend(value.map(|value| (widget.name.clone(), value)));
        }
        inputs
    }

    /// What holds the value of a widget that gets a new one with each run: instance, node, and widget.
    fn randomized(
        &self,
        instance: usize,
        place: usize,
        at: usize,
        content: &Option<Content>,
    ) -> Option<(usize, usize, usize)> {
        let node = self.links.node(instance, place);
        match content {
            None => node.widgets[at].randomized.then_some((instance, place, at)),
            Some(Content::Own(_)) => {
                let slot = node.slots.iter().find(|slot| slot.widget == Some(at))?;
                let Some(Source::Node { node: primitive, .. }) = slot.source else { return None };
                let control = self.links.node(instance, primitive).values.get(1)?;
                is_randomize(control).then_some((instance, primitive, 0))
            }
            Some(_) => None,
        }
    }

    fn id(&self, instance: usize, node: &Node) -> String {
        format!("{}{}", self.links.instances[instance].path, node.id)
    }

    /// What an input gets over its link, if anything.
    fn content(&mut self, instance: usize, place: usize, at: usize) -> Option<Content> {
        let node = self.links.node(instance, place);
        if let Some(Source::Node { node: source, .. }) = &node.slots[at].source {
            let from = self.links.node(instance, *source);
            if from.kind == Kind::Virtual(Virtual::Primitive) {
                return node.slots[at].widget.and_then(|_| self.primitive(instance, *source)).map(Content::Own);
            }
        }
        match self.links.resolve(instance, place, at) {
            Ok(End::Output(instance, place, slot)) => {
                let id = self.id(instance, self.links.node(instance, place));
                Some(Content::Link(json!([id, slot])))
            }
            Ok(End::Value(value)) => Some(Content::Given(value)),
            Ok(End::Default { value, direct }) => {
                let own = node.slots[at].widget.filter(|_| direct).map(|widget| node.widgets[widget].held());
                own.unwrap_or(Some(value)).map(Content::Given)
            }
            Ok(End::Nothing) => None,
            Err(broken) => {
                self.broken(instance, node, &node.slots[at].name, broken);
                None
            }
        }
    }

    /// The value of a node that puts its value into widgets.
    fn primitive(&self, instance: usize, place: usize) -> Option<Value> {
        let shown = self.shown(instance, place, "value").flatten();
        shown.or_else(|| self.links.node(instance, place).values.first()).cloned()
    }

    /// Whether a widget is shown on the node of the surrounding subgraph, and what is set there.
    fn shown(&self, instance: usize, place: usize, widget: &str) -> Option<Option<&Value>> {
        self.links.instances[instance].widgets.get(&(place, widget.to_owned())).map(Option::as_ref)
    }

    /// What a widget holds while nothing is linked to it.
    fn own(&mut self, instance: usize, place: usize, widget: &Widget) -> Option<Value> {
        match self.shown(instance, place, &widget.name) {
            Some(shown) => {
                let shown = shown.cloned().map(|value| widget.form.typed(value));
                shown.or_else(|| widget.held()).map(|value| widget.form.sent(value))
            }
            None => {
                let empty = widget.form.compare.then_some(Value::Null);
                let value = widget.value.clone().or(empty);
                self.typed(instance, self.links.node(instance, place), widget, value?)
            }
        }
    }

    /// A value as a node's own widget sends it.
    fn typed(&mut self, instance: usize, node: &Node, widget: &Widget, value: Value) -> Option<Value> {
        let form = widget.form;
        Some(match &value {
            Value::String(text) if form.dynamic_prompt => Value::String(self.dynamic_prompt(instance, node, text)),
            Value::String(text) if form.file_name => Value::String(self.file_name(instance, node, text)),
            _ => form.sent(form.typed(value)),
        })
    }

    fn dynamic_prompt(&mut self, instance: usize, node: &Node, text: &str) -> String {
        let (seed, before) = (self.options.seed, self.choices);
        let mut made = before;
        let text = text::dynamic_prompt(text, |count| {
            made += 1;
            // Which of the texts is of no importance, only that all come up.
            let mixed = (seed ^ made).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            usize::try_from((mixed >> 33) % count as u64).unwrap_or_default()
        });
        self.choices = made;
        if made > before {
            let message = format!("{} of several texts were chosen at random", made - before);
            self.warn(instance, node, Code::RandomChoice, message, "they can be another time others");
        }
        text
    }

    fn file_name(&mut self, instance: usize, node: &Node, text: &str) -> String {
        let look_up = |name: &str, widget: &str| {
            let (instance, place) = self.names.iter().find_map(|names| names.get(name))?;
            let named = |other: &&Widget| other.name == widget;
            let own = self.links.node(*instance, *place).widgets.iter().find(named)?;
            let shown = self.shown(*instance, *place, widget).flatten();
            Some(shown.or(own.value.as_ref()).map(text::as_text).unwrap_or_default())
        };
        match text::file_name(text, self.options.now, look_up) {
            Ok(text) => text,
            Err(text::TimeUnknown) => {
                let message =
                    "the date is to be filled into filename_prefix, and the time is not known here".to_owned();
                self.report(instance, node, Code::TimeUnknown, Some("filename_prefix"), message, "write the date out");
                text.to_owned()
            }
        }
    }
}

/// What is reported.
impl Emitter<'_> {
    fn report(&mut self, at: usize, node: &Node, code: Code, input: Option<&str>, message: String, hint: &str) {
        let path = &self.links.instances[at].path;
        let finding = node.finding(Severity::Error, code, path, message).with_hint(hint);
        let finding = if let Some(input) = input { finding.on_input(input) } else { finding };
        self.keep(finding);
    }

    fn warn(&mut self, at: usize, node: &Node, code: Code, message: String, hint: &str) {
        let path = &self.links.instances[at].path;
        let finding = node.finding(Severity::Warning, code, path, message).with_hint(hint);
        self.keep(finding);
    }

    /// What was found in the graph itself is said of each use of it.
    fn keep_those_of_graph(&mut self, at: usize) {
        let instance = &self.links.instances[at];
        for finding in &self.links.graphs[instance.graph].findings {
            self.keep(finding.clone().below(&instance.path));
        }
    }

    /// Errors push warnings out when there is no more room.
    fn keep(&mut self, finding: Finding) {
        if self.findings.len() >= MAX_FINDINGS && finding.severity == Severity::Error {
            let warning = self.findings.iter().position(|kept| kept.severity == Severity::Warning);
            warning.map(|at| self.findings.remove(at));
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding);
        }
    }

    fn doubled(&mut self, instance: usize, place: usize) {
        let message = "has the id of another node, counted with the subgraphs around it".to_owned();
        let hint = "open the workflow in ComfyUI and save it again";
        self.report(instance, self.links.node(instance, place), Code::DoubledId, None, message, hint);
    }

    fn unknown_choice(&mut self, instance: usize, node: &Node, choice: &str, value: &Value) {
        let message = format!("{choice} has the value {value}, which its definition does not offer");
        let hint = "the workflow was made with another version of the node; choose a value in ComfyUI and save again";
        self.report(instance, node, Code::UnknownChoice, Some(choice), message, hint);
    }

    fn warn_of_counts(&mut self, instance: usize, node: &Node) {
        if node.missing_values > 0 {
            let message = format!("{} of its values are not in the file and have their defaults", node.missing_values);
            self.warn(instance, node, Code::MissingValues, message, "open the workflow in ComfyUI and save it again");
        }
        if node.extra_values > 0 {
            let message = format!("{} saved values are more than its definition has places for", node.extra_values);
            let hint = "if its pack fills in inputs in the browser, export the workflow with \"Export (API)\" instead";
            self.warn(instance, node, Code::ExtraValues, message, hint);
        }
    }

    fn made_in_browser<T>(&mut self, instance: usize, node: &Node, widget: &str) -> Option<T> {
        let message = format!("the value of {widget} is made in the browser when the workflow is run there");
        let hint = "replace the node by one that loads a file";
        self.report(instance, node, Code::BrowserValue, Some(widget), message, hint);
        None
    }

    fn unsupported<T>(&mut self, instance: usize, node: &Node) -> Option<T> {
        let message = format!("{} does its work in the browser, which is not supported", node.class);
        let hint = "remove the node in ComfyUI, or mute it, and save again";
        self.report(instance, node, Code::UnsupportedNode, None, message, hint);
        None
    }

    fn unknown<T>(&mut self, instance: usize, node: &Node) -> Option<T> {
        if node.slots.is_empty() && node.outputs.is_empty() {
            let message = format!("the class {} is not among the node definitions; it was left out", node.class);
            self.warn(instance, node, Code::LeftOut, message, "nothing is linked to it, as with labels");
            return None;
        }
        let (message, hint) = if is_uuid(&node.class) {
            let message = "is a subgraph that the file does not hold".to_owned();
            (message, "open the workflow in ComfyUI and save it again".to_owned())
        } else {
            let message = format!("the class {} is not among the node definitions", node.class);
            let pack = ["cnr_id", "aux_id"].into_iter().find_map(|key| node.properties.get(key)?.as_str());
            let remedy = match pack {
                Some(COMFYUI_ITSELF) => {
                    "update ComfyUI on the box, which it comes with (if it is an API node, start ComfyUI without \
                     --disable-api-nodes)"
                        .to_owned()
                }
                Some(pack) => format!("install the pack {} that brings it", clip_to(pack, 80)),
                None => "install the pack that brings it".to_owned(),
            };
            (message, format!("{remedy}, or mute the node in ComfyUI and save again"))
        };
        self.report(instance, node, Code::MissingNodeType, None, message, &hint);
        None
    }

    fn broken(&mut self, instance: usize, node: &Node, input: &str, broken: Broken) {
        match broken {
            Broken::Circle => {
                let message = format!("what is linked to {input} leads in a circle");
                let hint = "look for reroutes and bypassed nodes that lead back to themselves";
                self.report(instance, node, Code::LinkCycle, Some(input), message, hint);
            }
            Broken::Missing(id) => {
                let message = format!("what is linked to {input} comes from node {id}, which is not in the file");
                let hint = "open the workflow in ComfyUI, link the input anew and save";
                self.report(instance, node, Code::MissingLinkSource, Some(input), message, hint);
            }
            Broken::Name(name) => {
                let message = format!("{input} takes up what is called \"{name}\", and no node gives that name");
                let hint = "look for the node that sets it, here or in the graphs around";
                self.report(instance, node, Code::UnknownName, Some(input), message, hint);
            }
            Broken::Reported => {}
        }
    }
}

/// Whether a class is named as subgraphs are.
fn is_uuid(class: &str) -> bool {
    class.len() == 36 && class.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}
