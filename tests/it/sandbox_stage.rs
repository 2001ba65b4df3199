//! A service and a sandbox: the stage of tests that cause faults.

use std::{fs, time::Duration};

use comfy_remote::sandbox::{Sandbox, SandboxOptions};
use serde_json::{Value, json};

use crate::{graphs::tag, support::service::Service};

/// A run on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) sandbox: Sandbox,
    pub(crate) service: Service,
}

impl Stage {
    pub(crate) async fn new() -> Self {
        Self::with(SandboxOptions::default()).await
    }

    pub(crate) async fn with(options: SandboxOptions) -> Self {
        Self { sandbox: Sandbox::start(options).await.unwrap(), service: Service::start(&[]) }
    }

    pub(crate) async fn with_settings(settings: &[(&str, toml::Value)]) -> Self {
        let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
        Self { sandbox, service: Service::start(settings) }
    }

    /// The body of an execute request for a graph.
    pub(crate) fn request(&self, graph: &Value) -> Value {
        let file = self.service.folder().join(format!("{}.json", tag()));
        fs::write(&file, graph.to_string()).unwrap();
        json!({
            "ssh_connection": self.sandbox.ssh_connection(),
            "workflow_file": file,
            "comfyui_port": self.sandbox.comfyui_port(),
            "comfyui_input_dir": self.sandbox.input_dir(),
            "comfyui_output_dir": self.sandbox.output_dir(),
        })
    }

    pub(crate) async fn start(&self, graph: &Value) -> String {
        self.service.client().accepted(&self.request(graph)).await
    }

    pub(crate) async fn completed(&self, id: &str) -> Value {
        self.service.client().wait_for_status(id, "completed", PATIENCE).await
    }
}
