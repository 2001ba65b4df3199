//! Keys and passwords that a graph holds for its nodes, and keeping them out of what is told about a run.
//!
//! ComfyUI quotes inputs in its refusals, and nodes quote them in their exceptions. A graph does not say which of its
//! inputs are secret, so their names decide.

use serde_json::Value;

use super::{failure::Failure, finding::Finding, graph::Graph};

/// What the name of a secret input ends with, or a word of it.
const WORDS: &[&str] =
    &["key", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "authorization"];

/// Shorter values are told apart from ordinary text by nobody.
const LEAST_BYTES: usize = 6;

/// Of a long secret, that much alone is hidden too.
const HEAD_CHARS: usize = 12;

const HIDDEN: &str = "[hidden]";

/// The secret values of a graph, longest first.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// Those that stand in inputs with names such as `api_key`, `accessToken` or `Password`.
    pub fn of(graph: &Graph) -> Self {
        let inputs = graph.nodes().flat_map(|(_, node)| node.inputs());
        let values = inputs.filter(|(name, _)| is_secret(name)).filter_map(|(_, value)| text_of(value));
        let mut secrets: Vec<String> = values.filter(|value| value.len() >= LEAST_BYTES).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets)
    }

    /// The text without them, and without the beginnings of long ones: messages quote no more than an excerpt.
    #[must_use]
    pub fn hide(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| {
            let head = head(secret);
            let (mut hidden, mut rest) = (String::new(), text.as_str());
            while let Some(at) = rest.find(head) {
                let same = rest[at..].chars().zip(secret.chars()).take_while(|(a, b)| a == b);
                let length: usize = same.map(|(same, _)| same.len_utf8()).sum();
                hidden = hidden + &rest[..at] + HIDDEN;
                rest = &rest[at + length..];
            }
            if hidden.is_empty() { text } else { hidden + rest }
        })
    }

    /// The failure without them.
    #[must_use]
    pub fn hide_in(&self, mut failure: Failure) -> Failure {
        failure.message = self.hide(failure.message);
        if let Some(detail) = &mut failure.detail {
            detail.exception_message = detail.exception_message.take().map(|text| self.hide(text));
            detail.traceback = std::mem::take(&mut detail.traceback).into_iter().map(|line| self.hide(line)).collect();
            detail.findings =
                std::mem::take(&mut detail.findings).into_iter().map(|finding| self.hide_of(finding)).collect();
        }
        failure
    }

    /// The finding without them.
    #[must_use]
    pub fn hide_of(&self, finding: Finding) -> Finding {
        Finding { message: self.hide(finding.message), hint: self.hide(finding.hint), ..finding }
    }
}

/// The values are for nobody's eyes.
impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// A value as messages quote it; links and other objects are none.
fn text_of(value: &Value) -> Option<String> {
    match value.get("__value__").unwrap_or(value) {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// By what a secret is found: all of it, or the beginning of a long one.
fn head(secret: &str) -> &str {
    let end = secret.char_indices().nth(HEAD_CHARS).filter(|_| secret.len() >= 2 * HEAD_CHARS);
    end.map_or(secret, |(end, _)| &secret[..end])
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    let mut words = name.split(|c: char| !c.is_alphanumeric());
    words.any(|word| WORDS.iter().any(|ending| word.ends_with(ending)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::workflow::{ErrorCode, ErrorDetail};

    #[test]
    fn values_of_secret_inputs_are_hidden_wherever_they_are_quoted() {
        let graph = Graph::parse(
            br#"{"1": {"class_type": "A", "inputs": {"api_key": "sk-123456", "accessToken": "sk-123456-long",
                 "Password (old)": "hunter22", "text": "a cat", "key": ["2", 0], "token": "abc", "tokenizer": "t5xxl-fp8"}},
                 "2": {"class_type": "B"}}"#,
        );
        let secrets = Secrets::of(&graph.unwrap());
        assert_eq!(format!("{secrets:?}"), "Secrets(3)");
        let detail = ErrorDetail {
            exception_message: Some("401 for hunter22".into()),
            traceback: vec!["f('sk-123456')".into()],
            ..ErrorDetail::default()
        };
        let failure = Failure {
            detail: Some(Box::new(detail)),
            ..Failure::new(ErrorCode::NodeError, "no: sk-123456-long, sk-123456, a cat, abc, t5xxl-fp8")
        };
        let hidden = secrets.hide_in(failure);
        assert_eq!(hidden.message, "no: [hidden], [hidden], a cat, abc, t5xxl-fp8");
        let detail = hidden.detail.unwrap();
        assert_eq!(detail.exception_message.as_deref(), Some("401 for [hidden]"));
        assert_eq!(detail.traceback, ["f('[hidden]')"]);
    }

    #[test]
    fn excerpts_of_long_secrets_and_secrets_that_are_no_texts_are_hidden_too() {
        let graph = serde_json::json!({"1": {"class_type": "A", "inputs": {
            "api_key": "k".repeat(100), "access_token": {"__value__": "wrapped-secret"}, "pass_key": 12_345_678}}});
        let secrets = Secrets::of(&Graph::parse(graph.to_string().as_bytes()).unwrap());
        let excerpt = format!("api_key is \"{}…\", not wrapped-secret or 12345678", "k".repeat(80));
        assert_eq!(secrets.hide(excerpt), "api_key is \"[hidden]…\", not [hidden] or [hidden]");
        assert_eq!(secrets.hide("k".repeat(11)), "k".repeat(11));
    }
}
