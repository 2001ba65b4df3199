//! Assembles the service, serves, and stops in order.

use std::{io, net::SocketAddr, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, ConfigError},
    http,
    runner::{self, DryRun, ExecuteError, ExecuteRequest, Runner},
    ssh::{Pool, SshError},
    store::{Opened, Store, StoreError},
};

/// How long the parts of the service may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// File descriptors that are not for clients.
const FOR_WORKFLOWS: usize = 1024;

/// Why the service could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A setting can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The address is taken or not ours.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Which address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The state can't be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// SSH can't be used.
    #[error("cannot use SSH: {0}")]
    Ssh(#[from] SshError),
    /// No signals can be received.
    #[error("cannot receive signals: {0}")]
    Signals(io::Error),
}

/// Why a workflow could not be checked.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The settings can't be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The request can't be carried out, or the box not be asked.
    #[error(transparent)]
    Execute(#[from] ExecuteError),
}

/// Finds out what would become of a request, without a service.
///
/// # Errors
/// Says in one sentence why that can't be found out.
pub async fn check(config: &Config, request: ExecuteRequest) -> Result<DryRun, CheckError> {
    config.check().map_err(StartError::from)?;
    let roots = config.file_roots().map_err(StartError::from)?;
    let pool = Pool::new(config.ssh(&roots)).map_err(StartError::from)?;
    let checked = runner::dry_run(request, &config.runner(&roots), &pool).await;
    pool.close_all().await;
    Ok(checked?)
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    runner: Runner,
    server: JoinHandle<()>,
    writer: JoinHandle<()>,
    stop_server: CancellationToken,
    stop_writer: CancellationToken,
}

impl Service {
    /// Opens the state, takes up what was left unfinished, and listens. Everything that can fail does so before a
    /// workflow is touched.
    ///
    /// # Errors
    /// Says in one sentence what can't be used.
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        config.check()?;
        let http = config.http()?;
        let roots = config.file_roots()?;
        let serve = within(config.serve(), raise_descriptor_limit());
        let address = config.server.bind;
        let listener = http::listen(address).map_err(|source| StartError::Bind { address, source })?;
        let address = listener.local_addr().map_err(|source| StartError::Bind { address, source })?;
        let pool = Pool::new(config.ssh(&roots))?;
        let stop_writer = CancellationToken::new();
        let Opened { store, warnings, writer } = Store::open(config.store(), stop_writer.clone()).await?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        if config.store().file.starts_with("/tmp") {
            tracing::info!(
                file = %config.store().file.display(),
                "the state file lies in /tmp, which a reboot may empty; set [state] file to keep it elsewhere"
            );
        }
        let runner = Runner::start(store.clone(), pool, config.runner(&roots));
        let stop_server = CancellationToken::new();
        let router = http::router(runner.clone(), store, http);
        let server = tokio::spawn(http::serve(listener, router, serve, stop_server.clone()));
        Ok(Self { address, runner, server, writer, stop_server, stop_writer })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting, leaves the prompts on the boxes running, writes the state. Takes at most a few seconds, also
    /// with hung connections.
    pub async fn stop(self) {
        self.stop_server.cancel();
        let stopped = tokio::time::timeout(STOP_TIMEOUT, async {
            self.runner.shutdown().await;
            self.server.await.ok();
        });
        if stopped.await.is_err() {
            tracing::warn!("not everything stopped in time");
        }
        self.stop_writer.cancel();
        if tokio::time::timeout(STOP_TIMEOUT, self.writer).await.is_err() {
            tracing::error!("the state could not be written in time");
        }
    }
}

/// A waiting workflow holds a handful of file descriptors, each client one, and the usual soft limit of 1024 is soon
/// used up. Returns how many there are then.
fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, limit = limit.current, "could not raise the limit of open files");
            limit.current
        }
    };
    current.and_then(|current| usize::try_from(current).ok()).unwrap_or(usize::MAX)
}

/// Leaves enough descriptors for the workflows themselves.
fn within(options: http::ServeOptions, descriptors: usize) -> http::ServeOptions {
    let most = descriptors.saturating_sub(FOR_WORKFLOWS).max(descriptors / 4);
    if options.max_connections > most {
        tracing::warn!(
            connections = most,
            descriptors,
            "fewer connections than [server] max_connections: too few file descriptors"
        );
    }
    http::ServeOptions { max_connections: options.max_connections.min(most), ..options }
}

/// Resolves at SIGINT (Ctrl-C), SIGTERM, or SIGHUP (the terminal was closed).
///
/// # Errors
/// When signals can't be received.
pub async fn stop_signal() -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(StartError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(StartError::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
