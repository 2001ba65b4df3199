//! Asking the box for its node definitions.
//!
//! Only the classes that a graph uses are asked for: the whole list is tens of megabytes on a furnished box.

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use indexmap::IndexMap;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::{
    answer::Answer,
    client::{Client, LARGE, MAX_JSON_BYTES, SMALL, percent_encode, within},
    error::ComfyError,
};
use crate::{json::parse_lenient_as, workflow::NodeDefinitions};

const WHAT: &str = "GET /object_info";

/// How many classes are asked for at once.
const PARALLEL: usize = 4;

/// Deadline for all classes together.
const ALL: Duration = Duration::from_secs(180);

impl Client {
    /// Asks for the definitions of these classes; those that the box lacks are not among the answer.
    ///
    /// # Errors
    /// As for every read; also [`ComfyError::TooBig`] when all together are longer than 64 MiB.
    pub async fn definitions(&self, classes: &BTreeSet<String>) -> Result<NodeDefinitions, ComfyError> {
        let answers = stream::iter(classes.clone())
            .map(|class| async move {
                let definition = self.definition(&class).await?;
                Ok((class, definition))
            })
            .buffer_unordered(PARALLEL);
        let all =
            answers.try_fold((NodeDefinitions::default(), 0), |(mut definitions, total), (class, answer)| async move {
                let Some((raw, size)) = answer else { return Ok((definitions, total)) };
                let total = total + size;
                if total > MAX_JSON_BYTES {
                    return Err(ComfyError::TooBig { what: WHAT, limit: MAX_JSON_BYTES });
                }
                definitions.insert(&class, &raw);
                Ok((definitions, total))
            });
        within(WHAT, ALL, all).await.map(|(definitions, _)| definitions)
    }

    /// One definition and its size in bytes; `None` when the box lacks the class.
    async fn definition(&self, class: &str) -> Result<Option<(Value, u64)>, ComfyError> {
        if matches!(class, "" | "." | "..") {
            // As a path segment these would ask for something else.
            return Ok(None);
        }
        let answer = self.get(WHAT, &format!("/object_info/{}", percent_encode(class)), LARGE).await?;
        let mut document = answer.json().await?;
        let Some(classes) = document.as_object_mut() else {
            return Err(answer.malformed("not an object"));
        };
        let raw = classes.swap_remove(class).filter(Value::is_object);
        // ComfyUI's answer about a class that it lacks is empty (server.py, get_object_info_node, v0.3.75).
        if raw.is_none() && !classes.is_empty() {
            return Err(answer.malformed("it tells of other classes"));
        }
        Ok(raw.map(|raw| (raw, answer.body.len() as u64)))
    }

    /// The names of all classes that the box has: for a question that can't be answered without them, since the answer
    /// is large.
    ///
    /// # Errors
    /// As for every read.
    pub async fn class_names(&self) -> Result<Vec<String>, ComfyError> {
        let answer = self.get(WHAT, "/object_info", LARGE).await?;
        names_in(&answer).await
    }

    /// Classes that are gone from the box and that ComfyUI replaces in a prompt before it looks at it (v0.14.0 and
    /// newer; `app/node_replace_manager.py`).
    ///
    /// # Errors
    /// As for every read.
    pub async fn replaced_classes(&self) -> Result<BTreeSet<String>, ComfyError> {
        let answer = self.get("GET /node_replacements", "/node_replacements", SMALL).await?;
        match names_in(&answer).await {
            Ok(names) => Ok(names.into_iter().collect()),
            Err(ComfyError::NotFound { .. }) => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        }
    }
}

/// The names in an object, whatever they stand for.
async fn names_in(answer: &Answer) -> Result<Vec<String>, ComfyError> {
    let named: IndexMap<String, IgnoredAny> =
        answer.read_as(|body| parse_lenient_as(body).map_err(|error| error.to_string())).await?;
    Ok(named.into_keys().collect())
}
