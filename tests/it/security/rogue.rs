//! An SSH server that lets everybody in, forwards to loopback as it should, and is hostile where a test wants it to be.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use russh::{
    Channel, ChannelId, ChannelOpenFailure, ChannelStream, MethodSet, Preferred,
    keys::{
        PrivateKey,
        ssh_key::private::{Ed25519Keypair, KeypairData},
    },
    server::{self, Auth, ChannelOpenHandle, Config, Handle, Msg, Session},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::loopback;

/// A channel as the server has it.
pub(crate) type Stream = ChannelStream<Msg>;

type Play<On> = Arc<dyn Fn(On) -> BoxFuture<'static, ()> + Send + Sync>;

/// What it does. Without SFTP and commands unless it is told how.
#[derive(Clone, Default)]
pub(crate) struct Rogue {
    sftp: Option<Play<Stream>>,
    command: Option<Play<Stream>>,
    after_login: Option<Play<Handle>>,
    banner: Option<String>,
    /// Methods of authentication that it names when it lets nobody in.
    refuses: Option<MethodSet>,
    preferred: Option<Preferred>,
    limits: Option<russh::Limits>,
}

impl Rogue {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Speaks SFTP in this way.
    pub(crate) fn sftp<F: Future<Output = ()> + Send + 'static>(
        self,
        play: impl Fn(Stream) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { sftp: Some(Arc::new(move |stream| Box::pin(play(stream)))), ..self }
    }

    /// Runs every command in this way.
    pub(crate) fn command<F: Future<Output = ()> + Send + 'static>(
        self,
        play: impl Fn(Stream) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { command: Some(Arc::new(move |stream| Box::pin(play(stream)))), ..self }
    }

    /// Does this once somebody is in.
    pub(crate) fn after_login<F: Future<Output = ()> + Send + 'static>(
        self,
        play: impl Fn(Handle) -> F + Send + Sync + 'static,
    ) -> Self {
        Self { after_login: Some(Arc::new(move |handle| Box::pin(play(handle)))), ..self }
    }

    /// Says this before anybody is in.
    pub(crate) fn banner(self, banner: String) -> Self {
        Self { banner: Some(banner), ..self }
    }

    /// Lets nobody in, and says that these methods would do.
    pub(crate) fn refusing(self, methods: MethodSet) -> Self {
        Self { refuses: Some(methods), ..self }
    }

    /// Offers these algorithms.
    pub(crate) fn offering(self, preferred: Preferred) -> Self {
        Self { preferred: Some(preferred), ..self }
    }

    /// Wants new keys after each so many bytes.
    pub(crate) fn new_keys_each(self, bytes: usize) -> Self {
        let limits = russh::Limits::new(bytes, bytes, Duration::from_secs(3600));
        Self { limits: Some(limits), ..self }
    }

    /// How to connect to it; it serves until the test ends.
    pub(crate) async fn serve(self) -> String {
        let listener = loopback::listener().await;
        let port = listener.local_addr().expect("address of a listener").port();
        let keypair = Ed25519Keypair::from_seed(&seed(port));
        let default = Config::default();
        let config = Arc::new(Config {
            keys: vec![PrivateKey::new(KeypairData::from(keypair), "rogue").expect("a host key")],
            methods: self.refuses.clone().unwrap_or(default.methods.clone()),
            auth_rejection_time: Duration::ZERO,
            preferred: self.preferred.clone().unwrap_or(default.preferred.clone()),
            limits: self.limits.clone().unwrap_or(default.limits.clone()),
            nodelay: true,
            inactivity_timeout: None,
            ..default
        });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let visit = Visit { rogue: self.clone(), channels: HashMap::new() };
                let config = config.clone();
                tokio::spawn(async move {
                    if let Ok(session) = server::run_stream(config, stream, visit).await {
                        session.await.ok();
                    }
                });
            }
        });
        format!("ssh -p {port} root@127.0.0.1")
    }
}

/// A host key need not be secret here, only another one on every port.
fn seed(port: u16) -> [u8; 32] {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&port.to_be_bytes());
    seed
}

struct Visit {
    rogue: Rogue,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl Visit {
    fn play(&mut self, id: ChannelId, how: Option<Play<Stream>>, session: &mut Session) -> Result<(), russh::Error> {
        match (self.channels.remove(&id), how) {
            (Some(channel), Some(play)) => {
                session.channel_success(id)?;
                tokio::spawn(play(channel.into_stream()));
                Ok(())
            }
            (channel, _) => {
                self.channels.extend(channel.map(|channel| (id, channel)));
                session.channel_failure(id)
            }
        }
    }
}

impl server::Handler for Visit {
    type Error = russh::Error;

    async fn authentication_banner(&mut self) -> Result<Option<String>, russh::Error> {
        Ok(self.rogue.banner.clone())
    }

