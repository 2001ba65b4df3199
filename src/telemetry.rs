//! Logging: to standard error, and if so configured to a file a day.

use thiserror::Error;
use tracing_appender::{non_blocking::WorkerGuard, rolling};
use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{Log, LogFormat, LogLevel},
    home::expand_home,
};

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The folder for log files can't be used.
    #[error("log folder {folder} cannot be used: {source}")]
    Folder {
        /// Which one.
        folder: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Writes out what is left when it is dropped.
#[derive(Debug)]
pub struct Flush {
    _file: Option<WorkerGuard>,
}

/// Sets up logging for the whole process. The level is that of this program; libraries only warn, unless the level
/// is `debug` or `trace`. `RUST_LOG`, if set, takes the level's place.
///
/// # Errors
/// When the folder for log files can't be used.
pub fn init(log: &Log) -> Result<Flush, TelemetryError> {
    let (file, guard) = match &log.folder {
        Some(folder) => {
            let folder = expand_home(folder);
            let failed = |source: Box<dyn std::error::Error + Send + Sync>| TelemetryError::Folder {
                folder: folder.display().to_string(),
                source,
            };
            std::fs::create_dir_all(&folder).map_err(|error| failed(error.into()))?;
            let appender = rolling::Builder::new()
                .rotation(rolling::Rotation::DAILY)
                .filename_prefix("comfy-remote")
                .filename_suffix("log")
                .build(&folder)
                .map_err(|error| failed(error.into()))?;
            let (writer, guard) = tracing_appender::non_blocking(appender);
            (Some(layer(log.format, writer, false)), Some(guard))
        }
        None => (None, None),
    };
    tracing_subscriber::registry()
        .with(filter(log.level))
        .with(layer(log.format, std::io::stderr, std::io::IsTerminal::is_terminal(&std::io::stderr())))
        .with(file)
        .init();
    Ok(Flush { _file: guard })
}

fn filter(level: LogLevel) -> EnvFilter {
    // russh warns of every connection that ends, which is told with more sense from here.
    let directives = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn,russh=error",
        LogLevel::Info => "warn,russh=error,comfy_remote=info",
        LogLevel::Debug => "info,comfy_remote=debug",
        LogLevel::Trace => "info,comfy_remote=trace",
    };
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives))
}

fn layer<S, W>(format: LogFormat, writer: W, ansi: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    match format {
        LogFormat::Text => layer.with_ansi(ansi).boxed(),
        LogFormat::Json => layer.with_ansi(false).json().flatten_event(true).boxed(),
    }
}
