//! Use Everywhere (cg-use-everywhere): nodes that send what they get to every input of its type that nothing is linked to.
//!
//! Since version 4 the pack writes the links that this makes into the file, by graph; those are taken. In files without
//! them the rules of the pack's description are followed: the type decides, patterns for titles and input names restrict,
//! and the more special sender wins; between equals nobody does. Restrictions by group and by colour are refused.

use regex::Regex;
use serde_json::Value;

use crate::convert::{
    MAX_FINDINGS,
    finding::{Code, Severity},
    loaded::{Graph, Kind, Node, Source},
    ui::{self, Mode},
};

/// The senders that have no output, so that a prompt can do without them.
const SINKS: [&str; 4] = ["Anything Everywhere", "Anything Everywhere3", "Anything Everywhere?", "Prompts Everywhere"];

/// The sender of its own value.
const SEED: &str = "Seed Everywhere";

/// How many inputs of senders one graph may have. Each is held against each free input.
const MAX_BROADCASTS: usize = 200;

/// What the two inputs of the sender of prompts are for.
const PROMPTS: [&str; 2] = [r"(_|\b)pos(itive|_|\b)|^prompt|正面", r"(_|\b)neg(ative|_|\b)|负面"];

/// Whether a class only sends.
pub(super) fn is_sink(class: &str) -> bool {
    SINKS.contains(&class)
}

/// Adds the links that senders make in one graph.
pub(in crate::convert) fn link(graph: &mut Graph, file: &ui::Graph) {
    if let Some(links) = &file.broadcasts {
        return take_saved(graph, file, links);
    }
    let senders: Vec<usize> = (0..graph.nodes.len())
        .filter(|at| is_sender(&graph.nodes[*at]) && graph.nodes[*at].mode == Mode::Active)
        .collect();
    let mut broadcasts = Vec::new();
    for at in senders {
        match of_sender(graph, at) {
            Ok(more) => broadcasts.extend(more),
            Err(why) => {
                let hint = "in ComfyUI, convert its links to real ones and save again";
                let node = &graph.nodes[at];
                let found = node.finding(Severity::Error, Code::UnsupportedNode, "", why).with_hint(hint);
                graph.findings.push(found);
            }
        }
    }
    if let Some(first) = broadcasts.get(MAX_BROADCASTS) {
        let node = &graph.nodes[first.sender];
        let found = node.finding(Severity::Error, Code::UnsupportedNode, "", "is one sender too many for one graph");
        graph.findings.push(found);
    } else if !broadcasts.is_empty() {
        send(graph, &broadcasts);
    }
}

/// One input of a sender that something comes into.
struct Broadcast {
    sender: usize,
    source: Source,
    from: usize,
    link_type: String,
    titles: Option<Regex>,
    inputs: Option<Regex>,
    priority: u32,
}

fn is_sender(node: &Node) -> bool {
    is_sink(&node.class) || node.class == SEED
}

/// The links that the pack has written down: from which output to which input, by the places in the file.
fn take_saved(graph: &mut Graph, file: &ui::Graph, links: &[Value]) {
    for link in links {
        let place = |key: &str| graph.places.get(&link.get(key).and_then(ui::text_or_number)?).copied();
        let slot = |key: &str| link.get(key).and_then(ui::whole).and_then(|slot| usize::try_from(slot).ok());
        let ends = (place("upstream"), slot("upstream_slot"), place("downstream"), slot("downstream_slot"));
        let (Some(node), Some(output), Some(target), Some(input)) = ends else { continue };
        let active = place("controller").is_some_and(|sender| graph.nodes[sender].mode == Mode::Active);
        let name = file.nodes.get_index(target).and_then(|(_, node)| node.inputs.get(input)).map(|input| &input.name);
        let slot = graph.nodes[target].slots.iter_mut().find(|slot| Some(&slot.name) == name);
        if let Some(slot) = slot.filter(|slot| active && slot.source.is_none()) {
            slot.source = Some(Source::Node { node, slot: output });
        }
    }
}

