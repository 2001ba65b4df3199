//! The HTTP side: the routes under `/comfyui/workflow`, `/health`, and the rules for everything around them.
//!
//! Every answer to a request that is HTTP is JSON, and every failure is `{"success": false, "message": "…"}`. Handlers read the
//! [`store`](crate::store) and ask the [`runner`](crate::runner); they know neither SSH nor ComfyUI. The bodies
//! have types of their own (`view`): the API is the user's contract, the state file is ours.

mod body;
mod cors;
mod error;
mod serve;
mod view;
mod workflow;

use std::sync::Arc;

use axum::{
    Router,
    extract::{OriginalUri, Request},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};

pub use cors::AllowedOrigin;
pub use error::ApiError;
pub use serve::serve;

use crate::{runner::Runner, store::Store};

/// What the HTTP side can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Web pages that may call the API.
    pub cors_origins: Vec<AllowedOrigin>,
    /// The largest request body.
    pub max_body_bytes: usize,
}

/// What handlers share.
#[derive(Debug, Clone)]
struct Api {
    runner: Runner,
    store: Store,
    max_body_bytes: usize,
}

/// All routes with everything around them.
pub fn router(runner: Runner, store: Store, options: Options) -> Router {
    let api = Arc::new(Api { runner, store, max_body_bytes: options.max_body_bytes });
    let routes = Router::new()
        .route("/execute", post(workflow::execute))
        .route("/state", get(workflow::state))
        .route("/{id}/progress", get(workflow::progress))
        .route("/{id}/cancel", post(workflow::cancel))
        .route("/{id}/retry", post(workflow::retry))
        .route("/{id}/download", post(workflow::download))
        .route("/{id}/outputs", get(workflow::outputs))
        .route("/{id}/active", get(workflow::active))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(api.clone());
    let health = Router::new()
        .route("/health", get(workflow::health))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(api);
    let routes = cors::allow(routes, &options.cors_origins);
    Router::new()
        .nest("/comfyui/workflow", routes)
        .merge(health)
        .fallback(not_found)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_failure(()))
}

async fn not_found(request: Request) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("No such route: {} {}", request.method(), request.uri().path()))
}

async fn method_not_allowed(OriginalUri(uri): OriginalUri, request: Request) -> ApiError {
    let message = format!("Method {} is not allowed for {}", request.method(), uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

fn panicked(cause: Box<dyn std::any::Any + Send>) -> Response {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("unknown");
    tracing::error!(cause = text, "a request handler panicked");
    ApiError::internal("Internal error; the log has more").into()
}

/// The matched route, so that ids don't make every span unique.
fn span(request: &Request) -> tracing::Span {
    let route = request.extensions().get::<axum::extract::MatchedPath>().map_or("-", |path| path.as_str());
    tracing::debug_span!("request", method = %request.method(), route)
}
