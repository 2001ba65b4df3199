//! A client of the service's API, for stories. Bodies are plain JSON: what the service sends is what is asserted.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use super::LOOK_EVERY;

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Speaks to one service.
#[derive(Debug, Clone)]
pub(crate) struct ApiClient {
    base_url: String,
    http: reqwest::Client,
}

impl ApiClient {
    /// A client of the service at `base_url` (`http://127.0.0.1:5000`).
    pub(crate) fn new(base_url: impl Into<String>) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).build().expect("an HTTP client");
        Self { base_url: base_url.into(), http }
    }

    /// A request to be shaped by the test; end it with [`answer`].
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base_url))
    }

    /// Asks for a path.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        answer(self.request(Method::GET, path)).await
    }

    /// Asks to execute.
    pub(crate) async fn execute(&self, body: &Value) -> (StatusCode, Value) {
        answer(self.request(Method::POST, "/comfyui/workflow/execute").json(body)).await
    }

    /// Asks to execute, and returns the id of the accepted workflow.
    ///
    /// # Panics
    /// If it is not accepted.
    pub(crate) async fn accepted(&self, body: &Value) -> String {
        let (status, answer) = self.execute(body).await;
        assert_eq!(status, StatusCode::OK, "not accepted: {answer}");
        assert_eq!(answer["success"], true, "not accepted: {answer}");
        answer["workflow_id"].as_str().unwrap_or_else(|| panic!("no workflow_id: {answer}")).to_owned()
    }

    /// The whole answer about a workflow's progress.
    pub(crate) async fn progress_answer(&self, id: &str) -> (StatusCode, Value) {
        self.get(&format!("/comfyui/workflow/{id}/progress")).await
    }

    /// A known workflow's progress.
    ///
    /// # Panics
    /// If the service does not know it.
    pub(crate) async fn progress(&self, id: &str) -> Value {
        let (status, mut answer) = self.progress_answer(id).await;
        assert!(status == StatusCode::OK && answer["success"] == true, "no progress of {id}: {status} {answer}");
        answer["progress"].take()
    }

    /// Asks to cancel. Without a body or content type, as the API's own example does.
    pub(crate) async fn cancel(&self, id: &str) -> (StatusCode, Value) {
        answer(self.request(Method::POST, &format!("/comfyui/workflow/{id}/cancel"))).await
    }

    /// Asks to start a finished workflow again. Without a body or content type.
    pub(crate) async fn retry(&self, id: &str) -> (StatusCode, Value) {
        answer(self.request(Method::POST, &format!("/comfyui/workflow/{id}/retry"))).await
    }

    /// Asks to fetch what is missing. Without a body or content type.
    pub(crate) async fn download(&self, id: &str) -> (StatusCode, Value) {
        answer(self.request(Method::POST, &format!("/comfyui/workflow/{id}/download"))).await
    }

    /// Asks for the outputs.
    pub(crate) async fn outputs(&self, id: &str) -> (StatusCode, Value) {
        self.get(&format!("/comfyui/workflow/{id}/outputs")).await
    }

    /// Asks for the newest workflow's state.
    pub(crate) async fn state(&self) -> (StatusCode, Value) {
        self.get("/comfyui/workflow/state").await
    }

    /// Asks whether a workflow is active.
    pub(crate) async fn active(&self, id: &str) -> (StatusCode, Value) {
        self.get(&format!("/comfyui/workflow/{id}/active")).await
    }

    /// Looks at the progress until it is as `is_reached` wants it, and returns it.
    ///
    /// # Panics
    /// After `patience`, or as soon as the workflow has come to an end that is not what is waited for; with the whole
    /// progress as seen last.
    pub(crate) async fn wait_for(
        &self,
        id: &str,
        what: &str,
        patience: Duration,
        is_reached: impl Fn(&Value) -> bool,
    ) -> Value {
        let reached_before_the_end = |progress: &Value| {
            let reached = is_reached(progress);
            assert!(reached || !is_over(progress), "{id} ended before: {what}\n{progress:#}");
            reached
        };
        self.wait_after_the_end(id, what, patience, reached_before_the_end).await
    }

    /// Looks at the progress, also that of a finished workflow, until it is as `is_reached` wants it, and returns it.
    ///
    /// # Panics
    /// After `patience`.
    pub(crate) async fn wait_after_the_end(
        &self,
        id: &str,
        what: &str,
        patience: Duration,
        is_reached: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let progress = self.progress(id).await;
            if is_reached(&progress) {
                return progress;
            }
            assert!(Instant::now() < deadline, "{id}: waited {patience:?} in vain for: {what}\n{progress:#}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits for the end, whichever it is.
    ///
    /// # Panics
    /// After `patience`.
    pub(crate) async fn wait_for_end(&self, id: &str, patience: Duration) -> Value {
        self.wait_for(id, "its end", patience, is_over).await
    }

    /// Waits for the end and demands that it is this one (`completed`, `failed`, `cancelled`).
    ///
    /// # Panics
    /// After `patience`, or at another end.
    pub(crate) async fn wait_for_status(&self, id: &str, status: &str, patience: Duration) -> Value {
        self.wait_for(id, status, patience, |progress| progress["status"] == status).await
    }
}

/// Sends a request and reads a JSON answer; every answer of the service must be one.
///
/// # Panics
/// If there is no answer, or one that is not JSON.
pub(crate) async fn answer(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = request.send().await.expect("an answer of the service");
    let (status, url) = (answer.status(), answer.url().clone());
    let text = answer.text().await.expect("the body of the answer");
    let body = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{url}: {status}, not JSON: {error}\n{text}"));
    (status, body)
}

/// Whether a progress is final.
pub(crate) fn is_over(progress: &Value) -> bool {
    matches!(progress["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}
