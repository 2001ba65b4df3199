//! The handlers.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Extension, Json,
    extract::{FromRequestParts, Path, Request, State},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};

use super::{
    Api,
    body::{self, Execute},
    error::ApiError,
    view::{
        ActiveView, ConvertedView, DownloadView, DryRunView, HealthView, MessageView, OutputView, OutputsEnvelope,
        ProgressEnvelope, StartedView, StateEnvelope, Success, TroubleView, WorkflowView, output_views,
    },
};
use crate::{
    runner::{Fetching, Started},
    workflow::{Caller, WorkflowId, WorkflowState},
};

/// `POST /comfyui/workflow/execute`
pub(super) async fn execute(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let key = body::idempotency_key(&request)?;
    let body = body::read_object(request, api.max_body_bytes).await?;
    let Execute { request, dry_run, warnings } = body::execute_request(body)?;
    if dry_run {
        let mut plan = api.runner.dry_run(request).await?;
        plan.warnings.splice(0..0, warnings);
        return Ok(Success::new(DryRunView { dry_run, plan }).into_response());
    }
    started(api.runner.execute(request, caller, warnings, key).await?)
}

/// `POST /comfyui/workflow/convert`
pub(super) async fn convert(State(api): State<Arc<Api>>, request: Request) -> Result<Response, ApiError> {
    let body = body::read_object(request, api.max_body_bytes).await?;
    let (request, warnings) = body::convert_request(body)?;
    let converted = api.runner.convert(request).await?;
    Ok(Success::new(ConvertedView { converted, warnings }).into_response())
}

/// `POST /comfyui/workflow/{id}/retry`
pub(super) async fn retry(
    State(api): State<Arc<Api>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> Result<Response, ApiError> {
    started(api.runner.retry(&id, caller).await?)
}

/// `POST /comfyui/workflow/{id}/download`
pub(super) async fn download(State(api): State<Arc<Api>>, Id(id): Id) -> Result<Response, ApiError> {
    let (message, missing) = match api.runner.download(&id).await? {
        Fetching::Outputs(missing) => ("Download started", missing),
        Fetching::WhatTheBoxKnows => ("Asking the box what the run has left", Vec::new()),
        Fetching::Nothing => ("Nothing to download: every output is here", Vec::new()),
        Fetching::NeverRan => ("Nothing to download: the workflow was never sent to the box", Vec::new()),
    };
    let outputs = missing.iter().map(OutputView::from).collect();
    Ok(Success::new(DownloadView { message, workflow_id: id, outputs }).into_response())
}

fn started(started: Started) -> Result<Response, ApiError> {
    match started.failed {
        Some(failure) => Err(ApiError::on_record(failure, started.workflow_id)),
        None => Ok(Success::new(StartedView {
            workflow_id: started.workflow_id,
            message: "Workflow execution started",
            warnings: started.warnings,
        })
        .into_response()),
    }
}

/// `GET /comfyui/workflow/{id}/progress`
pub(super) async fn progress(State(api): State<Arc<Api>>, Id(id): Id) -> Result<Response, ApiError> {
    let state = known(&api, &id)?;
    Ok(Success::new(ProgressEnvelope { progress: view(&api, &state) }).into_response())
}

/// `POST /comfyui/workflow/{id}/cancel`
pub(super) async fn cancel(State(api): State<Arc<Api>>, Id(id): Id) -> Result<Response, ApiError> {
    if !api.runner.cancel(&id).await {
        return Err(ApiError::not_found(format!("Workflow not found or already completed: {id}")));
    }
    Ok(Success::new(MessageView { message: "Workflow cancellation initiated" }).into_response())
}

/// `GET /comfyui/workflow/{id}/outputs`
pub(super) async fn outputs(State(api): State<Arc<Api>>, Id(id): Id) -> Result<Response, ApiError> {
    let state = known(&api, &id)?;
    Ok(Success::new(OutputsEnvelope { outputs: output_views(&state) }).into_response())
}

/// `GET /comfyui/workflow/state`
pub(super) async fn state(State(api): State<Arc<Api>>) -> Response {
    let newest = api.store.newest();
    Success::new(StateEnvelope { state: newest.as_deref().map(|state| view(&api, state)) }).into_response()
}

/// `GET /comfyui/workflow/{id}/active`
pub(super) async fn active(State(api): State<Arc<Api>>, Id(id): Id) -> Response {
    let state = api.store.get(&id);
    Success::new(ActiveView { active: state.is_some_and(|state| state.is_active()) }).into_response()
}

/// `GET /health`: whether the state is on the disk, and why not. Says nothing about workflows, paths or hosts.
pub(super) async fn health(State(api): State<Arc<Api>>) -> Response {
    let reasons = api.store.troubles();
    if reasons.is_empty() {
        return Success::new(HealthView { status: "ok" }).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(TroubleView::new(reasons))).into_response()
}

/// The id in a path. One that is not even text names no workflow, as any other unknown id.
pub(super) struct Id(WorkflowId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let given = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(given.map_or_else(|_| WorkflowId::from("(not text)"), |Path(id)| WorkflowId::from(id))))
    }
}

/// The state comes first and the place in line after it: whoever has left the line since is no longer asked for it.
fn view<'a>(api: &Api, state: &'a WorkflowState) -> WorkflowView<'a> {
    WorkflowView::new(state, api.runner.local_queue_position(&state.id))
}

fn known(api: &Api, id: &WorkflowId) -> Result<Arc<WorkflowState>, ApiError> {
    api.store.get(id).ok_or_else(|| ApiError::not_found(format!("Workflow not found: {id}")))
}
