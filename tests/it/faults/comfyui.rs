//! The same with a real ComfyUI, where there is one: roads that break while three runs are in three phases, and a
//! ComfyUI that is killed or forgets.

use std::{
    fs,
    net::SocketAddr,
    num::NonZeroU64,
    path::Path,
    time::{Duration, Instant},
};

use comfy_remote::sandbox::{ChaosProxy, Direction};
use serde_json::{Value, json};

use crate::{
    far_end::{FarEnd, Kind},
    graphs::{self, tag},
    sandbox_stage::PATIENCE,
    support::{
        LOOK_EVERY,
        client::ApiClient,
        comfyui::RealComfyUi,
        service::Service,
        sshd::{HostKey, Sshd, SshdOptions},
    },
};

/// A loss is told within this time of ComfyUI's answering again.
const LOSS_IS_TOLD: Duration = Duration::from_secs(30);

/// A road on which many small files take a while.
const NARROW: Option<NonZeroU64> = NonZeroU64::new(40_000);

const FILES: u32 = 120;

async fn proxy_of(sshd: &Sshd) -> ChaosProxy {
    ChaosProxy::start(SocketAddr::from(([127, 0, 0, 1], sshd.port()))).await.unwrap()
}

fn quick_service(settings: &[(&str, toml::Value)]) -> Service {
    let quick =
        [("ssh.keepalive_s", 1.into()), ("ssh.connect_timeout_s", 2.into()), ("limits.max_running_per_box", 8.into())];
    Service::start(&[&quick, settings].concat())
}

/// The body of an execute request that takes the road through the proxy.
fn request_through(proxy: &ChaosProxy, sshd: &Sshd, comfyui: &RealComfyUi, folder: &Path, graph: &Value) -> Value {
    let file = folder.join(format!("{}.json", tag()));
    fs::write(&file, graph.to_string()).unwrap();
    json!({
        "ssh_connection": sshd.connection_through(proxy.port()),
        "workflow_file": file,
        "comfyui_port": comfyui.port,
        "comfyui_input_dir": comfyui.input_dir(),
        "comfyui_output_dir": comfyui.output_dir(),
    })
}

async fn in_phase(client: &ApiClient, id: &str, phase: &str) {
    client.wait_for(id, phase, PATIENCE * 2, |progress| progress["phase"] == phase).await;
}

async fn reconnecting(client: &ApiClient, id: &str) {
    let is_so = |progress: &Value| progress["connection"]["state"] == "reconnecting";
    client.wait_for(id, "reconnecting", PATIENCE * 2, is_so).await;
}

/// Many pictures of one run.
fn many(tag: &str) -> Value {
    let mut graph = graphs::batch(tag, FILES, &format!("{tag}/many"));
    graph["1"]["inputs"]["size"] = json!(256);
    graph
}

/// How many runs in ComfyUI's history belong to a workflow.
async fn runs(comfyui: &RealComfyUi, id: &str) -> usize {
    let history = comfyui.get("/history").await;
    let ours = |entry: &&Value| entry["prompt"][3]["comfy_remote"]["workflow_id"] == id;
    history.as_object().unwrap().values().filter(ours).count()
}

