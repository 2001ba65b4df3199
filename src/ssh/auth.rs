//! Logging in: which keys are offered, in which order, and what is said when none is accepted.
//!
//! `none` goes first: some boxes let everybody in, and the others answer with what they accept. Then the keys that were
//! named (by the connection string, `~/.ssh/config` and the options, in this order), each through the agent if it holds
//! it and from its file otherwise; then the agent's other keys; then the usual files of `~/.ssh`. OpenSSH orders likewise,
//! so that the named keys are not lost among the agent's: servers hang up after six (`MaxAuthTries`). With
//! `IdentitiesOnly` it ends with the named ones. Passwords are never asked for, and the agent is never forwarded.

use std::{env, sync::Arc, time::Duration};

use russh::{
    MethodKind, MethodSet,
    client::{AuthResult, Handle},
    keys::{
        HashAlg, PrivateKeyWithHashAlg, PublicKey,
        agent::{AgentIdentity, client::AgentClient},
    },
};
use tokio::{net::UnixStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    SshError, Unreachable,
    connection::blocking,
    keys::{Identity, KeyRing, Problem},
    named_file::NamedFile,
    peer::{Peer, Shared},
    route::Endpoint,
};

/// An agent that takes longer to list its keys is left out. (Signing may take longer: some ask their owner.)
const AGENT_DEADLINE: Duration = Duration::from_secs(2);

/// After so many refused keys, a connection that breaks without a word was closed for that reason.
const MANY: usize = 3;

/// Logs in, or says which keys were tried. `shared` and `gone` are those of the connection.
pub(super) async fn authenticate(
    handle: &mut Handle<Peer>,
    endpoint: &Endpoint,
    keys: &Arc<KeyRing>,
    shared: &Shared,
    gone: &CancellationToken,
) -> Result<(), SshError> {
    let mut login = Login { handle, endpoint, agent: None, offered: Vec::new(), tried: Vec::new(), accepts: None };
    if login.run(keys).await? {
        return Ok(());
    }
    let cut_off = login.handle.is_closed();
    if cut_off {
        // How it ended is known a moment later than that it did.
        let _ = timeout(Duration::from_secs(1), gone.cancelled()).await;
        if login.offered.len() < MANY && !shared.farewell().is_some_and(|farewell| farewell.said) {
            let cause = Unreachable::Dropped;
            return Err(SshError::Unreachable { address: endpoint.address(), cause, source: None });
        }
    }
    let accepts = login.accepts.unwrap_or_else(MethodSet::empty);
    Err(SshError::AuthFailed {
        user: endpoint.user.clone(),
        address: endpoint.address(),
        tried: login.tried,
        accepts: accepts.iter().map(String::from).collect(),
        cut_off,
    })
}

struct Login<'a> {
    handle: &'a mut Handle<Peer>,
    endpoint: &'a Endpoint,
    agent: Option<Agent>,
    /// Keys the box has seen already.
    offered: Vec<PublicKey>,
    /// For the error message.
    tried: Vec<String>,
    accepts: Option<MethodSet>,
}

struct Agent {
    client: AgentClient<UnixStream>,
    identities: Vec<AgentIdentity>,
}

