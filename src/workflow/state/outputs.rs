//! What a run has left behind, as nodes report it, history settles it, and downloads bring it here.
//!
//! The box decides how much it reports and how often, so what is kept of it is bounded.

use std::collections::HashSet;

use indexmap::IndexSet;

use super::{Text, WorkflowState, replace};
use crate::workflow::{NodeId, NodeOutput, Output, RemoteFile, Stored};

/// About how much memory the outputs of one workflow may take: some fifty thousand files.
const MAX_OUTPUTS_BYTES: usize = 32 << 20;

/// The same for its texts.
const MAX_TEXTS_BYTES: usize = 1 << 20;

/// What an output or a text takes besides its words.
const OUTPUT_BYTES: usize = 512;
const TEXT_BYTES: usize = 64;

impl WorkflowState {
    /// Takes in what history says; what only messages told and is not here is dropped.
    pub(super) fn settle_outputs(&mut self, reports: Vec<(NodeId, NodeOutput)>) -> bool {
        let before = self.outputs.len();
        let told: HashSet<(&NodeId, &RemoteFile)> =
            reports.iter().flat_map(|(node, output)| output.files.iter().map(move |file| (node, file))).collect();
        self.outputs.retain(|known| known.downloaded() || told.contains(&(&known.node_id, &known.remote)));
        let dropped = self.outputs.len() != before;
        reports.into_iter().fold(dropped, |changed, (node, output)| self.note_output(node, output) | changed)
    }

    pub(super) fn note_output(&mut self, node: NodeId, output: NodeOutput) -> bool {
        let files = self.note_files(&node, output.files);
        let cut = output.texts_cut
            && self
                .warn(format!("a text of node {node} is longer than what is kept of it (64 KiB); its end is left out"));
        self.note_texts(&node, output.texts) | files | cut
    }

    pub(super) fn note_stored(&mut self, stored: Stored) -> bool {
        let Stored { node, file, local_path, size } = stored;
        let output = self.outputs.iter_mut().find(|known| known.node_id == node && known.remote == file);
        output.is_some_and(|output| {
            replace(&mut output.size, Some(size)) | replace(&mut output.local_path, Some(local_path))
        })
    }

    pub(super) fn note_lost(&mut self, files: &[RemoteFile]) -> bool {
        let lost = self.outputs.iter_mut().filter(|output| files.contains(&output.remote));
        lost.fold(false, |changed, output| replace(output, output.clone().not_here()) | changed)
    }

    /// A file counts once, also where two nodes report it.
    fn note_files(&mut self, node: &NodeId, files: Vec<RemoteFile>) -> bool {
        if files.is_empty() {
            return false;
        }
        let known: HashSet<&RemoteFile> = self.outputs.iter().map(|output| &output.remote).collect();
        let news: IndexSet<RemoteFile> = files.into_iter().filter(|file| !known.contains(file)).collect();
        let mut bytes: usize = self.outputs.iter().map(bytes_of).sum();
        let mut changed = false;
        for file in news {
            let output = Output::reported(node.clone(), file, &self.request.comfyui_output_dir);
            bytes += bytes_of(&output);
            if bytes > MAX_OUTPUTS_BYTES {
                self.warn("the run reports more outputs than are kept; the rest is left out".to_owned());
                return !std::mem::replace(&mut self.outputs_left_out, true) | changed;
            }
            self.outputs.push(output);
            changed = true;
        }
        changed
    }

    fn note_texts(&mut self, node: &NodeId, texts: Vec<String>) -> bool {
        let bytes_of = |text: &Text| TEXT_BYTES + text.node_id.as_str().len() + text.text.len();
        let mut bytes: usize = self.texts.iter().map(bytes_of).sum();
        let mut changed = false;
        for text in texts {
            let text = Text { node_id: node.clone(), text };
            if self.texts.contains(&text) {
                continue;
            }
            bytes += bytes_of(&text);
            if bytes > MAX_TEXTS_BYTES {
                return self.warn("the run reports more texts than are kept; the rest is left out".to_owned())
                    | changed;
            }
            self.texts.push(text);
            changed = true;
        }
        changed
    }
}

fn bytes_of(output: &Output) -> usize {
    let remote = &output.remote;
    OUTPUT_BYTES
        + output.node_id.as_str().len()
        + remote.filename.len()
        + remote.subfolder.len()
        + remote.listed_as.len()
        + output.remote_path.len()
}
