//! In which order the nodes of a prompt run: ComfyUI's `ExecutionList`, without lazy inputs and run-time expansion.
//!
//! Used by [`execute`](super::execute). The order is topological; among the nodes that are ready, an output node goes
//! first, then one that an output node waits for, then one two steps before an output node, then the one found first.
//! Links to cached nodes are not followed.

use indexmap::{IndexMap, IndexSet};
use serde_json::Value;

use super::json::Object;

/// The nodes still to run and who waits for whom.
pub(super) struct Plan<'a> {
    prompt: &'a Object,
    is_output: &'a (dyn Fn(&str) -> bool + Sync),
    /// Waiting nodes in the order they were found, with the number of nodes each waits for.
    waiting: IndexMap<String, usize>,
    /// For each waiting node, who waits for it.
    blocking: IndexMap<String, IndexSet<String>>,
}

impl<'a> Plan<'a> {
    /// Everything that `roots` need and that `is_cached` does not have. The roots themselves are always planned.
    pub(super) fn new(
        prompt: &'a Object,
        roots: &[String],
        is_output: &'a (dyn Fn(&str) -> bool + Sync),
        is_cached: &dyn Fn(&str) -> bool,
    ) -> Self {
        let mut plan = Self { prompt, is_output, waiting: IndexMap::new(), blocking: IndexMap::new() };
        for root in roots {
            plan.add(root, is_cached);
        }
        plan
    }

    /// The node to run next; `None` when all are done, `Err` with a blamed node if the rest waits for itself.
    pub(super) fn pick(&self) -> Result<Option<String>, String> {
        let ready: Vec<&String> = self.waiting.iter().filter(|(_, blocks)| **blocks == 0).map(|(id, _)| id).collect();
        let leads_to_output = |id: &str| self.waiters(id).any(|id| (self.is_output)(id));
        let chosen = ready
            .iter()
            .find(|id| (self.is_output)(id))
            .or_else(|| ready.iter().find(|id| leads_to_output(id)))
            .or_else(|| ready.iter().find(|id| self.waiters(id).any(leads_to_output)))
            .or_else(|| ready.first());
        match chosen {
            Some(id) => Ok(Some((*id).clone())),
            None => self.waiting.first().map_or(Ok(None), |(id, _)| Err(id.clone())),
        }
    }

    /// Takes a finished node out.
    pub(super) fn complete(&mut self, id: &str) {
        self.waiting.shift_remove(id);
        for waiter in self.blocking.shift_remove(id).unwrap_or_default() {
            if let Some(blocks) = self.waiting.get_mut(&waiter) {
                *blocks = blocks.saturating_sub(1);
            }
        }
    }

    fn waiters(&self, id: &str) -> impl Iterator<Item = &str> {
        self.blocking.get(id).into_iter().flatten().map(String::as_str)
    }

    fn add(&mut self, root: &str, is_cached: &dyn Fn(&str) -> bool) {
        let mut found = vec![root.to_owned()];
        let mut links = vec![];
        while let Some(id) = found.pop() {
            if self.waiting.contains_key(&id) {
                continue;
            }
            for source in sources(self.prompt, &id) {
                if !is_cached(source) {
                    found.push(source.to_owned());
                    links.push((source.to_owned(), id.clone()));
                }
            }
            self.blocking.insert(id.clone(), IndexSet::new());
            self.waiting.insert(id, 0);
        }
        for (source, id) in links {
            let fresh = self.blocking.get_mut(&source).is_some_and(|waiters| waiters.insert(id.clone()));
            if let Some(blocks) = self.waiting.get_mut(&id).filter(|_| fresh) {
                *blocks += 1;
            }
        }
    }
}

/// The nodes that `id` takes inputs from, in the order of its inputs.
pub(super) fn sources<'a>(prompt: &'a Object, id: &str) -> impl Iterator<Item = &'a str> {
    let inputs = prompt.get(id).and_then(|node| node.get("inputs")).and_then(Value::as_object);
    inputs.into_iter().flat_map(Object::values).filter_map(link).map(|(source, _)| source)
}

/// `["4", 0]`: a node and the number of its output.
pub(super) fn link(value: &Value) -> Option<(&str, usize)> {
    match value.as_array()?.as_slice() {
        [Value::String(source), Value::Number(output)] => {
            // A negative index counts from the end in Python; nobody sends one.
            Some((source, output.as_u64().and_then(|output| usize::try_from(output).ok())?))
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn order(prompt: &Value, roots: &[&str], cached: &[&str]) -> Vec<String> {
        let prompt = prompt.as_object().unwrap();
        let is_output = |id: &str| prompt[id]["class_type"] == "Out";
        let is_cached = |id: &str| cached.contains(&id);
        let roots: Vec<String> = roots.iter().map(|id| (*id).to_owned()).collect();
        let mut plan = Plan::new(prompt, &roots, &is_output, &is_cached);
        let mut order = vec![];
        while let Some(id) = plan.pick().unwrap() {
            plan.complete(&id);
            order.push(id);
        }
        order
    }

    #[test]
    fn outputs_come_as_early_as_possible() {
        let prompt = json!({
            "1": {"class_type": "In", "inputs": {}},
            "2": {"class_type": "Step", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "Out", "inputs": {"images": ["1", 0]}},
            "4": {"class_type": "Out", "inputs": {"images": ["2", 0]}},
            "5": {"class_type": "Out", "inputs": {"text": "x"}},
            "6": {"class_type": "In", "inputs": {}},
            "7": {"class_type": "Out", "inputs": {"images": ["6", 0]}},
        });
        // The order of the recording m_mixed, whatever the order of the roots.
        let expected = ["5", "1", "3", "2", "4", "6", "7"];
        assert_eq!(order(&prompt, &["4", "7", "5", "3"], &[]), expected);
        assert_eq!(order(&prompt, &["3", "4", "5", "7"], &[]), expected);
        assert_eq!(order(&prompt, &["4"], &["1"]), ["2", "4"]);
        assert_eq!(order(&prompt, &["4"], &["4"]), ["1", "2", "4"]);
    }

    #[test]
    fn a_cycle_is_blamed_on_its_first_node() {
        let prompt = json!({
            "1": {"class_type": "Step", "inputs": {"image": ["2", 0]}},
            "2": {"class_type": "Step", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "Out", "inputs": {"images": ["2", 0]}},
        });
        let prompt = prompt.as_object().unwrap();
        let plan = Plan::new(prompt, &["3".into()], &|id| id == "3", &|_| false);
        assert_eq!(plan.pick(), Err("3".into()));
    }
}
