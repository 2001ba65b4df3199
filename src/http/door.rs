//! Whom the service answers at all: requests that call it by a name of its own and, where they change something, come
//! from no foreign web page.
//!
//! A page in the user's browser can send requests to any address, also to this one. What it can't do is choose the
//! `Host` header, which names the server that the browser believes to speak to, or the `Origin` header, which names
//! the page. A page that has its own name point here (DNS rebinding) needs a name: numbers can't be rebound.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, Version, header, uri::Authority},
    middleware::Next,
    response::Response,
};
use serde::Deserialize;

use super::{AllowedOrigin, ApiError};

/// How much of a header an answer repeats.
const QUOTED: usize = 200;

/// A name by which the service may be called, without a port, such as `comfy.example.org`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostName(String);

impl TryFrom<String> for HostName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let name = without_last_dot(&text).to_ascii_lowercase();
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!("\"{text}\" is not a host name such as comfy.example.org (no scheme, no port)"));
        }
        Ok(Self(name))
    }
}

/// Decides from the headers alone.
#[derive(Debug)]
pub(super) struct Door {
    /// Besides loopback names and IP addresses.
    pub(super) host_names: Vec<HostName>,
    /// Web pages that may change something.
    pub(super) origins: Vec<AllowedOrigin>,
}

/// The middleware.
///
/// # Errors
/// 403 for a host or page that is not ours, 400 where there is not exactly one readable host.
pub(super) async fn guard(State(door): State<Arc<Door>>, request: Request, next: Next) -> Result<Response, ApiError> {
    let own = door.host(&request)?;
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if changes {
        door.check_origin(request.headers(), own.as_ref())?;
    }
    Ok(next.run(request).await)
}

impl Door {
    /// The host and port that the client believes to speak to; `None` where an old client doesn't say.
    fn host(&self, request: &Request) -> Result<Option<Authority>, ApiError> {
        let mut given = request.headers().get_all(header::HOST).iter();
        let host = match (given.next(), given.next()) {
            (Some(host), None) => Some(host.to_str().ok().and_then(authority).ok_or_else(unreadable_host)?),
            (None, _) if request.version() < Version::HTTP_11 => None,
            _ => return Err(unreadable_host()),
        };
        // `GET http://host/path`, as clients write to proxies. Both must be ours, whichever the client means.
        for named in host.iter().chain(request.uri().authority()) {
            if !self.is_ours(named.host()) {
                return Err(foreign_host(named.host()));
            }
        }
        Ok(host)
    }

    fn is_ours(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let is_address = match bare {
            Some(bare) => bare.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()),
            None => host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv4()),
        };
        let name = without_last_dot(host).to_ascii_lowercase();
        is_address
            || name == "localhost"
            // Never asked of the DNS (RFC 6761, section 6.3).
            || name.ends_with(".localhost")
            || self.host_names.iter().any(|ours| ours.0 == name)
    }

    /// A request without `Origin` comes from no web page: browsers send it with everything but plain reads.
    fn check_origin(&self, headers: &HeaderMap, own: Option<&Authority>) -> Result<(), ApiError> {
        for origin in headers.get_all(header::ORIGIN) {
            let text = origin.to_str().unwrap_or("(not text)");
            let is_own = own.is_some_and(|own| is_page_of(own, text));
            if !is_own && !self.origins.iter().any(|allowed| allowed.allows(text)) {
                return Err(foreign_page(text));
            }
        }
        Ok(())
    }
}

/// Only plain HTTP is spoken here: a page that came by HTTPS came from a proxy, and is one of `cors_origins`.
fn is_page_of(own: &Authority, origin: &str) -> bool {
    let without_default_port = |text: &str| text.strip_suffix(":80").unwrap_or(text).to_ascii_lowercase();
    let page = origin.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("http://")).map(|_| &origin[7..]);
    page.is_some_and(|page| without_default_port(page) == without_default_port(own.as_str()))
}

/// Host and perhaps port, and nothing else.
fn authority(text: &str) -> Option<Authority> {
    let authority: Authority = text.parse().ok()?;
    let port = text.strip_prefix(authority.host())?;
    let is_port = port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    (port.is_empty() || is_port).then_some(authority)
}

fn without_last_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn unreadable_host() -> ApiError {
    ApiError::bad_request("The request needs exactly one Host header, with a host name or an IP address")
}

fn foreign_host(host: &str) -> ApiError {
    let message = format!(
        "This service is not called {}; if it is meant to be, add the name to [server] host_names",
        quoted(host)
    );
    ApiError::new(StatusCode::FORBIDDEN, message)
}

fn foreign_page(origin: &str) -> ApiError {
    let message = match origin {
        // Of a file, a sandboxed frame, or whoever else does not say: that nobody can allow.
        "null" => {
            "Requests from web pages without an address of their own (Origin: null), such as files, are refused; \
                   serve the page over HTTP, from an origin of [server] cors_origins"
                .to_owned()
        }
        _ => {
            let page = quoted(origin);
            format!("Requests from the web page {page} are refused; if it is yours, add it to [server] cors_origins")
        }
    };
    ApiError::new(StatusCode::FORBIDDEN, message)
}

fn quoted(text: &str) -> String {
    text.chars().take(QUOTED).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn door() -> Door {
        Door {
            host_names: vec!["Comfy.Example.org.".to_owned().try_into().unwrap()],
            origins: vec!["http://page.example".parse().unwrap()],
        }
    }

    #[test]
    fn loopback_names_addresses_and_configured_names_are_ours() {
        let ours = ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "192.0.2.7", "[::1]", "comfy.example.org."];
        for host in ours {
            assert!(door().is_ours(host), "{host}");
        }
        let foreign =
            ["evil.example", "localhost.evil.example", "xlocalhost", "127.0.0.1.evil.example", "::1", "0x7f.1"];
        for host in foreign.into_iter().chain(["[127.0.0.1]", "[::1", "", "example.org", "x.comfy.example.org"]) {
            assert!(!door().is_ours(host), "{host}");
        }
    }

    #[test]
    fn a_page_is_our_own_by_scheme_host_and_port() {
        let own = authority("127.0.0.1:5000").unwrap();
        assert!(is_page_of(&own, "http://127.0.0.1:5000") && is_page_of(&own, "HTTP://127.0.0.1:5000"));
        for origin in ["null", "", "http://127.0.0.1", "https://127.0.0.1:5000", "http://127.0.0.1:50001", "http://ü"]
        {
            assert!(!is_page_of(&own, origin), "{origin}");
        }
        let own = authority("localhost:80").unwrap();
        assert!(is_page_of(&own, "http://localhost") && !is_page_of(&own, "http://localhost:8080"));
    }

    #[test]
    fn a_name_with_scheme_or_port_is_no_host_name() {
        for text in ["", ".", "http://a", "a:80", "a/b", "*", "a b", "[::1]"] {
            assert!(HostName::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
