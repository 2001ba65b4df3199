//! What ComfyUI's queue says: who runs, who waits, and in which place. Pure.
//!
//! Entries are arrays in ComfyUI, objects in a fork (0.10.0 line), and arrays with two elements swapped in hosted
//! services. The list of those that wait is a heap, not sorted.

use serde::de::{MapAccess, SeqAccess};
use serde_json::Value;

use super::tolerant::{self, Parts, Tolerant};
use crate::{
    json::Bounded,
    workflow::{ClientId, NodeId, PromptId, WorkflowId},
};

/// Most entries that are kept of each list.
const MAX_ENTRIES: usize = 100_000;

/// Most output nodes that are kept of all entries of a list together.
const MAX_TARGETS: usize = 100_000;

/// No id that ComfyUI or its users give is longer, in bytes; what is, is no id.
pub(super) const MAX_ID_BYTES: usize = 1024;

/// The key under which [`Marker`] is left in `extra_data`.
pub(super) const MARKER_KEY: &str = "comfy_remote";

/// The queue at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Queue {
    /// What runs; usually one entry or none.
    pub running: Vec<Entry>,
    /// What waits, in the order in which it will run.
    pub pending: Vec<Entry>,
}

/// One prompt in the queue or in history, without its graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The id by which the server knows it.
    pub prompt_id: PromptId,
    /// Its priority: the smallest runs first. Infinite when the server names none.
    pub number: f64,
    /// Whose socket gets its messages.
    pub client_id: Option<ClientId>,
    /// Which workflow it belongs to, if it is one of ours.
    pub marker: Option<Marker>,
    /// The output nodes that it will run for, where the server says so; the invalid ones are left out.
    pub targets: Option<Vec<NodeId>>,
}

/// The mark by which a prompt of ours is recognised where the server has given it another id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The workflow it belongs to.
    pub workflow_id: WorkflowId,
    /// The id that we chose for it.
    pub prompt_id: PromptId,
}

/// Where in the queue a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It runs.
    Running,
    /// It waits, in this place; 1 = next to run.
    Pending(u32),
}

impl Queue {
    /// Reads the answer to `GET /queue`.
    ///
    /// # Errors
    /// Says what is wrong when it is no queue at all.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let Tolerant(lists) = tolerant::parse::<Tolerant<Lists>>(text)?;
        let (Some(running), Some(mut pending)) = (lists.running, lists.pending) else {
            return Err("queue_running or queue_pending is missing".into());
        };
        // ComfyUI compares (number, prompt_id); execution.py, PromptQueue, v0.3.64.
        pending.sort_by(|a, b| a.number.total_cmp(&b.number).then_with(|| a.prompt_id.cmp(&b.prompt_id)));
        Ok(Self { running, pending })
    }

    /// The place of a waiting prompt; 1 = next to run.
    pub fn position(&self, prompt: &PromptId) -> Option<u32> {
        let index = self.pending.iter().position(|entry| entry.prompt_id == *prompt)?;
        u32::try_from(index + 1).ok()
    }

    /// Where a prompt of ours is, and the id by which the server knows it. It is recognised by the id or, where the
    /// server has replaced that, by its marker.
    pub fn place_of(&self, prompt: &PromptId, workflow: &WorkflowId) -> Option<(PromptId, Place)> {
        let (entry, place) = self.find(prompt, workflow)?;
        Some((entry.prompt_id.clone(), place))
    }

    /// As [`place_of`](Self::place_of), with the whole entry.
    pub fn find(&self, prompt: &PromptId, workflow: &WorkflowId) -> Option<(&Entry, Place)> {
        let ours = |entry: &&Entry| entry.belongs_to(prompt, workflow);
        if let Some(entry) = self.running.iter().find(ours) {
            return Some((entry, Place::Running));
        }
        let entry = self.pending.iter().find(ours)?;
        Some((entry, Place::Pending(self.position(&entry.prompt_id)?)))
    }
}

impl Entry {
    /// Whether this is the prompt with that id, by its id or by its marker.
    pub fn belongs_to(&self, prompt: &PromptId, workflow: &WorkflowId) -> bool {
        let marked = |marker: &Marker| marker.workflow_id == *workflow && marker.prompt_id == *prompt;
        self.prompt_id == *prompt || self.marker.as_ref().is_some_and(marked)
    }
}

/// The two lists, where they are there.
#[derive(Debug, Default)]
struct Lists {
    running: Option<Vec<Entry>>,
    pending: Option<Vec<Entry>>,
}