fn of_sender(graph: &Graph, at: usize) -> Result<Vec<Broadcast>, String> {
    let node = &graph.nodes[at];
    let setting = |key: &str| {
        let newer = node.properties.get("ue_properties").and_then(|properties| properties.get(key));
        newer.or_else(|| node.properties.get(key)).filter(|value| !value.is_null())
    };
    for key in ["group_restricted", "color_restricted"] {
        if setting(key).and_then(ui::whole).is_some_and(|value| value != 0) {
            return Err("sends only to a group or a colour, which is not supported".to_owned());
        }
    }
    let pattern = |key: &str, position: usize| -> Result<Option<Regex>, String> {
        let of_value = || (node.class == "Anything Everywhere?").then(|| node.values.get(position)).flatten();
        let text = setting(key).or_else(of_value).and_then(Value::as_str).unwrap_or_default();
        let compiled = |text: &str| Regex::new(text).map_err(|_| format!("has a {key} that is not supported: {text}"));
        (!matches!(text, "" | ".*")).then(|| compiled(text)).transpose()
    };
    if pattern("group_regex", 2)?.is_some() {
        return Err("sends only to some groups, which is not supported".to_owned());
    }
    let (titles, inputs) = (pattern("title_regex", 0)?, pattern("input_regex", 1)?);
    let restricted = titles.is_some() || inputs.is_some() || node.class == "Anything Everywhere?";
    let broadcast = |source: &Source, from: usize, link_type: &str, inputs: Option<Regex>| Broadcast {
        sender: at,
        source: source.clone(),
        from,
        link_type: link_type.to_owned(),
        titles: titles.clone(),
        inputs,
        priority: if restricted { 10 } else { 5 * u32::from(node.class == SEED || node.class == SINKS[3]) },
    };
    if node.class == SEED {
        let inputs = inputs.or(Regex::new("seed|随机种").ok());
        return Ok(vec![broadcast(&Source::Node { node: at, slot: 0 }, at, "INT", inputs)]);
    }
    let mut broadcasts = Vec::new();
    for (position, slot) in node.slots.iter().enumerate().filter(|(_, slot)| slot.widget.is_none()) {
        let Some(source @ Source::Node { node: from, slot: output }) = &slot.source else { continue };
        let given = graph.nodes[*from].outputs.get(*output).map_or("*", String::as_str);
        let link_type = if given == "*" { slot.link_type.as_str() } else { given };
        let of_prompts = || (node.class == SINKS[3]).then(|| PROMPTS.get(position)).flatten();
        let inputs = inputs.clone().or_else(|| Regex::new(of_prompts()?).ok());
        broadcasts.push(broadcast(source, *from, link_type, inputs));
    }
    Ok(broadcasts)
}

/// Links every free input to the one sender that is for it above others.
fn send(graph: &mut Graph, broadcasts: &[Broadcast]) {
    for (at, node) in graph.nodes.iter_mut().enumerate() {
        let takes_links = matches!(node.kind, Kind::Class | Kind::Subgraph(_)) && node.mode == Mode::Active;
        if !takes_links || is_sender(node) || node.properties.get("rejects_ue_links") == Some(&Value::Bool(true)) {
            continue;
        }
        for slot in 0..node.slots.len() {
            let input = &node.slots[slot];
            if input.source.is_some() || input.widget.is_some() && !node.takes_broadcasts(&input.name) {
                continue;
            }
            let mut fitting: Vec<&Broadcast> = broadcasts
                .iter()
                .filter(|broadcast| broadcast.from != at && broadcast.link_type == input.link_type)
                .filter(|broadcast| broadcast.titles.as_ref().is_none_or(|pattern| pattern.is_match(&node.title)))
                .filter(|broadcast| broadcast.inputs.as_ref().is_none_or(|pattern| pattern.is_match(&input.name)))
                .collect();
            fitting.sort_by_key(|broadcast| std::cmp::Reverse(broadcast.priority));
            match fitting[..] {
                [] => {}
                [first, second, ..] if first.priority == second.priority => {
                    if graph.findings.len() >= MAX_FINDINGS {
                        continue;
                    }
                    let message = format!("{} could be sent to by several nodes, so none of them does", input.name);
                    let found = node.finding(Severity::Warning, Code::AmbiguousBroadcast, "", message);
                    graph
                        .findings
                        .push(found.on_input(&input.name).with_hint("link it by hand if it is to get something"));
                }
                [first, ..] => node.slots[slot].source = Some(first.source.clone()),
            }
        }
    }
}

impl Node {
    /// Whether a widget is marked as one that takes what is sent everywhere.
    fn takes_broadcasts(&self, widget: &str) -> bool {
        let newer = self.properties.get("ue_properties").and_then(|properties| properties.get("widget_ue_connectable"));
        let marked = newer.or_else(|| self.properties.get("widget_ue_connectable"));
        marked.and_then(|marked| marked.get(widget)).is_some_and(|mark| *mark == Value::Bool(true))
    }
}