    async fn auth_none(&mut self, _: &str) -> Result<Auth, russh::Error> {
        Ok(if self.rogue.refuses.is_some() { Auth::reject() } else { Auth::Accept })
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        if let Some(play) = &self.rogue.after_login {
            tokio::spawn(play(session.handle()));
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        _: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        tokio::spawn(async move {
            let port = u16::try_from(port).expect("a port");
            match TcpStream::connect(("127.0.0.1", port)).await {
                Ok(mut socket) => {
                    reply.accept().await;
                    tokio::io::copy_bidirectional(&mut channel.into_stream(), &mut socket).await.ok();
                }
                Err(_) => reply.reject(ChannelOpenFailure::ConnectFailed).await,
            }
        });
        Ok(())
    }

    async fn subsystem_request(&mut self, id: ChannelId, _: &str, session: &mut Session) -> Result<(), russh::Error> {
        let how = self.rogue.sftp.clone();
        self.play(id, how, session)
    }

    async fn exec_request(&mut self, id: ChannelId, _: &[u8], session: &mut Session) -> Result<(), russh::Error> {
        let how = self.rogue.command.clone();
        self.play(id, how, session)
    }
}

/// Kinds of SFTP packets (draft-ietf-secsh-filexfer-02).
pub(crate) mod kind {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const STAT: u8 = 17;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const ATTRS: u8 = 105;
}

/// What an SFTP client asks.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) kind: u8,
    pub(crate) id: u32,
    body: Vec<u8>,
}

/// A file that SFTP shows.
#[derive(Clone, Copy)]
pub(crate) struct Shown {
    pub(crate) size: u64,
    /// Kind and permissions, as in `st_mode`.
    pub(crate) mode: u32,
}

/// Answers one request after the other with these bytes, until the client goes away.
pub(crate) async fn speak(mut stream: Stream, answer: impl Fn(&Request) -> Vec<u8>) {
    while let Ok(length) = stream.read_u32().await {
        let mut packet = vec![0; length as usize];
        if stream.read_exact(&mut packet).await.is_err() {
            return;
        }
        let id = packet.get(1..5).map_or(0, |id| u32::from_be_bytes(id.try_into().expect("4 bytes")));
        let body = packet.get(5..).unwrap_or_default().to_vec();
        if stream.write_all(&answer(&Request { kind: packet[0], id, body })).await.is_err() {
            return;
        }
    }
}

/// What an honest server would answer that has one file, of the letter `x`.
pub(crate) fn honestly(request: &Request, file: Shown) -> Vec<u8> {
    match request.kind {
        kind::INIT => packet(kind::VERSION, &[&3_u32.to_be_bytes()]),
        kind::STAT | kind::FSTAT => {
            let (flags, mode) = (0b101_u32.to_be_bytes(), file.mode.to_be_bytes());
            request.answered(kind::ATTRS, &[&flags, &file.size.to_be_bytes(), &mode])
        }
        kind::OPEN => request.answered(kind::HANDLE, &[&text(b"h")]),
        kind::READ => {
            let at = u64::from_be_bytes(request.body[5..13].try_into().expect("8 bytes"));
            let most = u32::from_be_bytes(request.body[13..17].try_into().expect("4 bytes"));
            match file.size.saturating_sub(at).min(u64::from(most)) {
                0 => request.status(1, "end of file"),
                length => request.answered(kind::DATA, &[&text(&vec![b'x'; length as usize])]),
            }
        }
        kind::CLOSE => request.status(0, ""),
        _ => request.status(8, "not supported"),
    }
}

impl Request {
    /// An answer to it.
    pub(crate) fn answered(&self, kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        packet(kind, &[&[&self.id.to_be_bytes()[..]], parts].concat())
    }

    /// The same with an id that nobody has used.
    pub(crate) fn of_nobody(&self) -> Self {
        Self { id: self.id.wrapping_add(1000), ..self.clone() }
    }

    /// How it went, in a code and in words.
    pub(crate) fn status(&self, code: u32, words: &str) -> Vec<u8> {
        self.answered(kind::STATUS, &[&code.to_be_bytes(), &text(words.as_bytes()), &text(b"")])
    }
}

/// A packet with its length in front.
pub(crate) fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u32::try_from(body.len() + 1).expect("a short packet");
    [&length.to_be_bytes()[..], &[kind], &body].concat()
}

/// Bytes with their length in front.
pub(crate) fn text(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).expect("a short text").to_be_bytes()[..], bytes].concat()
}

/// Algorithms that a client worth its name refuses.
pub(crate) fn weak() -> [Preferred; 4] {
    let kex = |names: &'static [russh::kex::Name]| Preferred { kex: Cow::Borrowed(names), ..Preferred::DEFAULT };
    let cipher =
        |names: &'static [russh::cipher::Name]| Preferred { cipher: Cow::Borrowed(names), ..Preferred::DEFAULT };
    [
        kex(&[russh::kex::DH_G1_SHA1]),
        kex(&[russh::kex::DH_G14_SHA1]),
        cipher(&[russh::cipher::AES_256_CBC, russh::cipher::AES_128_CBC]),
        cipher(&[russh::cipher::NONE, russh::cipher::CLEAR]),
    ]
}
