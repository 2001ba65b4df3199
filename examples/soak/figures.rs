//! What the service holds, from beginning to end, and the figures of a soak.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use comfy_remote::sandbox::Direction;
use tokio::time::{Instant, sleep};

use crate::{
    run::Stage,
    service::{Service, Vitals},
    verdict::incidents_by_kind,
};

/// The service closes connections that nobody uses after a minute to 75 seconds; threads for blocking work end sooner.
const AT_REST: Duration = Duration::from_secs(120);

/// What may be open at rest beyond what was open before the first workflow.
const MORE_DESCRIPTORS: usize = 0;
/// The files are looked at every few seconds, so threads for blocking work come and go at rest, too.
const MORE_THREADS: usize = 2;

/// Memory that the allocator may keep beyond what was in use before the first workflow.
const MORE_RSS_KIB: usize = 32 * 1024;

/// Workflows on record may take this many times the memory of the state file that lists them.
const RECORD_FACTOR: usize = 4;

pub(crate) struct Watch {
    service: Arc<tokio::sync::Mutex<Service>>,
    known: Mutex<Known>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Known {
    fresh: Vitals,
    /// When the process that lives to the end was left alone.
    halfway: Vitals,
    highest: Vitals,
    at_rest: Vitals,
    rested: Duration,
    state_kib: usize,
}

impl Watch {
    /// Measures a service that has done nothing yet.
    pub(crate) async fn begin(service: Arc<tokio::sync::Mutex<Service>>) -> io::Result<Self> {
        // Threads of the start end within seconds.
        sleep(Duration::from_secs(12)).await;
        let fresh = service.lock().await.vitals()?;
        Ok(Self { service, known: Mutex::new(Known { fresh, ..Known::default() }) })
    }

    /// Measures on and on.
    pub(crate) async fn sample(&self) {
        loop {
            sleep(Duration::from_millis(500)).await;
            let Ok(service) = self.service.try_lock() else { continue };
            let Ok(now) = service.vitals() else { continue };
            let highest = &mut self.known().highest;
            highest.descriptors = highest.descriptors.max(now.descriptors);
            highest.threads = highest.threads.max(now.threads);
            highest.rss_kib = highest.rss_kib.max(now.rss_kib);
            highest.peak_rss_kib = highest.peak_rss_kib.max(now.peak_rss_kib);
        }
    }

    /// Measures the process that lives to the end.
    pub(crate) async fn last_process_begins(&self) {
        let now = self.service.lock().await.vitals().unwrap_or_default();
        self.known().halfway = now;
    }

