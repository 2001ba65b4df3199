//! Logging: to standard error, and if so configured to a file a day.
//!
//! An event is one line, whatever foreign text is part of it: nobody writes lines of their own, or commands for a terminal.

use std::io;

use thiserror::Error;
use tracing_appender::{non_blocking::WorkerGuard, rolling};
use tracing_subscriber::{EnvFilter, Layer, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

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
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(Lines { writer, ansi }).with_target(false);
    match format {
        LogFormat::Text => layer.with_ansi(ansi).boxed(),
        LogFormat::Json => layer.with_ansi(false).json().flatten_event(true).boxed(),
    }
}

/// Makes writers that keep each event on its line.
struct Lines<W> {
    writer: W,
    /// Colours are wanted. What else a terminal could be told to do is not.
    ansi: bool,
}

struct Line<W> {
    writer: W,
    ansi: bool,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for Lines<W> {
    type Writer = Line<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line { writer: self.writer.make_writer(), ansi: self.ansi }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        Line { writer: self.writer.make_writer_for(meta), ansi: self.ansi }
    }
}

impl<W: io::Write> io::Write for Line<W> {
    /// Takes an event whole, as the subscriber hands it over.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.writer.write_all(on_one_line(&String::from_utf8_lossy(event), self.ansi).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// An event with every control character written out, but for the line break at its end and colours.
fn on_one_line(event: &str, ansi: bool) -> String {
    let (text, end) = event.strip_suffix('\n').map_or((event, ""), |text| (text, "\n"));
    let mut line = String::with_capacity(event.len());
    for (at, c) in text.char_indices() {
        let is_harmless = !c.is_control() || c == '\t' || (ansi && is_colour(&text[at..]));
        if is_harmless { line.push(c) } else { line.extend(c.escape_default()) }
    }
    line + end
}

/// Whether a text begins with a command for a colour, such as `ESC[1;31m`.
fn is_colour(text: &str) -> bool {
    let numbers =
        text.strip_prefix("\u{1b}[").map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';'));
    numbers.is_some_and(|end| end.starts_with('m'))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex, PoisonError},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn foreign_text_begins_no_line_and_commands_no_terminal() {
        for (format, ansi) in [(LogFormat::Text, false), (LogFormat::Text, true), (LogFormat::Json, false)] {
            let (memory, evil) = (Memory::default(), "a\nINFO all is well\r\u{1b}[2J\u{9b}31m\u{7}\0");
            let writer = memory.clone();
            let subscriber = tracing_subscriber::registry().with(layer(format, move || writer.clone(), ansi));
            tracing::subscriber::with_default(subscriber, || {
                tracing::error!(text = evil, shown = %evil, debug = ?evil, "the box said: {evil}");
            });
            let log = String::from_utf8(memory.0.lock().unwrap_or_else(PoisonError::into_inner).clone());
            let log = log.unwrap_or_default();
            assert_eq!(log.lines().count(), 1, "{log:?}");
            let text = log.trim_end_matches('\n');
            assert!(!text.contains("\u{1b}[2J") && !text.contains('\u{9b}') && !text.contains('\r'), "{log:?}");
            assert!(ansi || !text.contains(char::is_control), "{log:?}");
            assert!(log.ends_with('\n') && log.contains("all is well"), "{log:?}");
        }
    }
}
