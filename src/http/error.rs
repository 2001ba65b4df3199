//! Failures as clients see them.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    runner,
    text::one_line,
    workflow::{ErrorCode, Failure, Finding, WorkflowId},
};

/// When a caller that was refused for lack of room may try again, in seconds.
const ROOM_AFTER_S: u64 = 30;

/// A failure with its status: `{"success": false, "message": "…"}`.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    workflow_id: Option<WorkflowId>,
    findings: Vec<Finding>,
    retry_after_s: Option<u64>,
}

#[derive(Serialize)]
struct Body {
    success: bool,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_id: Option<WorkflowId>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    findings: Vec<Finding>,
}

impl ApiError {
    /// A failure that says why, on one line: much of a message is what others have named.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: one_line(&message.into()),
            workflow_id: None,
            findings: Vec::new(),
            retry_after_s: None,
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Refused for now.
    pub(super) fn too_many(message: impl Into<String>, retry_after_s: u64) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_s: Some(ROOM_AFTER_S), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// A failure of a workflow that is on record all the same: of the file, or of the way to the box.
    pub(super) fn on_record(failure: Failure, workflow_id: WorkflowId) -> Self {
        let status = match failure.code {
            ErrorCode::InvalidWorkflow => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { workflow_id: Some(workflow_id), ..Self::of(failure, status) }
    }

    fn of(failure: Failure, status: StatusCode) -> Self {
        let findings = failure.detail.map(|detail| detail.findings).unwrap_or_default();
        Self { findings, ..Self::new(status, failure.message) }
    }
}

impl From<runner::ExecuteError> for ApiError {
    fn from(error: runner::ExecuteError) -> Self {
        match error {
            runner::ExecuteError::Rejected(_) => Self::bad_request(error.to_string()),
            runner::ExecuteError::Refused(failure) => Self::of(failure, StatusCode::BAD_REQUEST),
            runner::ExecuteError::Unreachable(failure) => Self::of(failure, StatusCode::BAD_GATEWAY),
            runner::ExecuteError::Busy => Self::unavailable(error.to_string()),
            runner::ExecuteError::Unknown(_) => Self::not_found(error.to_string()),
            runner::ExecuteError::StillActive(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            runner::ExecuteError::LineFull(_) => Self::too_many(error.to_string(), ROOM_AFTER_S),
            runner::ExecuteError::KeyReused => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
            runner::ExecuteError::NotRecorded(ref cause) | runner::ExecuteError::NotKept { ref cause, .. }
                if cause.may_pass() =>
            {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            runner::ExecuteError::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            runner::ExecuteError::NotRecorded(_)
            | runner::ExecuteError::NotKept { .. }
            | runner::ExecuteError::Internal => Self::internal(error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body =
            Body { success: false, message: self.message, workflow_id: self.workflow_id, findings: self.findings };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<ApiError> for Response {
    fn from(error: ApiError) -> Self {
        error.into_response()
    }
}
