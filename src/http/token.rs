//! Who asks: the bearer of a token, where tokens are set, else whoever has an address.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::ApiError;
use crate::workflow::Caller;

/// What callers must show; empty when nobody must show anything. Only digests are kept.
#[derive(Clone, Default)]
pub struct Tokens(Arc<[[u8; 32]]>);

impl Tokens {
    /// From the tokens as they are configured.
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a SecretString>) -> Self {
        Self(tokens.into_iter().map(|token| Sha256::digest(token.expose_secret()).into()).collect())
    }

    /// Whose token this is. How long that takes tells nothing about the tokens: all are compared, by their digests.
    fn bearer(&self, given: &str) -> Option<Caller> {
        let given: [u8; 32] = Sha256::digest(given).into();
        let known = self.0.iter().fold(subtle::Choice::from(0), |known, token| known | token.ct_eq(&given));
        bool::from(known).then(|| Caller::new(format!("token {}", hex::encode(&given[..4]))))
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

/// The middleware: notes the [`Caller`] in the request.
pub(super) async fn identify(State(tokens): State<Tokens>, mut request: Request, next: Next) -> Response {
    let caller = if tokens.0.is_empty() { Some(address(&request)) } else { shown(&request, &tokens) };
    let Some(caller) = caller else { return unauthorized() };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn shown(request: &Request, tokens: &Tokens) -> Option<Caller> {
    let mut headers = request.headers().get_all(header::AUTHORIZATION).iter();
    let (Some(given), None) = (headers.next(), headers.next()) else { return None };
    let (scheme, token) = given.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    tokens.bearer(token.trim())
}

fn address(request: &Request) -> Caller {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    Caller::new(peer.map_or_else(|| "address unknown".into(), |peer| format!("address {}", network(peer.0.ip()))))
}

/// One subscriber has a whole /64 of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address => address,
    }
}

fn unauthorized() -> Response {
    let message = "A token is needed: send the header Authorization: Bearer <token>";
    let mut response = ApiError::new(StatusCode::UNAUTHORIZED, message).into_response();
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_token_is_a_caller_of_its_own_and_nothing_else_is_one() {
        let tokens = Tokens::new(&[SecretString::from("first"), SecretString::from("second")]);
        let (first, second) = (tokens.bearer("first").unwrap(), tokens.bearer("second").unwrap());
        assert_ne!(first, second);
        for wrong in ["", "firs", "first ", "First", "firstsecond"] {
            assert!(tokens.bearer(wrong).is_none(), "{wrong}");
        }
        let said = format!("{tokens:?} {first:?}");
        assert!(!said.contains("first") && !said.contains("second"), "{said}");
    }

    #[test]
    fn an_address_is_a_caller_and_so_is_a_network_of_ipv6() {
        let of = |text: &str| network(text.parse().unwrap()).to_string();
        assert_eq!((of("192.0.2.7"), of("::ffff:192.0.2.7")), ("192.0.2.7".into(), "192.0.2.7".into()));
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
