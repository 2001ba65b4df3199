//! Is it ComfyUI that answers, and which one?

use serde_json::Value;

use super::{
    client::{Client, SMALL, text_of},
    error::ComfyError,
};
use crate::text::clip;

/// What a ComfyUI says about itself. Hints: forks say what they like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// Its version, where it names one.
    pub version: Option<String>,
    /// Its command line, the program included.
    pub argv: Vec<String>,
    /// Names of its devices, such as `cuda:0 NVIDIA GeForce RTX 4090`.
    pub devices: Vec<String>,
    /// Whether it has `/api/jobs` (v0.6.0 and newer).
    pub has_jobs_api: bool,
}

impl Client {
    /// Asks whether ComfyUI answers, and what it says about itself.
    ///
    /// # Errors
    /// [`ComfyError::Foreign`] when something else answers, [`ComfyError::Unreachable`] when nothing does.
    pub async fn probe(&self) -> Result<ServerInfo, ComfyError> {
        let answer = self.get("GET /system_stats", "/system_stats", SMALL).await?;
        let info = match answer.json().await {
            Ok(stats) => ServerInfo::read(&stats).ok_or_else(|| answer.foreign())?,
            Err(ComfyError::Status { .. } | ComfyError::Malformed { .. }) => return Err(answer.foreign()),
            Err(error) => return Err(error),
        };
        Ok(ServerInfo { has_jobs_api: self.has_jobs_api().await, ..info })
    }

    async fn has_jobs_api(&self) -> bool {
        let answer = self.get("GET /api/jobs", "/api/jobs?limit=1", SMALL).await;
        let Ok(answer) = answer else { return false };
        answer.json().await.is_ok_and(|list| list.get("jobs").is_some_and(Value::is_array))
    }
}

impl ServerInfo {
    /// `None` when this is not what ComfyUI answers.
    fn read(stats: &Value) -> Option<Self> {
        let system = stats.get("system").filter(|system| system.is_object())?;
        let strings = |list: Option<&Value>, pick: fn(&Value) -> Option<String>| {
            list.and_then(Value::as_array).into_iter().flatten().filter_map(pick).collect()
        };
        Some(Self {
            version: text_of(system, "comfyui_version")
                .filter(|version| version != "unknown")
                .map(|version| clip(&version)),
            argv: strings(system.get("argv"), |arg| arg.as_str().map(str::to_owned)),
            devices: strings(stats.get("devices"), |device| text_of(device, "name")),
            has_jobs_api: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_an_object_named_system_makes_it_comfyui() {
        assert_eq!(ServerInfo::read(&json!({"status": "ok"})), None);
        assert_eq!(ServerInfo::read(&json!({"system": []})), None);
        assert_eq!(ServerInfo::read(&json!({"system": {}})), Some(ServerInfo::default()));
        let stats = json!({
            "system": {"comfyui_version": "0.3.75", "argv": ["main.py", "--port", "18188", null]},
            "devices": [{"name": "cpu", "index": null}, 3],
        });
        let info = ServerInfo::read(&stats).unwrap_or_default();
        assert_eq!((info.version.as_deref(), info.argv.len(), info.devices.len()), (Some("0.3.75"), 3, 1));
    }
}
