//! The disk under the state is full, or becomes read-only, and is well again later.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use comfy_remote::sandbox::{Sandbox, SandboxOptions};
use reqwest::StatusCode;
use serde_json::json;

use crate::{
    graphs::{self, tag},
    sandbox_stage::Stage,
    support::{self, service::Service},
};

/// A small file system in memory; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` after saying that the test is skipped.
    fn mount(folder: &Path) -> Option<Self> {
        let mounted = mount(&["-t", "tmpfs", "-o", "size=256k", "none"], folder);
        if !mounted {
            support::skip("mount", "needs root, or sudo without a password, and the right to mount a tmpfs");
        }
        mounted.then(|| Self(folder.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Leaves not a byte.
    fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        let mut block = vec![7; 4096];
        while !block.is_empty() {
            if filler.write_all(&block).is_err() {
                block.truncate(block.len() / 2);
            }
        }
    }

    /// Hides it behind a read-only view of itself: the disk proper can't become read-only while the lock is open.
    fn protect(&self) {
        let itself = self.0.to_str().unwrap();
        assert!(mount(&["--bind", itself], &self.0) && mount(&["-o", "remount,bind,ro"], &self.0), "a view");
    }

    fn unprotect(&self) {
        assert!(as_root("umount", &[], &self.0), "umount");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        as_root("umount", &["--lazy"], &self.0);
    }
}

fn mount(arguments: &[&str], folder: &Path) -> bool {
    as_root("mount", arguments, folder)
}

fn as_root(program: &str, arguments: &[&str], folder: &Path) -> bool {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new(program)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", program]);
        sudo
    };
    command.args(arguments).arg(folder).output().is_ok_and(|ended| ended.status.success())
}

/// A stage whose state lies on a small disk.
async fn stage() -> Option<(Stage, SmallDisk)> {
    let mut service = Service::start(&[]);
    service.kill();
    let disk = SmallDisk::mount(service.state_file().parent().unwrap())?;
    service.launch();
    let sandbox = Sandbox::start(SandboxOptions::default()).await.unwrap();
    Some((Stage { sandbox, service }, disk))
}

/// While the disk refuses: one workflow runs and ends, one waits for its submission, a new one is refused.
async fn goes_on_and_heals(stage: &mut Stage, reason: &str, break_disk: impl Fn(), mend_disk: impl Fn()) {
    stage.healthy_again().await;
    let hold = stage.sandbox.engine().hold_at_step("2", 1);
    let running = stage.start(&graphs::slow(&tag(), 3, 1)).await;
    hold.reached().await;
    stage.sandbox.faults().stall_ssh(true);
    stage.sandbox.faults().cut_ssh();
    let waiting = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    break_disk();
    stage.sandbox.faults().stall_ssh(false);
    hold.release();
    stage.completed(&running).await;
    let (status, refused) = stage.service.client().execute(&stage.request(&graphs::slow(&tag(), 1, 1))).await;
    assert_eq!((status, &refused["success"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)), "{refused}");
    stage.sick_because(reason).await;
    let progress = stage.service.client().progress(&waiting).await;
    assert_eq!(progress["status"], "queued", "{progress:#}");
    assert!(!fs::read_to_string(stage.service.state_file()).unwrap().contains(r#""lifecycle":"completed""#));

    mend_disk();
    stage.completed(&waiting).await;
    stage.on_disk(r#""lifecycle":"completed""#).await;
    stage.healthy_again().await;
    assert_eq!(stage.sandbox.engine().submissions(), 2);
    stage.service.says("the state file is as it should be again").await;
}

#[tokio::test]
async fn a_full_disk_stops_no_run_and_heals() {
    let Some((mut stage, disk)) = stage().await else { return };
    let mend = || fs::remove_file(disk.filler()).unwrap();
    goes_on_and_heals(&mut stage, "the disk is full", || disk.fill(), mend).await;
    // A service that starts on a full disk goes on with what is there.
    disk.fill();
    stage.service.kill();
    stage.service.launch();
    stage.sick_because("the disk is full").await;
    assert_eq!(stage.service.client().state().await.1["state"]["status"], "completed");
    stage.service.kill();
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_stops_no_run_and_heals() {
    let Some((mut stage, disk)) = stage().await else { return };
    let (break_disk, mend) = (|| disk.protect(), || disk.unprotect());
    goes_on_and_heals(&mut stage, "the file system is read-only", break_disk, mend).await;
    stage.service.kill();
}

#[tokio::test]
async fn folders_that_take_nothing_more_show_before_anybody_is_refused() {
    let Some((mut stage, disk)) = stage().await else { return };
    let id = stage.start(&graphs::slow(&tag(), 1, 1)).await;
    stage.completed(&id).await;
    stage.healthy_again().await;
    let graphs = SmallDisk(PathBuf::from(format!("{}.graphs", stage.service.state_file().display())));
    for folder in [&disk, &graphs] {
        folder.protect();
        stage.sick_because("read-only").await;
        folder.unprotect();
        stage.healthy_again().await;
    }
    stage.service.kill();
}
