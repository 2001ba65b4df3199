//! Who may use the service: the tokens, and what holds without one.

use std::{io::Read, os::unix::fs::MetadataExt, path::Path};

use figment::Figment;
use secrecy::{ExposeSecret, SecretString};

use super::{ConfigError, ENV_PREFIX, Server};
use crate::{
    files::{Roots, open_regular},
    home::expand_home,
    http::Tokens,
};

/// The key in its section.
pub(super) const KEY: &str = "auth_token";

/// The variable that has a token, without its prefix. Read as it stands: a token of digits is no number.
pub(super) const VARIABLE: &str = "SERVER__AUTH_TOKEN";

/// Shorter ones can be guessed.
const GOOD_LENGTH: usize = 16;

/// A file of tokens is no larger.
const MAX_FILE_BYTES: u64 = 64 << 10;

pub(super) fn from_environment(figment: Figment) -> Figment {
    match std::env::var(format!("{ENV_PREFIX}{VARIABLE}")) {
        Ok(token) => figment.merge((format!("server.{KEY}"), token)),
        Err(_) => figment,
    }
}

/// # Errors
/// When a token can't be used, or there is none on an address that others can reach.
pub(super) fn of(server: &Server) -> Result<Tokens, ConfigError> {
    let tokens = match (&server.auth_token, &server.auth_token_file) {
        (Some(_), Some(_)) => {
            let both = "set one of the configuration keys server.auth_token and auth_token_file";
            return Err(ConfigError(both.to_owned()));
        }
        (Some(token), None) => vec![token.clone()],
        (None, Some(file)) => read(&expand_home(file))?,
        (None, None) => Vec::new(),
    };
    for token in &tokens {
        check(token.expose_secret())?;
    }
    if tokens.is_empty() && !server.is_only_local() && !server.allow_unauthenticated {
        return Err(ConfigError(format!(
            "listening on {} would let everybody on the network use this service and its SSH keys: set [server] \
             auth_token (or auth_token_file), or allow_unauthenticated = true if that is meant",
            server.bind
        )));
    }
    Ok(Tokens::new(&tokens))
}

/// One token per line; empty lines and those that begin with `#` are none.
fn read(file: &Path) -> Result<Vec<SecretString>, ConfigError> {
    let failed = |why: String| ConfigError(format!("cannot read server.auth_token_file {}: {why}", file.display()));
    let opened = open_regular(file, &Roots::anywhere()).map_err(|error| failed(error.to_string()))?;
    let meta = opened.metadata().map_err(|error| failed(error.to_string()))?;
    if meta.mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "others on this machine may read the file of tokens; chmod 600 keeps them out");
    }
    let mut text = String::new();
    opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(format!("it is larger than {MAX_FILE_BYTES} bytes")));
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let tokens: Vec<SecretString> = lines.map(SecretString::from).collect();
    if tokens.is_empty() { Err(failed("it has no token".to_owned())) } else { Ok(tokens) }
}

/// Nothing of the token is said.
fn check(token: &str) -> Result<(), ConfigError> {
    if token.is_empty() || !token.chars().all(|c| c.is_ascii_graphic()) {
        return Err(ConfigError(
            "a token of server.auth_token must be plain characters without spaces, and not empty".to_owned(),
        ));
    }
    if token.len() < GOOD_LENGTH {
        tracing::warn!("a token has fewer than {GOOD_LENGTH} characters and might be guessed");
    }
    Ok(())
}