fn assert_outputs_are_as_on_the_box(done: &Value, count: usize) {
    let outputs = done["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), count, "{done:#}");
    for output in outputs {
        let read = |field: &str| fs::read(output[field].as_str().unwrap()).unwrap();
        assert!(read("local_path") == read("remote_path"), "the content differs: {output}");
    }
}

/// One run is downloading, one runs and one waits when it happens; it passes when all three have noticed.
async fn survived(happen: impl FnOnce(&mut Sshd, &ChaosProxy), pass: impl FnOnce(&mut Sshd, &ChaosProxy)) {
    let Some(mut far) = FarEnd::start(Kind::ComfyUi).await else { return };
    let (sshd, comfyui) = (far.sshd.as_mut().unwrap(), far.comfyui.as_ref().unwrap());
    let proxy = proxy_of(sshd).await;
    let service = quick_service(&[]);
    let client = service.client();
    let request = |graph: &Value| request_through(&proxy, sshd, comfyui, service.folder(), graph);
    let requests = [many(&tag()), graphs::slow(&tag(), 200, 100), graphs::slow(&tag(), 2, 10)].map(|g| request(&g));

    let downloading = client.accepted(&requests[0]).await;
    let sent = |progress: &Value| !matches!(progress["phase"].as_str(), Some("waiting" | "connecting" | "uploading"));
    client.wait_for(&downloading, "the submission", PATIENCE, sent).await;
    proxy.limit(Direction::Down, NARROW);
    let running = client.accepted(&requests[1]).await;
    in_phase(&client, &running, "running").await;
    let queued = client.accepted(&requests[2]).await;
    in_phase(&client, &queued, "queued").await;
    in_phase(&client, &downloading, "downloading").await;

    happen(sshd, &proxy);
    for id in [&downloading, &running, &queued] {
        reconnecting(&client, id).await;
    }
    pass(sshd, &proxy);
    proxy.limit(Direction::Down, None);
    for (id, files) in [(&downloading, FILES as usize), (&running, 1), (&queued, 1)] {
        let done = client.wait_for_status(id, "completed", PATIENCE * 3).await;
        assert_outputs_are_as_on_the_box(&done, files);
        assert_eq!((&done["attempt"], runs(comfyui, id).await), (&json!(1), 1), "{done:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sshd_killed() {
    survived(|sshd, _| sshd.stop(), |sshd, _| sshd.restart(HostKey::Same)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sshd_paused() {
    survived(|sshd, _| sshd.pause(), |sshd, _| sshd.resume()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn cut_and_refused() {
    let cut = |_: &mut Sshd, proxy: &ChaosProxy| {
        proxy.refuse(true);
        proxy.cut();
    };
    survived(cut, |_, proxy| proxy.refuse(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_drop() {
    survived(|_, proxy| proxy.drop_silently(true), |_, proxy| proxy.drop_silently(false)).await;
}

/// One start of ComfyUI serves all that becomes of lost runs: it takes long.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_comfyui_that_is_killed_or_forgets_has_lost_the_runs() {
    if !Sshd::available() {
        crate::support::skip("sshd", "no OpenSSH server is installed");
        return;
    }
    let Some(mut comfyui) = RealComfyUi::start_private().await else { return };
    let sshd = Sshd::start(SshdOptions::default());
    let proxy = proxy_of(&sshd).await;
    let (service, again) = (quick_service(&[]), quick_service(&[("limits.resubmit_lost", true.into())]));
    let (client, again_client) = (service.client(), again.client());
    let long = request_through(&proxy, &sshd, &comfyui, service.folder(), &graphs::slow(&tag(), 600, 100));
    let short = request_through(&proxy, &sshd, &comfyui, service.folder(), &graphs::slow(&tag(), 30, 100));

    let running = client.accepted(&long).await;
    in_phase(&client, &running, "running").await;
    let queued = client.accepted(&short).await;
    let wanted = again_client.accepted(&short).await;
    in_phase(&client, &queued, "queued").await;
    in_phase(&again_client, &wanted, "queued").await;

    comfyui.kill();
    for id in [&running, &queued] {
        reconnecting(&client, id).await;
    }
    comfyui.start().await;
    let answers = Instant::now();
    for id in [&running, &queued] {
        lost(&client, id, answers).await;
    }
    let done = again_client.wait_for_status(&wanted, "completed", PATIENCE).await;
    assert_eq!((&done["attempt"], runs(&comfyui, &wanted).await), (&json!(2), 1), "{done:#}");
    assert!(done["warnings"].to_string().contains("runs once more"), "{done:#}");
    assert_outputs_are_as_on_the_box(&done, 1);

    let other = request_through(&proxy, &sshd, &comfyui, service.folder(), &graphs::slow(&tag(), 30, 100));
    let forgotten = client.accepted(&other).await;
    in_phase(&client, &forgotten, "running").await;
    proxy.drop_silently(true);
    while !comfyui.prompts_in_line().await.is_empty() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let clear = reqwest::Client::new().post(format!("{}/history", comfyui.url)).json(&json!({"clear": true}));
    assert!(clear.send().await.unwrap().status().is_success());
    reconnecting(&client, &forgotten).await;
    proxy.drop_silently(false);
    lost(&client, &forgotten, Instant::now()).await;
    assert_eq!(comfyui.prompts_in_line().await, Vec::<String>::new());
}

async fn lost(client: &ApiClient, id: &str, since: Instant) {
    let failed = client.wait_for_end(id, PATIENCE).await;
    assert!(since.elapsed() < LOSS_IS_TOLD, "{:?}: {failed:#}", since.elapsed());
    assert_eq!((&failed["status"], &failed["error_code"]), (&json!("failed"), &json!("job_lost")), "{failed:#}");
    assert_eq!(failed["attempt"], 1);
}
