//! Hundreds of workflows while everything goes wrong at random, and the reckoning afterwards.
//!
//! `cargo run --release --example soak -- --minutes 15` starts the built service as a process, the sandbox as the box,
//! and a proxy between them that cuts, stalls and swallows. What it checks is in `docs/SOAK.md`. It ends with exit code
//! 0 only when everything holds; else it says what does not, and with which seed, and leaves its folder for a look.

#![allow(clippy::print_stdout, reason = "a program that reports")]

mod case;
mod chaos;
mod client;
mod figures;
mod look;
mod report;
mod run;
mod service;
mod verdict;

use std::{
    env,
    error::Error,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use comfy_remote::sandbox::{ChaosProxy, Sandbox, SandboxOptions};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use case::Case;
use chaos::Chaos;
use client::Client;
use figures::Watch;
use report::Violations;
use run::{Stage, TO_THE_END};
use service::Service;

/// Runs workflows while faults are injected at random, and checks that none is lost.
#[derive(Debug, Parser)]
struct Args {
    /// How long workflows are started and faults caused.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Of the generator of workflows and faults [default: drawn].
    #[arg(long)]
    seed: Option<u64>,
    /// How many workflows are under way at once.
    #[arg(long, default_value_t = 16)]
    workflows_at_once: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    println!("seed {seed}, {} minutes, {} workflows at once", args.minutes, args.workflows_at_once);
    let ended = tokio::select! {
        ended = soak(&args, seed) => ended,
        _ = comfy_remote::app::stop_signal() => Err("it was stopped".into()),
    };
    match ended {
        Ok(true) => {
            println!("everything holds (seed {seed})");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("not everything holds: --seed {seed}");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("the soak broke off: {error}: --seed {seed}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether everything holds.
async fn soak(args: &Args, seed: u64) -> Result<bool, Box<dyn Error>> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let folder = tempfile::Builder::new().prefix("comfy-remote-soak-").tempdir()?;
    let sandbox =
        Arc::new(Sandbox::start(SandboxOptions { root: Some(folder.path().join("box")), ..Default::default() }).await?);
    let proxy = Arc::new(ChaosProxy::start(SocketAddr::from((Ipv4Addr::LOCALHOST, sandbox.ssh_port()))).await?);
    let mut service = Service::new(binary()?, folder.path())?;
    service.launch(rng.bool()).await?;
    let (output_dir, state_file) = (service.output_dir(), service.state_file());
    let client = Client::new(service.condition())?;
    let service = Arc::new(Mutex::new(service));

    let watch = Watch::begin(service.clone()).await?;
    let ssh_connection =
        format!("ssh -p {} -i {} {}@127.0.0.1", proxy.port(), sandbox.client_key().display(), sandbox.ssh_user());
    let stage = Arc::new(Stage {
        client,
        chaos: Chaos { service, sandbox, proxy, incidents: std::sync::Mutex::default() },
        violations: Violations::default(),
        cases: folder.path().join("cases"),
        ssh_connection,
        runs: std::sync::Mutex::default(),
    });

    work(args, &stage, &watch, &mut rng).await?;
    verdict::judge(&stage, &output_dir, &state_file);
    watch.settle(&stage, &state_file).await?;
    watch.print(&stage, args.minutes);

    let found = stage.violations.found();
    println!("{} things are not as they should be", found.count);
    found.texts.iter().for_each(|text| println!("- {text}"));
    let holds = found.count == 0 && !stage.runs().is_empty();
    if !holds {
        println!("graphs, outputs, log and state are in {}", folder.keep().display());
    }
    Ok(holds)
}

/// Starts workflows and causes faults until the time is over, then lets everything come to its end in peace.
async fn work(args: &Args, stage: &Arc<Stage>, watch: &Watch, rng: &mut fastrand::Rng) -> Result<(), Box<dyn Error>> {
    let (lasting, quiet) = (CancellationToken::new(), CancellationToken::new());
    let workflows = TaskTracker::new();
    let time = Duration::from_secs_f64(args.minutes * 60.0);
    let (mut of_chaos, of_looks, mut of_cases) = (rng.fork(), rng.fork(), rng.fork());
    let begin = Instant::now();

    let chaos = async { stage.chaos.reign(&mut of_chaos, &lasting, &quiet).await.map_err(Box::<dyn Error>::from) };
    let clock = async {
        // In the second half the service is one process, so that what it loses adds up.
        sleep(time / 2).await;
        lasting.cancel();
        watch.last_process_begins().await;
        sleep(time / 2).await;
        quiet.cancel();
        Ok(())
    };
    let produce = async {
        let places = Arc::new(Semaphore::new(args.workflows_at_once));
        let mut number = 0;
        while begin.elapsed() < time {
            let place = places.clone().acquire_owned().await?;
            let (case, of_run) = (Case::draw(number, &mut of_cases), of_cases.fork());
            number += 1;
            let stage = stage.clone();
            workflows.spawn(async move {
                stage.perform(case, of_run).await;
                drop(place);
            });
        }
        workflows.close();
        Ok::<_, Box<dyn Error>>(())
    };
    let all = async {
        tokio::try_join!(chaos, clock, produce)?;
        println!("no more faults; waiting for the rest");
        if timeout(TO_THE_END, workflows.wait()).await.is_err() {
            stage.violations.add(format!("{} workflows have come to no end", workflows.len()));
        }
        Ok(())
    };
    tokio::select! {
        ended = all => ended,
        () = stage.look_back(of_looks) => Ok(()),
        () = watch.sample() => Ok(()),
    }
}

/// The service's binary beside this program, built anew if `cargo run` started it.
fn binary() -> Result<PathBuf, Box<dyn Error>> {
    let own = env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).ok_or("this program is in no folder of a build")?;
    let release = folder.file_name().is_some_and(|name| name == "release");
    let profile = if release { "--release" } else { "--profile=dev" };
    if let Some(cargo) = env::var_os("CARGO") {
        // With this example, since features of dependencies would differ without it, and be built once more.
        let mut build = std::process::Command::new(cargo);
        build.args(["build", "--quiet", profile, "--bin", "comfy-remote", "--example", "soak"]);
        if !build.current_dir(env!("CARGO_MANIFEST_DIR")).status()?.success() {
            return Err("the service could not be built".into());
        }
    }
    let binary = folder.join("comfy-remote");
    if binary.is_file() {
        return Ok(binary);
    }
    Err(format!("{} is missing; build it: cargo build {profile} --bin comfy-remote", binary.display()).into())
}
