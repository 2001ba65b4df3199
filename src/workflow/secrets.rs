//! Keys and passwords that a graph holds for its nodes, and keeping them out of what is told about a run.
//!
//! ComfyUI quotes inputs in its refusals, and nodes quote them in their exceptions. A graph does not say which of its
//! inputs are secret, so their names decide.

use super::{failure::Failure, finding::Finding, graph::Graph};

/// What the name of a secret input ends with, or a word of it.
const WORDS: &[&str] =
    &["key", "token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "authorization"];

/// Shorter values are told apart from ordinary text by nobody.
const LEAST_BYTES: usize = 6;

const HIDDEN: &str = "[hidden]";

/// The secret values of a graph, longest first.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets(Vec<String>);

impl Secrets {
    /// Those that stand in inputs with names such as `api_key`, `accessToken` or `Password`.
    pub fn of(graph: &Graph) -> Self {
        let inputs = graph.nodes().flat_map(|(_, node)| node.inputs());
        let values = inputs.filter(|(name, _)| is_secret(name)).filter_map(|(_, value)| value.as_str());
        let mut secrets: Vec<String> = values.filter(|value| value.len() >= LEAST_BYTES).map(str::to_owned).collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets)
    }

    /// The text without them.
    #[must_use]
    pub fn hide(&self, text: String) -> String {
        self.0.iter().fold(text, |text, secret| {
            if text.contains(secret.as_str()) { text.replace(secret.as_str(), HIDDEN) } else { text }
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
}
