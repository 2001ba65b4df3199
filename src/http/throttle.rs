//! How often one caller may ask. Off unless configured.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use governor::{
    DefaultKeyedRateLimiter, Quota,
    clock::{Clock, DefaultClock},
};

use super::ApiError;
use crate::workflow::Caller;

/// After how many requests the callers that have been quiet are forgotten.
const TIDY_EVERY: u32 = 1024;

/// How often one caller may ask for one kind of thing.
#[derive(Debug)]
pub(super) struct Throttle {
    what: &'static str,
    limiter: DefaultKeyedRateLimiter<Caller>,
    asked: AtomicU32,
    clock: DefaultClock,
}

impl Throttle {
    /// `what` is for the refusal.
    pub(super) fn new(what: &'static str, quota: Quota) -> Self {
        Self {
            what,
            limiter: DefaultKeyedRateLimiter::keyed(quota),
            asked: AtomicU32::new(0),
            clock: DefaultClock::default(),
        }
    }

    fn check(&self, caller: &Caller) -> Result<(), ApiError> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % TIDY_EVERY == TIDY_EVERY - 1 {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(caller).map_err(|refused| {
            let wait = refused.wait_time_from(self.clock.now());
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            ApiError::too_many(format!("Too many requests {}; try again in {seconds} s", self.what), seconds)
        })
    }
}

/// The quotas of one caller; `None`: no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallerRates {
    /// Requests to start a workflow.
    pub execute_per_minute: Option<NonZeroU32>,
    /// Requests for progress.
    pub progress_per_second: Option<NonZeroU32>,
}

impl CallerRates {
    pub(super) fn execute(&self) -> Option<Arc<Throttle>> {
        let quota = self.execute_per_minute.map(Quota::per_minute);
        quota.map(|quota| Arc::new(Throttle::new("to start a workflow", quota)))
    }

    pub(super) fn progress(&self) -> Option<Arc<Throttle>> {
        let quota = self.progress_per_second.map(Quota::per_second);
        quota.map(|quota| Arc::new(Throttle::new("for progress", quota)))
    }
}

/// The middleware, inside of the one that says who asks.
///
/// # Errors
/// 429 with the time after which the next request is taken.
pub(super) async fn limit(
    State(throttle): State<Option<Arc<Throttle>>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if let (Some(throttle), Some(caller)) = (throttle, request.extensions().get::<Caller>()) {
        throttle.check(caller)?;
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_one_callers_own() {
        let throttle = Throttle::new("", Quota::per_minute(NonZeroU32::new(2).unwrap()));
        let (first, second) = (Caller::new("first"), Caller::new("second"));
        assert!(throttle.check(&first).is_ok() && throttle.check(&first).is_ok());
        assert!(throttle.check(&first).is_err());
        assert!(throttle.check(&second).is_ok());
    }
}
