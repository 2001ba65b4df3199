//! Speaks to the service whichever process it is, and knows whether an answer was to be expected.

use std::{sync::Mutex, time::Duration};

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use crate::{report::Violations, service::Condition};

/// Longest wait for one answer. A sleeping service takes up to a quarter of a minute.
const ANSWER: Duration = Duration::from_secs(60);

/// Longest wait for a service to be there.
const PATIENCE: Duration = Duration::from_secs(180);

/// A connection that was idle for longer may be closed by the service just when it is used again.
const IDLE: Duration = Duration::from_secs(2);

const TRY_AGAIN: Duration = Duration::from_millis(50);

/// How a service that ends refuses what it does not take any more.
const STOPPING: &str = "The service is stopping";

pub(crate) struct Client {
    http: reqwest::Client,
    condition: watch::Receiver<Condition>,
    /// How long undisturbed looks at the progress took.
    latencies: Mutex<Vec<Duration>>,
    requests: std::sync::atomic::AtomicU64,
}

/// An answer, and the condition in which it was asked for.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
    pub(crate) asked_in: Condition,
}

impl Client {
    pub(crate) fn new(condition: watch::Receiver<Condition>) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder().no_proxy().timeout(ANSWER).pool_idle_timeout(IDLE).build()?;
        Ok(Self { http, condition, latencies: Mutex::default(), requests: std::sync::atomic::AtomicU64::new(0) })
    }

    /// Asks until there is an answer; an error is excused only if the service was disturbed meanwhile. `None` when there
    /// is none at all, which is reported.
    pub(crate) async fn ask(
        &self,
        violations: &Violations,
        method: Method,
        path: &str,
        shape: impl Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Option<Answer> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let before = self.condition.borrow().clone();
            let Some(url) = before.url.as_ref() else {
                sleep(TRY_AGAIN).await;
                continue;
            };
            let began = Instant::now();
            self.requests.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let answer = self.send(shape(self.http.request(method.clone(), format!("{url}{path}")))).await;
            let undisturbed = *self.condition.borrow() == before;
            match answer {
                // What came in while it was being stopped.
                Ok((_, body)) if !undisturbed && body["message"] == STOPPING => {}
                Ok((status, body)) => {
                    if undisturbed && !before.asleep && path.ends_with("/progress") {
                        self.latencies().push(began.elapsed());
                    }
                    return Some(Answer { status, body, asked_in: before });
                }
                Err(error) if undisturbed => {
                    violations.add(format!("{method} {path} was not answered by a service that was up: {error:?}"));
                }
                Err(_) => {}
            }
            sleep(TRY_AGAIN).await;
        }
        violations.add(format!("no answer to {method} {path} within {PATIENCE:?}"));
        None
    }

    pub(crate) async fn get(&self, violations: &Violations, path: &str) -> Option<Answer> {
        self.ask(violations, Method::GET, path, |request| request).await
    }

    pub(crate) fn latencies(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.latencies.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(std::sync::atomic::Ordering::Relaxed)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Result<(StatusCode, Value)> {
        let answer = request.send().await?;
        let status = answer.status();
        Ok((status, answer.json().await?))
    }
}
