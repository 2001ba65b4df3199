//! Which web pages may call the API.
//!
//! tower-http's layer does the work; around it, a preflight is answered with 204 instead of 200, and an origin
//! that is not allowed gets no CORS header at all.

use std::str::FromStr;

use axum::{
    Router,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn},
    response::Response,
};
use serde::Deserialize;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// An origin such as `http://localhost`, or with `:*` for any port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AllowedOrigin {
    /// Scheme and host, and the port if there is one and it is fixed.
    base: String,
    any_port: bool,
}

impl AllowedOrigin {
    pub(super) fn allows(&self, origin: &str) -> bool {
        if !self.any_port {
            return origin == self.base;
        }
        match origin.strip_prefix(&self.base) {
            Some("") => true,
            Some(rest) => rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok()),
            None => false,
        }
    }
}

impl FromStr for AllowedOrigin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (base, any_port) = match text.strip_suffix(":*") {
            Some(base) => (base, true),
            None => (text, false),
        };
        let host = base.strip_prefix("http://").or_else(|| base.strip_prefix("https://")).unwrap_or_default();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(format!("\"{text}\" is not an origin such as http://localhost or http://localhost:*"));
        }
        Ok(Self { base: base.to_ascii_lowercase(), any_port })
    }
}

impl TryFrom<String> for AllowedOrigin {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Puts the rules around all routes of a router.
pub(super) fn allow(routes: Router, origins: &[AllowedOrigin]) -> Router {
    let origins = origins.to_vec();
    let allowed = move |origin: &HeaderValue, _: &axum::http::request::Parts| {
        origin.to_str().is_ok_and(|origin| origins.iter().any(|entry| entry.allows(origin)))
    };
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(allowed))
        .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION, HeaderName::from_static("idempotency-key")])
        .expose_headers([header::RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(600));
    routes.route_layer(layer).route_layer(from_fn(tidy))
}

async fn tidy(request: Request, next: Next) -> Response {
    let preflight = request.method() == Method::OPTIONS;
    let mut response = next.run(request).await;
    if preflight && response.status() == StatusCode::OK {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    let headers = response.headers_mut();
    if !headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_METHODS,
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            header::ACCESS_CONTROL_MAX_AGE,
        ] {
            headers.remove(name);
        }
    }
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_exact_but_for_the_port_if_so_written() {
        let exact: AllowedOrigin = "http://localhost".parse().unwrap();
        assert!(exact.allows("http://localhost"));
        for other in ["http://localhost:3000", "https://localhost", "http://localhost.evil", "null", ""] {
            assert!(!exact.allows(other), "{other}");
        }
        let any: AllowedOrigin = "http://localhost:*".parse().unwrap();
        assert!(any.allows("http://localhost") && any.allows("http://localhost:3000"));
        for other in ["http://localhost:", "http://localhost:x", "http://localhost.evil:80", "http://localhost:1/"] {
            assert!(!any.allows(other), "{other}");
        }
    }

    #[test]
    fn what_is_no_origin_is_refused() {
        for text in ["localhost", "*", "http://", "http://a/b", "ftp://a", "http://a b"] {
            assert!(text.parse::<AllowedOrigin>().is_err(), "{text}");
        }
    }
}