impl Parts for Lists {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        let list = match key {
            "queue_running" => &mut self.running,
            "queue_pending" => &mut self.pending,
            _ => return map.next_value::<serde::de::IgnoredAny>().map(drop),
        };
        *list = Some(map.next_value::<Tolerant<Entries>>()?.0.kept);
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Entries {
    kept: Vec<Entry>,
    targets: usize,
}

impl Parts for Entries {
    fn element<'de, A: SeqAccess<'de>>(&mut self, _index: usize, seq: &mut A) -> Result<bool, A::Error> {
        let Some(Tolerant(entry)) = seq.next_element::<Tolerant<RawEntry>>()? else { return Ok(false) };
        if self.kept.len() < MAX_ENTRIES
            && let Some(mut entry) = entry.checked()
        {
            self.targets += entry.targets.as_ref().map_or(0, Vec::len);
            entry.targets = entry.targets.filter(|_| self.targets <= MAX_TARGETS);
            self.kept.push(entry);
        }
        Ok(true)
    }
}

/// An entry of which everything may be missing.
#[derive(Debug, Default)]
pub(super) struct RawEntry {
    number: Option<Value>,
    prompt_id: Option<Value>,
    extra: Option<Extra>,
    targets: Option<Vec<NodeId>>,
}

impl RawEntry {
    /// `None` without an id: nobody can ask for it.
    pub(super) fn checked(self) -> Option<Entry> {
        let prompt_id = id_of(self.prompt_id.as_ref()?)?;
        let number = self.number.as_ref().and_then(Value::as_f64).filter(|number| !number.is_nan());
        let extra = self.extra.unwrap_or_default();
        Some(Entry {
            prompt_id: prompt_id.into(),
            number: number.unwrap_or(f64::INFINITY),
            client_id: extra.client_id.map(ClientId::from),
            marker: extra.marker,
            targets: self.targets,
        })
    }
}

impl Parts for RawEntry {
    /// The fork's form.
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "priority" | "number" => self.number = Some(map.next_value::<Bounded>()?.0),
            "prompt_id" => self.prompt_id = Some(map.next_value::<Bounded>()?.0),
            "extra_data" => self.extra = Some(map.next_value::<Tolerant<Extra>>()?.0),
            _ => map.next_value::<serde::de::IgnoredAny>().map(drop)?,
        }
        Ok(())
    }

    /// ComfyUI's form: number, id, graph, extra data, outputs. Behind the graph, the first object is the extra data.
    fn element<'de, A: SeqAccess<'de>>(&mut self, index: usize, seq: &mut A) -> Result<bool, A::Error> {
        match index {
            0 => self.number = seq.next_element::<Bounded>()?.map(|number| number.0),
            1 => self.prompt_id = seq.next_element::<Bounded>()?.map(|id| id.0),
            2 => return seq.next_element::<serde::de::IgnoredAny>().map(|graph| graph.is_some()),
            _ => {
                let Some(Tolerant(extra)) = seq.next_element::<Tolerant<Extra>>()? else { return Ok(false) };
                if let Some(listed) = &extra.listed
                    && self.targets.is_none()
                {
                    self.targets = Some(listed.iter().map(|id| NodeId::from(id.as_str())).collect());
                }
                if self.extra.as_ref().is_none_or(|known| !known.is_object) {
                    self.extra = Some(extra);
                }
                return Ok(true);
            }
        }
        Ok(if index == 0 { self.number.is_some() } else { self.prompt_id.is_some() })
    }
}

/// What is wanted of `extra_data`, which may hold whole UI workflows.
#[derive(Debug, Default)]
struct Extra {
    is_object: bool,
    /// What stands there instead when it is a list: the output nodes.
    listed: Option<Vec<String>>,
    client_id: Option<String>,
    marker: Option<Marker>,
}

impl Parts for Extra {
    fn field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        self.is_object = true;
        match key {
            "client_id" => self.client_id = map.next_value::<Bounded>()?.0.as_str().map(str::to_owned),
            MARKER_KEY => self.marker = Marker::read(&map.next_value::<Bounded>()?.0),
            _ => map.next_value::<serde::de::IgnoredAny>().map(drop)?,
        }
        Ok(())
    }

    fn element<'de, A: SeqAccess<'de>>(&mut self, _index: usize, seq: &mut A) -> Result<bool, A::Error> {
        let listed = self.listed.get_or_insert_default();
        let Some(Bounded(id)) = seq.next_element::<Bounded>()? else { return Ok(false) };
        if listed.len() < MAX_TARGETS {
            listed.extend(id_of(&id));
        }
        Ok(true)
    }
}

impl Marker {
    fn read(value: &Value) -> Option<Self> {
        let workflow_id = value.get("workflow_id")?.as_str()?;
        let prompt_id = value.get("prompt_id")?.as_str()?;
        Some(Self { workflow_id: workflow_id.into(), prompt_id: prompt_id.into() })
    }
}

