//! Asking the box for its node definitions.
//!
//! Only the classes that a graph uses are asked for: the whole list is tens of megabytes on a furnished box.

use std::{collections::BTreeSet, fmt, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use super::{
    answer::Answer,
    client::{Client, LARGE, MAX_JSON_BYTES, SMALL, percent_encode, within},
    error::ComfyError,
};
use crate::{
    json::parse_lenient_as,
    workflow::{NodeDefinitions, OneClass},
};

const WHAT: &str = "GET /object_info";

/// How many classes are asked for at once.
const PARALLEL: usize = 4;

/// Larger answers of one box come one by one (`room.rs`), so they are asked for one by one.
const LARGE_ANSWER: u64 = 1 << 20;

/// About how much memory the definitions of one call may take.
const MAX_BYTES: usize = 24 << 20;

/// No box has so many classes.
const MAX_NAMES: usize = 20_000;

/// Deadline for all classes together.
const ALL: Duration = Duration::from_secs(180);

impl Client {
    /// Asks for the definitions of these classes; those that the box lacks are not among the answer.
    ///
    /// # Errors
    /// As for every read; also when all together are longer than 64 MiB ([`ComfyError::TooBig`]), or would take more than
    /// about 24 MiB of memory ([`ComfyError::Malformed`]).
    pub async fn definitions(&self, classes: &BTreeSet<String>) -> Result<NodeDefinitions, ComfyError> {
        // As path segments these would ask for something else.
        let is_segment = |class: &&String| !matches!(class.as_str(), "" | "." | "..");
        let mut left: Vec<String> = classes.iter().filter(is_segment).cloned().collect();
        let ask = async {
            let (mut definitions, mut total, mut at_once) = (NodeDefinitions::default(), 0, PARALLEL);
            while !left.is_empty() {
                let batch = left.split_off(left.len().saturating_sub(at_once));
                let mut answers = stream::iter(batch).map(|class| self.definition(class)).buffer_unordered(PARALLEL);
                while let Some((definition, size)) = answers.try_next().await? {
                    total += size;
                    if total > MAX_JSON_BYTES {
                        return Err(ComfyError::TooBig { what: WHAT, limit: MAX_JSON_BYTES });
                    }
                    if size > LARGE_ANSWER {
                        at_once = 1;
                    }
                    definitions.extend(definition);
                    if definitions.bytes() > MAX_BYTES {
                        let problem = format!("the definitions take more than {} MiB of memory", MAX_BYTES >> 20);
                        return Err(ComfyError::Malformed { what: WHAT, problem });
                    }
                }
            }
            Ok(definitions)
        };
        within(WHAT, ALL, ask).await
    }

    /// One definition, none when the box lacks the class, and the size of the answer in bytes.
    async fn definition(&self, class: String) -> Result<(NodeDefinitions, u64), ComfyError> {
        let answer = self.get(WHAT, &format!("/object_info/{}", percent_encode(&class)), LARGE).await?;
        let OneClass(told) = answer.read_as(|body| OneClass::parse(body).map_err(|error| error.to_string())).await?;
        let mut definitions = NodeDefinitions::default();
        match told {
            Some((name, definition)) if name == class => {
                definition.into_iter().for_each(|definition| definitions.insert(name.clone(), definition));
            }
            // ComfyUI's answer about a class that it lacks is empty (server.py, get_object_info_node, v0.3.75).
            None => {}
            Some(_) => return Err(answer.malformed("it tells of other classes")),
        }
        Ok((definitions, answer.body.len() as u64))
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
            Err(ComfyError::Status { status: 404, .. }) => Ok(BTreeSet::new()),
            Err(error) => Err(error),
        }
    }
}

/// The names in an object, whatever they stand for.
async fn names_in(answer: &Answer) -> Result<Vec<String>, ComfyError> {
    let Names(names) = answer.read_as(|body| parse_lenient_as(body).map_err(|error| error.to_string())).await?;
    Ok(names)
}

#[derive(Debug)]
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NamesVisitor)
    }
}

struct NamesVisitor;

impl<'de> Visitor<'de> for NamesVisitor {
    type Value = Names;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
        let mut names = Vec::new();
        while let Some((name, IgnoredAny)) = map.next_entry()? {
            if names.len() == MAX_NAMES {
                return Err(A::Error::custom(format!("it has more than {MAX_NAMES} names")));
            }
            names.push(name);
        }
        Ok(Names(names))
    }
}
