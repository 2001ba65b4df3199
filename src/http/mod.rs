//! The HTTP side: the routes under `/comfyui/workflow`, `/health`, and the rules for everything around them.
//!
//! Every answer to a request that is HTTP is JSON, and every failure is `{"success": false, "message": "…"}`. Handlers read the
//! [`store`](crate::store) and ask the [`runner`](crate::runner); they know neither SSH nor ComfyUI. The bodies
//! have types of their own (`view`): the API is the user's contract, the state file is ours.

mod body;
mod body_room;
mod cors;
mod door;
mod error;
mod places;
mod serve;
mod throttle;
mod token;
mod view;
mod workflow;

use std::sync::Arc;

use axum::{
    Router,
    extract::{OriginalUri, Request},
    http::StatusCode,
    middleware::from_fn_with_state,
    response::Response,
    routing::{any, get, post},
};
use tower_http::{catch_panic::CatchPanicLayer, trace::TraceLayer};

pub use cors::AllowedOrigin;
pub use door::HostName;
pub use error::ApiError;
pub use serve::{ServeOptions, listen, serve};
pub use throttle::CallerRates;
pub use token::Tokens;

use crate::{runner::Runner, store::Store};
use door::Door;

/// What the HTTP side can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Names by which the service may be called, besides loopback names and IP addresses.
    pub host_names: Vec<HostName>,
    /// Web pages that may call the API.
    pub cors_origins: Vec<AllowedOrigin>,
    /// What callers must show.
    pub tokens: Tokens,
    /// How often one caller may ask.
    pub caller_rates: CallerRates,
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

/// All routes with everything around them, outermost last: who asks is known before how often it may, and the headers
/// for web pages are put on refusals too.
pub fn router(runner: Runner, store: Store, options: Options) -> Router {
    let api = Arc::new(Api { runner, store, max_body_bytes: options.max_body_bytes });
    let identify = || from_fn_with_state(options.tokens.clone(), token::identify);
    let starts = from_fn_with_state(options.caller_rates.execute(), throttle::limit);
    let polls = from_fn_with_state(options.caller_rates.progress(), throttle::limit);
    let routes = Router::new()
        .route("/execute", post(workflow::execute).layer(starts.clone()))
        .route("/convert", post(workflow::convert).layer(starts.clone()))
        .route("/{id}/retry", post(workflow::retry).layer(starts))
        .route("/{id}/progress", get(workflow::progress).layer(polls.clone()))
        .route("/state", get(workflow::state).layer(polls.clone()))
        .route("/{id}/cancel", post(workflow::cancel))
        .route("/{id}/download", post(workflow::download))
        .route("/{id}/outputs", get(workflow::outputs).layer(polls))
        .route("/{id}/active", get(workflow::active))
        .method_not_allowed_fallback(method_not_allowed)
        .route_layer(identify())
        .with_state(api.clone());
    let health = Router::new()
        .route("/health", get(workflow::health))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(api);
    let routes = cors::allow(routes, &options.cors_origins);
    let door = Arc::new(Door { host_names: options.host_names, origins: options.cors_origins });
    Router::new()
        .nest("/comfyui/workflow", routes)
        .merge(health)
        .fallback_service(any(not_found).layer(identify()))
        .layer(from_fn_with_state(door, door::guard))
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
