//! Hundreds of workflows one after another: what they hold is given back.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use comfy_remote::sandbox::{Sandbox, SandboxOptions};

use crate::{
    graphs::{self, tag},
    sandbox_stage::{PATIENCE, Stage},
    support::service::{Service, Vitals},
};

/// Until connections and buffers have the size that they keep.
const WARM_UP: usize = 40;
const WORKFLOWS: usize = 160;
const AT_ONCE: usize = 8;

/// A thread that waits for blocking work ends after ten seconds, and so does a kept HTTP connection.
const REST: Duration = Duration::from_secs(12);

/// The service keeps SFTP sessions for the next file, and not more than these.
const SFTP_SESSIONS: usize = 8;

/// What a workflow on record may cost in memory, with the slack of the allocator: its state is of a few kilobytes.
const KIB_PER_RECORD: usize = 48;

/// What the service and the sandbox hold for the service.
#[derive(Debug, Clone, Copy)]
struct Held {
    service: Vitals,
    forwards: usize,
    sftp_sessions: usize,
    sockets: usize,
}

impl Held {
    fn by(stage: &Stage) -> Self {
        Self {
            service: stage.service.vitals(),
            forwards: stage.sandbox.forwards(),
            sftp_sessions: stage.sandbox.sftp_sessions(),
            sockets: stage.sandbox.engine().sockets(),
        }
    }

    /// Memory aside, which records need.
    fn is_within(&self, other: &Self) -> bool {
        self.service.descriptors <= other.service.descriptors
            && self.service.threads <= other.service.threads
            && self.forwards <= other.forwards
            && self.sftp_sessions <= SFTP_SESSIONS
            && self.sockets <= other.sockets
    }

    /// What is held when nothing more is given back.
    async fn at_rest(stage: &Stage, enough: impl Fn(&Self) -> bool) -> Self {
        let begin = std::time::Instant::now();
        loop {
            let held = Self::by(stage);
            let rested = begin.elapsed();
            if (rested >= REST && enough(&held)) || rested >= REST * 3 {
                return held;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

#[tokio::test]
async fn hundreds_of_workflows_leave_nothing_behind() {
    let settings =
        [("limits.max_running_per_box", i64::try_from(AT_ONCE).unwrap().into()), ("log.level", "info".into())];
    let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
    let stage = Stage { sandbox, service: Service::start(&settings) };
    complete(&stage, WARM_UP).await;
    let before = Held::at_rest(&stage, |held| held.forwards == 0).await;
    complete(&stage, WORKFLOWS).await;
    let after = Held::at_rest(&stage, |held| held.is_within(&before)).await;

    assert_eq!(before.forwards, 0, "{before:?}");
    assert!(after.is_within(&before), "before: {before:?}\nafter: {after:?}");
    let growth = after.service.rss_kib.saturating_sub(before.service.rss_kib);
    assert!(growth <= WORKFLOWS * KIB_PER_RECORD, "{growth} KiB more for {WORKFLOWS} workflows");
    assert_eq!(stage.sandbox.engine().submissions(), WARM_UP + WORKFLOWS);
    nothing_is_left_over(&stage);
}

/// Runs so many short workflows, a few at a time, since the rest waits in line. Each brings a picture there and one back.
async fn complete(stage: &Stage, count: usize) {
    let client = &stage.service.client();
    let mut ids = Vec::new();
    for _ in 0..count {
        let tag = tag();
        let picture = stage.service.folder().join(format!("{tag}.png"));
        image::RgbImage::from_pixel(16, 16, image::Rgb([1, 2, 3])).save(&picture).unwrap();
        let mut request = stage.request(&graphs::invert(&tag, &format!("{tag}.png")));
        request["input_images"] = vec![picture.to_str().unwrap()].into();
        ids.push(client.accepted(&request).await);
    }
    for id in &ids {
        client.wait_for_status(id, "completed", PATIENCE * 3).await;
    }
}

fn nothing_is_left_over(stage: &Stage) {
    let all = WARM_UP + WORKFLOWS;
    let state = stage.service.state_file();
    let beside = names(state.parent().unwrap());
    let expected = ["state.json", "state.json.graphs", "state.json.lock"];
    assert_eq!(beside, expected.map(str::to_owned).into());
    assert_eq!(names(&state.with_file_name("state.json.graphs")).len(), all);
    let pictures = |folder: &Path| {
        let names = names(folder);
        let stray: Vec<_> = names.iter().filter(|name| name.starts_with('.') || !name.ends_with(".png")).collect();
        assert!(stray.is_empty(), "{}: {stray:?}", folder.display());
        names.len()
    };
    for folder in [stage.sandbox.input_dir(), stage.sandbox.output_dir(), &stage.service.output_dir()] {
        assert_eq!(pictures(folder), all, "{}", folder.display());
    }
    // Just the mark by which a start of ComfyUI is known again.
    let temporary = names(stage.sandbox.temp_dir());
    assert_eq!(temporary, BTreeSet::from(["comfy-remote-server-mark.txt".to_owned()]));
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
