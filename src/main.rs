//! The command line.

mod cli;

use std::{io, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use comfy_remote::{
    app::{self, Service},
    config::{self, Config},
    telemetry,
    text::escaped,
};
use tokio::runtime::Runtime;

/// Runs ComfyUI workflows on rented GPU machines over SSH, and never loses one.
#[derive(Debug, Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service (the default).
    Serve(ServeArgs),
    /// Check a workflow against a box, without running anything.
    ///
    /// Ends with 0 if it would run, 1 if not, 2 if that could not be found out.
    Check(cli::CheckArgs),
    /// Convert a workflow in UI format to the API format, which goes to standard output.
    Convert(cli::ConvertArgs),
    /// Run an example workflow against a sandbox that stands in for the GPU machine.
    #[cfg(feature = "sandbox")]
    Demo(DemoArgs),
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// The configuration file [default: ./config.toml, if there is one].
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Where to listen, in place of [server] bind.
    #[arg(long, value_name = "ADDR", value_parser = config::socket_address)]
    bind: Option<SocketAddr>,
}

#[cfg(feature = "sandbox")]
#[derive(Debug, clap::Args)]
struct DemoArgs {
    /// End after the run instead of serving until Ctrl-C.
    #[arg(long)]
    once: bool,
    /// Where the output lands.
    #[arg(long, value_name = "FOLDER", default_value = "comfy-remote-demo")]
    output: PathBuf,
    /// Where to listen.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0", value_parser = config::socket_address)]
    bind: SocketAddr,
}

/// How long blocking work, such as reading from a file system that hangs, may hold up the end.
const LINGER: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let ended = runtime.block_on(run(cli));
        runtime.shutdown_timeout(LINGER);
        ended
    });
    match ended {
        Ok(code) => code,
        Err(error) => {
            say(&format!("comfy-remote: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode, Box<dyn std::error::Error>> {
    match cli.command {
        Some(Command::Check(args)) => return Ok(check(&args).await),
        Some(Command::Convert(args)) => cli::convert(&args, &mut io::stdout().lock(), &mut io::stderr().lock())?,
        None => serve(cli.serve).await?,
        Some(Command::Serve(args)) => serve(args).await?,
        #[cfg(feature = "sandbox")]
        Some(Command::Demo(args)) => demo(args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn check(args: &cli::CheckArgs) -> ExitCode {
    cli::check(args, &mut io::stdout(), &mut io::stderr()).await.unwrap_or_else(|error| {
        say(&format!("comfy-remote: the result could not be written: {error}"));
        ExitCode::from(cli::NOT_CHECKED)
    })
}

async fn serve(args: ServeArgs) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::load(args.config.as_deref())?;
    if let Some(bind) = args.bind {
        config.server.bind = bind;
    }
    let _flush = telemetry::init(&config.log)?;
    let service = Service::start(&config).await?;
    say(&format!("comfy-remote is listening on http://{}", service.address()));
    app::stop_signal().await?;
    service.stop().await;
    Ok(())
}

#[cfg(feature = "sandbox")]
async fn demo(args: DemoArgs) -> Result<(), Box<dyn std::error::Error>> {
    comfy_remote::demo::run(comfy_remote::demo::Options { once: args.once, output: args.output, bind: args.bind })
        .await?;
    Ok(())
}

#[expect(clippy::print_stderr, reason = "the one line that a person or a script waits for")]
fn say(line: &str) {
    eprintln!("{}", escaped(line));
}