impl Login<'_> {
    /// Whether the box let us in.
    async fn run(&mut self, keys: &Arc<KeyRing>) -> Result<bool, SshError> {
        let result = self.handle.authenticate_none(self.endpoint.user.as_str()).await;
        if self.settle(result) {
            return Ok(true);
        }
        if keys.use_agent {
            self.agent = self.connect_agent().await;
        }
        let endpoint = self.endpoint;
        for file in &endpoint.identity_files {
            if self.try_file(keys, file, true).await? {
                return Ok(true);
            }
        }
        if endpoint.identities_only {
            return Ok(false);
        }
        let identities = self.agent.as_ref().map(|agent| agent.identities.clone()).unwrap_or_default();
        for identity in &identities {
            if self.try_agent(identity).await {
                return Ok(true);
            }
        }
        for file in &keys.default_files {
            if self.try_file(keys, &file.clone().into(), false).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether another key is worth a try.
    fn may_go_on(&self) -> bool {
        !self.handle.is_closed() && self.accepts.as_ref().is_none_or(|accepts| accepts.contains(&MethodKind::PublicKey))
    }

    /// A file that was named is mentioned whatever happens; a usual one only if it exists.
    async fn try_file(&mut self, keys: &Arc<KeyRing>, file: &NamedFile, named: bool) -> Result<bool, SshError> {
        if !self.may_go_on() {
            return Ok(false);
        }
        let (ring, wanted, name, file) = (Arc::clone(keys), file.clone(), file.name(), &file.path);
        let identity = match blocking(move || ring.load(&wanted)).await? {
            Ok(identity) => identity,
            Err(Problem::Refused) => {
                return Err(SshError::FileRefused { path: name, keys: "read_roots" });
            }
            Err(Problem::Missing) if !named => return Ok(false),
            Err(problem) => {
                self.tried.push(format!("{} ({problem})", file.display()));
                return Ok(false);
            }
        };
        if let Some(held) = self.held_by_agent(identity.public_key())
            && self.try_agent(&held).await
        {
            return Ok(true);
        }
        let key = match identity {
            Identity::Public(key, _) if self.was_offered(&key) => return Ok(false),
            Identity::Public(_, problem) => {
                self.tried.push(format!("{} ({problem})", file.display()));
                return Ok(false);
            }
            Identity::Private(key) => key,
        };
        if self.was_offered(key.public_key()) || !self.may_go_on() {
            return Ok(false);
        }
        self.offered.push(key.public_key().clone());
        self.tried.push(format!("{} ({})", file.display(), key.fingerprint(HashAlg::Sha256)));
        let hash = self.rsa_hash(key.public_key()).await;
        let key = PrivateKeyWithHashAlg::new(key, hash);
        let result = self.handle.authenticate_publickey(self.endpoint.user.as_str(), key).await;
        Ok(self.settle(result))
    }

    async fn try_agent(&mut self, identity: &AgentIdentity) -> bool {
        let key = identity.public_key().into_owned();
        if self.was_offered(&key) || !self.may_go_on() {
            return false;
        }
        let hash = self.rsa_hash(&key).await;
        let Some(agent) = &mut self.agent else { return false };
        let user = self.endpoint.user.as_str();
        let result = match identity {
            AgentIdentity::PublicKey { key, .. } => {
                self.handle.authenticate_publickey_with(user, key.clone(), hash, &mut agent.client).await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                self.handle.authenticate_certificate_with(user, certificate.clone(), hash, &mut agent.client).await
            }
        };
        let what = format!("agent key {} ({}", identity.comment(), key.fingerprint(HashAlg::Sha256));
        match result {
            Ok(result) => {
                self.tried.push(format!("{what})"));
                self.offered.push(key);
                self.settle(Ok(result))
            }
            // The file, if there is one, may still do.
            Err(error) => {
                self.tried.push(format!("{what}; the agent did not sign: {error})"));
                false
            }
        }
    }

    /// Takes note of an answer; true if it is a yes.
    fn settle(&mut self, result: Result<AuthResult, russh::Error>) -> bool {
        match result {
            Ok(AuthResult::Success) => true,
            Ok(AuthResult::Failure { remaining_methods, .. }) => {
                // russh reports a closed connection as a failure with nothing left to try.
                if !remaining_methods.is_empty() {
                    self.accepts = Some(remaining_methods);
                }
                false
            }
            Err(_) => false,
        }
    }

    fn was_offered(&self, key: &PublicKey) -> bool {
        self.offered.iter().any(|offered| offered.key_data() == key.key_data())
    }

    fn held_by_agent(&self, key: &PublicKey) -> Option<AgentIdentity> {
        let identities = &self.agent.as_ref()?.identities;
        identities.iter().find(|held| held.public_key().key_data() == key.key_data()).cloned()
    }

    /// The signature hash for an RSA key. russh waits up to a second for servers that do not say what they support
    /// (RFC 8308), so this is only asked for RSA keys; such servers are offered SHA-256, which all but ancient ones know.
    async fn rsa_hash(&self, key: &PublicKey) -> Option<HashAlg> {
        if !matches!(key.algorithm(), russh::keys::Algorithm::Rsa { .. }) {
            return None;
        }
        match self.handle.best_supported_rsa_hash().await {
            Ok(Some(hash)) => hash,
            Ok(None) | Err(_) => Some(HashAlg::Sha256),
        }
    }

    /// The agent and its keys. An agent that is not there or does not answer is as good as none.
    async fn connect_agent(&self) -> Option<Agent> {
        let socket = env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty())?;
        let listing = async {
            let mut client = AgentClient::connect_uds(&socket).await?;
            if let Some(binding) = self.handle.agent_session_binding() {
                // Lets the agent apply its rules about which host a key is for; agents before OpenSSH 8.9 do not know it.
                let _ = client.bind_session(binding, false).await;
            }
            let identities = client.request_identities().await?;
            Ok::<_, russh::keys::Error>(Agent { client, identities })
        };
        match timeout(AGENT_DEADLINE, listing).await {
            Ok(Ok(agent)) => Some(agent),
            Ok(Err(error)) => {
                tracing::debug!("the SSH agent is not used: {error}");
                None
            }
            Err(_) => {
                tracing::warn!("the SSH agent is not used: it did not answer within {} s", AGENT_DEADLINE.as_secs());
                None
            }
        }
    }
}
