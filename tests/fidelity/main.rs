#![cfg(feature = "sandbox")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
//! Holds the sandbox to what real ComfyUI servers said.
//!
//! Every recorded situation that the sandbox supports is replayed on it, and all messages, answers and history entries
//! must be equal once ids, times and counters are taken out (`normal`). With `COMFYUI_URL` set to a real ComfyUI that
//! has the rig nodes, the same situations are replayed on both and compared side by side, and it judges the prompts that
//! are made from files in UI format (`conversion`).
//!
//! Known deviations are in [`forgive`], each with its reason; nothing else is ignored.

// Most of it serves the tests of the conversion itself.
#[allow(dead_code)]
#[path = "../conversion/cases.rs"]
mod cases;
mod conversion;
mod faults;
mod normal;
mod reach;
mod replay;
mod server;
mod special;
mod trace;

use comfy_remote::sandbox::Version;
use normal::{Recording, assert_same};
use serde_json::{Value, json};
use server::Server;
use trace::Trace;

const OCTOBER: &str = "comfyui-0.3.64";
const NOVEMBER: &str = "comfyui-0.3.75-pypi";

fn version_of(server: &str) -> Version {
    match server {
        OCTOBER => Version::V0_3_64,
        NOVEMBER => Version::V0_3_75,
        other => panic!("no version for {other}"),
    }
}

/// Compares the sandbox with a recording.
async fn check(server: &'static str, name: &'static str) {
    let trace = Trace::load(server, name);
    let sandbox = Server::sandbox(version_of(server)).await;
    let mut got = replay::replay(&trace, &sandbox).await;
    let mut expected = replay::recorded(&trace);
    forgive(&trace, &mut expected, &mut got);
    assert_same(&format!("{server}/{name}"), &expected, &got);
    sandbox.stop().await;
}

/// Every deviation we know of.
fn forgive(trace: &Trace, expected: &mut Recording, got: &mut Recording) {
    // Not a deviation: the recorder left states out of the longest file.
    if trace.is_thinned() {
        for recording in [&mut *expected, &mut *got] {
            recording.drop_messages(|message| message["type"] == "progress_state");
        }
    }
    // Not a deviation: how many steps pass before a request arrives depends on the machine.
    if ACTS_DURING_STEPS.contains(&trace.name) {
        for recording in [&mut *expected, &mut *got] {
            recording.drop_messages(is_step);
        }
    }
    // Not a deviation: the second prompt may arrive before or after the worker took the first, which changes a count.
    // What deleting sends is tested beside the queue.
    if trace.name == "x_cancel_pending" {
        for recording in [&mut *expected, &mut *got] {
            recording.drop_messages(|message| message["type"] == "status" && message["data"]["sid"].is_null());
        }
    }
    // Without the `jpeg` feature of the image crate, previews are PNG.
    if !image::ImageFormat::Jpeg.writing_enabled() {
        for recording in [&mut *expected, &mut *got] {
            recording.each_message(|message| {
                if message["type"] == "binary" {
                    *message = json!({"type": "binary", "event": message["event"]});
                }
            });
        }
    }
}

/// Situations in which the client does something while a node takes steps.
const ACTS_DURING_STEPS: [&str; 6] =
    ["x_interrupt", "x_cancel_pending", "x_two_sockets", "x_reconnect", "x_priority", "x_prompt_id"];

/// A step of a stepping node, with or without a picture.
fn is_step(message: &Value) -> bool {
    let nodes = message["data"]["nodes"].as_object();
    let steps = |node: &Value| node["state"] == "running" && node["max"].is_u64();
    message["type"] == "progress" || message["type"] == "binary" || nodes.is_some_and(|nodes| nodes.values().any(steps))
}

macro_rules! recorded {
    ($module:ident = $server:ident: $($name:ident)*) => {
        #[allow(non_snake_case)]
        mod $module {
            /// The situations, under the names of their files.
            pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::check(super::$server, stringify!($name)).await;
                }
            )*
        }
    };
}

recorded! { october = OCTOBER:
    a_invert b_slow b2_slow_previews c_fail_mid c2_fail_late
    d1_missing_input d2_unknown_node d3_no_outputs d4_missing_file d5_bad_value d6_type_mismatch d7_partly_valid
    d8_dangling_link d9_no_class_type
    e_preview f_batch g_subfolders h_cached i_chain100 j4_text k1_oom_torch k2_oom_python l_block m_mixed n_big_image
    x_rerun_cached x_interrupt x_cancel_pending x_two_sockets x_reconnect x_no_client_id x_prompt_id x_upload
    x_priority x_previews_True x_previews_False x_previews_None
}

recorded! { november = NOVEMBER:
    a_invert b_slow c_fail_mid d1_missing_input d7_partly_valid k1_oom_torch
    x_two_sockets x_previews_True x_previews_False x_previews_None
}

/// Situations for which there is no recording of the server that `COMFYUI_URL` names are compared side by side.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn side_by_side() {
    let Some(real) = Server::real().await else {
        println!("skipped: set COMFYUI_URL to compare with a real ComfyUI");
        return;
    };
    let sandbox = Server::sandbox(version_of(NOVEMBER)).await;
    special::compare_answers(&sandbox, &real).await;
    special::compare_runs(&sandbox, &real).await;
    let october = october::NAMES.iter().map(|name| (OCTOBER, *name));
    let november = november::NAMES.iter().map(|name| (NOVEMBER, *name));
    for (server, name) in october.chain(november) {
        println!("side by side: {server}/{name}");
        let trace = Trace::load(server, name);
        let mut expected = replay::replay(&trace, &real).await;
        let mut got = replay::replay(&trace, &sandbox).await;
        forgive(&trace, &mut expected, &mut got);
        if expected.has_several_outputs() {
            expected.forget_order();
            got.forget_order();
        }
        assert_same(&format!("side by side: {name}"), &expected, &got);
    }
    sandbox.stop().await;
}