    /// Waits until the service holds no more than before the first workflow, and reports what it never lets go.
    pub(crate) async fn settle(&self, stage: &Stage, state_file: &Path) -> io::Result<()> {
        let began = Instant::now();
        let mut left = vec![];
        while began.elapsed() < AT_REST {
            left = self.more_than_fresh(stage).await?;
            if left.is_empty() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        left.into_iter().for_each(|what| stage.violations.add(what));

        let at_rest = self.service.lock().await.vitals()?;
        let state_kib = usize::try_from(fs::metadata(state_file)?.len() / 1024).unwrap_or(usize::MAX);
        let fresh = {
            let mut known = self.known();
            (known.at_rest, known.rested, known.state_kib) = (at_rest, began.elapsed(), state_kib);
            known.fresh
        };
        let allowed = fresh.rss_kib + MORE_RSS_KIB + RECORD_FACTOR * state_kib;
        if at_rest.rss_kib > allowed {
            stage
                .violations
                .add(format!("{} KiB of memory are in use at rest, {allowed} are accounted for", at_rest.rss_kib));
        }
        Ok(())
    }

    async fn more_than_fresh(&self, stage: &Stage) -> io::Result<Vec<String>> {
        let now = self.service.lock().await.vitals()?;
        let fresh = self.known().fresh;
        let (sandbox, proxy) = (&stage.chaos.sandbox, &stage.chaos.proxy);
        let mut counts = vec![
            ("file descriptors", now.descriptors, fresh.descriptors + MORE_DESCRIPTORS),
            ("threads", now.threads, fresh.threads + MORE_THREADS),
        ];
        if now.descriptors <= fresh.descriptors + MORE_DESCRIPTORS {
            // The service has let go of everything. The far side can't know of connections that were lost without a word.
            sandbox.faults().cut_ssh();
            counts.push(("SSH connections of the proxy", proxy.open(), 0));
            counts.push(("forwarded connections on the box", sandbox.forwards(), 0));
            counts.push(("SFTP sessions on the box", sandbox.sftp_sessions(), 0));
            counts.push(("websockets on the box", sandbox.engine().sockets(), 0));
        }
        let more = counts.into_iter().filter(|(_, count, allowed)| count > allowed);
        Ok(more.map(|(what, count, allowed)| format!("{count} {what} at rest, {allowed} expected")).collect())
    }

    pub(crate) fn print(&self, stage: &Stage, minutes: f64) {
        let known = *self.known();
        println!("\nworkflows by end");
        let runs = stage.runs();
        let mut ends: BTreeMap<String, usize> = BTreeMap::new();
        for run in runs.iter() {
            let code = run.progress()["error_code"].as_str().map(|code| format!(" ({code})")).unwrap_or_default();
            let again = if run.attempts() > 1 { ", second attempt" } else { "" };
            *ends.entry(format!("{}{code}{again}", run.status())).or_default() += 1;
        }
        ends.iter().for_each(|(end, count)| println!("  {count:>6}  {end}"));
        println!("  {:>6}  together, in {minutes} minutes", runs.len());

        let mut times: Vec<Duration> =
            runs.iter().filter_map(|run| Some(run.over?.duration_since(run.asked))).collect();
        println!(
            "  {:>6.1?}  p50 from the request to the end, {:.1?} p90, {:.1?} at most",
            percentile(&mut times, 50),
            percentile(&mut times, 90),
            percentile(&mut times, 100)
        );

        println!("faults by kind, and how long they lasted together");
        for (fault, (count, seconds)) in incidents_by_kind(stage) {
            println!("  {count:>6}  {fault:?}, {seconds:.1} s");
        }
        let mut latencies = stage.client.latencies().clone();
        println!("requests");
        println!("  {:>6}  sent", stage.client.requests());
        println!("  {:>6.1?}  p50 of an undisturbed look at the progress", percentile(&mut latencies, 50));
        println!("  {:>6.1?}  p99", percentile(&mut latencies, 99));

        println!("the box");
        let (sandbox, proxy) = (&stage.chaos.sandbox, &stage.chaos.proxy);
        println!("  {:>6}  prompts accepted, {} ran", sandbox.engine().submissions(), sandbox.engine().runs().len());
        println!("  {:>6}  SSH connections", proxy.accepted());
        let mib = |direction| proxy.passed(direction) as f64 / 1_048_576.0;
        println!("  {:>6.1}  MiB up, {:.1} MiB down", mib(Direction::Up), mib(Direction::Down));

        println!("the service            descriptors  threads  RSS (MiB)");
        let rows = [
            ("fresh", known.fresh),
            ("halfway", known.halfway),
            ("highest", known.highest),
            ("at rest", known.at_rest),
        ];
        for (name, vitals) in rows {
            println!(
                "  {name:<21}{:>11}{:>9}{:>11.1}",
                vitals.descriptors,
                vitals.threads,
                vitals.rss_kib as f64 / 1024.0
            );
        }
        println!("  at rest after {:.0} s; the state file has {} KiB\n", known.rested.as_secs_f64(), known.state_kib);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So many of a hundred took no longer than this.
fn percentile(times: &mut [Duration], hundredths: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * hundredths / 100).copied().unwrap_or_default()
}
