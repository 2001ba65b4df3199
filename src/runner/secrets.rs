//! What of a failure may be told.

use super::execution::Execution;
use crate::workflow::{Failure, Graph, Secrets};

impl Execution {
    /// A failure as it may be told and kept: nodes and refusals quote inputs.
    pub(super) async fn without_secrets(&self, failure: Failure) -> Failure {
        if let Some(secrets) = self.secrets.get() {
            return secrets.hide_in(failure);
        }
        match self.store.source(&self.id).await {
            Ok(source) => match source.graph() {
                Some(graph) if source.is_settled() => self.note_secrets(graph).hide_in(failure),
                Some(graph) => Secrets::of(graph).hide_in(failure),
                // Nothing of it was sent yet.
                None => failure,
            },
            Err(error) => failure.withholding_quotes(&format!("its keys and passwords are not known: {error}")),
        }
    }

    /// Takes note of what must not be told of the graph that is to be submitted.
    pub(super) fn note_secrets(&self, graph: &Graph) -> &Secrets {
        self.secrets.get_or_init(|| Secrets::of(graph))
    }
}
