//! Which results are still good: ComfyUI's classic cache.
//!
//! Used by the worker. A result is found again if its class, its literal inputs, the content of files it reads and the
//! same of all its ancestors are equal; node ids do not matter unless the class knows its own. Only results that the
//! latest prompt has a use for are kept. A node in or below a cycle, or with a missing source, is never cached.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Folders;
use super::graph::{link, sources};
use super::json::{Object, dumps};
use super::nodes::{Data, find};

/// The result of one node.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) outputs: Vec<Data>,
    pub(super) ui: Option<Ui>,
}

/// What a node shows.
#[derive(Debug, Clone)]
pub(super) struct Ui {
    pub(super) output: Value,
    /// The node that made it; another one may have taken it from the cache, and history's `meta` still names this one.
    pub(super) made_by: String,
}

type Key = [u8; 32];

/// All results, with the keys of the latest prompt's nodes.
#[derive(Default)]
pub(super) struct Cache {
    results: HashMap<Key, Arc<Cached>>,
    keys: HashMap<String, Key>,
}

impl Cache {
    /// Takes on a new prompt and forgets what it has no use for. Reads input files.
    pub(super) fn begin(&mut self, prompt: &Object, folders: &Folders) {
        self.keys = keys(prompt, folders);
        let wanted: std::collections::HashSet<&Key> = self.keys.values().collect();
        self.results.retain(|key, _| wanted.contains(key));
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Cached>> {
        self.results.get(self.keys.get(id)?).cloned()
    }

    pub(super) fn set(&mut self, id: &str, result: Arc<Cached>) {
        if let Some(key) = self.keys.get(id) {
            self.results.insert(*key, result);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn keys(prompt: &Object, folders: &Folders) -> HashMap<String, Key> {
    let mut keys = HashMap::new();
    let mut seen: HashMap<&str, bool> = HashMap::new();
    for start in prompt.keys() {
        let mut path = vec![start.as_str()];
        while let Some(&id) = path.last() {
            // First visit: sources come first. Second visit: all that can be known about them is known.
            if seen.insert(id, true).is_none() {
                path.extend(sources(prompt, id).filter(|source| !seen.contains_key(source)));
                continue;
            }
            path.pop();
            if !keys.contains_key(id)
                && let Some(key) = key(prompt, id, &keys, folders)
            {
                keys.insert(id.to_owned(), key);
            }
        }
    }
    keys
}

fn key(prompt: &Object, id: &str, keys: &HashMap<String, Key>, folders: &Folders) -> Option<Key> {
    let node = prompt.get(id)?;
    let name = node.get("class_type")?.as_str()?;
    let inputs = node.get("inputs")?.as_object()?;
    let class = find(name)?;
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(name);
    add(&class.fingerprint(inputs, folders).ok()?.unwrap_or_default());
    add(if class.knows_its_id() { id } else { "" });
    let mut names: Vec<&String> = inputs.keys().collect();
    names.sort();
    for name in names {
        let value = inputs.get(name)?;
        add(name);
        match link(value) {
            Some((source, output)) => {
                add(&hex::encode(keys.get(source)?));
                add(&output.to_string());
            }
            None => add(&dumps(value)),
        }
    }
    Some(hash.finalize().into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_do_not_matter_unless_the_class_knows_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::create(dir.path()).unwrap();
        let graph = |a: &str, b: &str, c: &str, color: u32| {
            let graph = json!({
                a: {"class_type": "EmptyImage", "inputs": {"color": color}, "_meta": {"title": a}},
                b: {"class_type": "ImageInvert", "inputs": {"image": [a, 0]}},
                c: {"class_type": "RigSlowSteps", "inputs": {"image": [b, 0]}},
            });
            keys(graph.as_object().unwrap(), &folders)
        };
        let (one, two, other) = (graph("1", "2", "3", 7), graph("7", "8", "9", 7), graph("1", "2", "3", 8));
        assert_eq!((one["1"], one["2"]), (two["7"], two["8"]));
        assert_ne!(one["3"], two["9"]);
        assert_ne!(one["2"], other["2"]);
    }

    #[test]
    fn what_cannot_be_known_has_no_key() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::create(dir.path()).unwrap();
        let graph = json!({
            "1": {"class_type": "ImageInvert", "inputs": {"image": ["2", 0]}},
            "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
            "3": {"class_type": "ImageInvert", "inputs": {"image": ["99", 0]}},
            "4": {"class_type": "LoadImage", "inputs": {"image": "absent.png"}},
            "5": {"class_type": "ImageInvert"},
        });
        assert!(keys(graph.as_object().unwrap(), &folders).is_empty());
    }
}