/// An id, which sloppy servers send as a number.
pub(super) fn id_of(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()).filter(|id| id.len() <= MAX_ID_BYTES),
        Value::Number(id) => Some(id.to_string()).filter(|id| id.len() <= MAX_ID_BYTES),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::comfy::traces;
    use serde_json::json;

    fn parse(value: &Value) -> Queue {
        Queue::parse(value.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let marker = json!({"workflow_id": "w", "prompt_id": "ours"});
        let extra = json!({"client_id": "c", "comfy_remote": marker, "extra_pnginfo": {"workflow": {"nodes": [1.5]}}});
        let expected = Entry {
            prompt_id: "p".into(),
            number: 12.0,
            client_id: Some("c".into()),
            marker: Some(Marker { workflow_id: "w".into(), prompt_id: "ours".into() }),
            targets: Some(vec!["9".into(), "4".into()]),
        };
        for entry in [
            json!([12, "p", {"1": {}}, extra, ["9", 4]]),
            json!([12.0, "p", {"1": {}}, ["9", "4"], extra]),
            json!([12, "p", {"1": {}}, extra, ["9", "4"], {"api_key": "x"}, 7]),
        ] {
            let queue = parse(&json!({"queue_running": [entry], "queue_pending": [null, 3, "x", [], [1], {}]}));
            assert_eq!(queue, Queue { running: vec![expected.clone()], pending: vec![] });
        }
        let fork = json!({"priority": 12, "prompt_id": "p", "prompt": {}, "extra_data": extra, "sensitive": {}});
        let queue = parse(&json!({"queue_running": [fork], "queue_pending": []}));
        assert_eq!(queue.running, [Entry { targets: None, ..expected }]);
    }

    #[test]
    fn sparse_entries_are_entries() {
        let queue = parse(&json!({"queue_running": [[null, 7], [1, "a", {}, 3], ["x", "b"]], "queue_pending": []}));
        let ids: Vec<_> = queue.running.iter().map(|entry| (entry.prompt_id.as_str(), entry.number)).collect();
        assert_eq!(ids, [("7", f64::INFINITY), ("a", 1.0), ("b", f64::INFINITY)]);
    }

    #[test]
    fn what_is_no_queue_is_refused_and_nan_is_not() {
        for text in ["{}", "[]", "3", "\"x\"", "null", "{\"queue_running\": []}", "<html>", ""] {
            assert!(Queue::parse(text.as_bytes()).is_err(), "{text}");
        }
        let text = br#"{"queue_running": [[1, "a", {"1": NaN}, {"client_id": "c"}]], "queue_pending": []}"#;
        assert_eq!(Queue::parse(text).unwrap().running[0].client_id, Some("c".into()));
    }

    #[test]
    fn the_place_is_by_number_then_id() {
        let queue = parse(&json!({
            "queue_running": [[0, "r", {}, {}, []]],
            "queue_pending": [[4, "d"], [-1.5, "b"], [5, "e"], [-6, "a"], [4, "c"]],
        }));
        let places = ["a", "b", "c", "d", "e", "r"].map(|id| queue.position(&id.into()));
        assert_eq!(places, [Some(1), Some(2), Some(3), Some(4), Some(5), None]);
        assert_eq!(queue.place_of(&"r".into(), &"w".into()), Some(("r".into(), Place::Running)));
        assert_eq!(queue.place_of(&"c".into(), &"w".into()), Some(("c".into(), Place::Pending(3))));
        assert_eq!(queue.place_of(&"x".into(), &"w".into()), None);
    }

    #[test]
    fn a_marker_identifies_one_attempt() {
        let marked =
            |id: &str, ours: &str| json!([1, id, {}, {"comfy_remote": {"workflow_id": "w", "prompt_id": ours}}, []]);
        let queue =
            parse(&json!({"queue_running": [marked("s1", "first")], "queue_pending": [marked("s2", "second")]}));
        let place = |ours: &str, workflow: &str| queue.place_of(&ours.into(), &workflow.into());
        assert_eq!(place("first", "w"), Some(("s1".into(), Place::Running)));
        assert_eq!(place("second", "w"), Some(("s2".into(), Place::Pending(1))));
        assert_eq!(place("second", "other"), None);
    }

    #[test]
    fn recorded_queues_are_read() {
        let mut seen = 0;
        for trace in traces::all() {
            for answer in trace.http("GET", "/queue") {
                let Some(body) = answer.get("response").or_else(|| answer.get("response_shape")) else { continue };
                // Where the recording kept only the names of the fork's fields, there is nothing to read.
                if body["queue_running"][0][0] == "priority" {
                    continue;
                }
                let queue = parse(body);
                for (list, raw) in [(&queue.running, "queue_running"), (&queue.pending, "queue_pending")] {
                    assert_eq!(list.len(), body[raw].as_array().unwrap().len(), "{}", trace.name);
                    seen += list.len();
                }
                assert!(queue.running.iter().all(|entry| entry.client_id.is_some()), "{}", trace.name);
            }
        }
        assert!(seen > 10, "{seen}");
    }

    #[test]
    fn priorities_are_ordered_as_comfyui_ran_them() {
        let trace = traces::one("comfyui-0.3.64", "x_priority");
        let accepted: Vec<Value> = trace.http("POST", "/prompt").map(|post| post["response"].clone()).collect();
        // The first one ran at once; the others waited behind it.
        let waiting: Vec<Value> = accepted[1..].iter().map(|post| json!([post["number"], post["prompt_id"]])).collect();
        let queue = parse(&json!({"queue_running": [], "queue_pending": waiting}));
        let order: Vec<String> = trace
            .messages("ws")
            .filter(|message| message["type"] == "execution_start")
            .filter_map(|message| id_of(&message["data"]["prompt_id"]))
            .collect();
        assert_eq!(order.len(), 5);
        for (place, id) in order[1..].iter().enumerate() {
            assert_eq!(queue.position(&id.as_str().into()), Some(place as u32 + 1), "{id}");
        }
    }
}
