//! Looking before leaping: dry runs, parameters and seeds, conversion over HTTP.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    check::check,
    graphs::{self, tag},
    loopback,
    sandbox_stage::Stage,
    support::client::answer,
};

/// Loads a picture, takes some steps, saves it.
fn graph() -> Value {
    json!({
        "1": {"class_type": "LoadImage", "inputs": {"image": "photo.png"}, "_meta": {"title": "The photo"}},
        "2": {"class_type": "RigSlowSteps", "inputs": {"image": ["1", 0], "steps": 1, "step_ms": 1, "nonce": 1}, "_meta": {"title": "Steps"}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "sub/x"}, "_meta": {"title": "Save"}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "y"}, "_meta": {"title": "Save"}},
    })
}

fn photo(stage: &Stage) -> std::path::PathBuf {
    let photo = stage.service.folder().join("photo.png");
    fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/photo.png"), &photo).unwrap();
    photo
}

fn dry(stage: &Stage, graph: &Value) -> Value {
    let mut request = stage.request(graph);
    request["dry_run"] = json!(true);
    request["output_dir"] = json!(stage.service.folder().join("not made/out"));
    request
}

/// Every file below a folder.
fn listing(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { listing(&path) } else { BTreeSet::from([path.display().to_string()]) })
        .collect()
}

#[tokio::test]
async fn a_dry_run_tells_the_plan_and_leaves_nothing() {
    let stage = Stage::new().await;
    let (client, photo) = (stage.service.client(), photo(&stage));
    let mut request = dry(&stage, &graph());
    request["input_images"] = json!([photo]);
    let before = listing(stage.sandbox.input_dir().parent().unwrap());
    let (status, plan) = client.execute(&request).await;
    assert_eq!(status, StatusCode::OK, "{plan:#}");
    let output = stage.service.folder().join("not made/out");
    let node = |id: &str, class: &str, title: &str| json!({"node_id": id, "node_type": class, "title": title});
    let saves = |id: &str, folder: &Path| json!({"node_id": id, "node_type": "SaveImage", "folder": folder});
    assert_eq!(
        plan,
        json!({
            "success": true, "dry_run": true, "workflow_format": "api", "valid": true,
            "nodes": [node("1", "LoadImage", "The photo"), node("4", "SaveImage", "Save"), node("2", "RigSlowSteps", "Steps"),
                      node("3", "SaveImage", "Save")],
            "uploads": [{"local_path": photo, "remote_name": "photo.png", "bytes": fs::metadata(&photo).unwrap().len(),
                         "already_there": false}],
            "outputs": [saves("3", &output.join("sub")), saves("4", &output)],
            "findings": [],
        })
    );
    assert_eq!(listing(stage.sandbox.input_dir().parent().unwrap()), before);
    assert!(!output.parent().unwrap().exists());
    assert_eq!(client.state().await.1["state"], Value::Null);
    // Other content has the name: the plan tells the name that it would get.
    fs::write(stage.sandbox.input_dir().join("photo.png"), "other content").unwrap();
    let (_, plan) = client.execute(&request).await;
    let name = plan["uploads"][0]["remote_name"].as_str().unwrap();
    assert!(name.starts_with("photo_") && name.ends_with(".png"), "{plan:#}");
    fs::copy(&photo, stage.sandbox.input_dir().join("photo.png")).unwrap();
    let (_, plan) = client.execute(&request).await;
    assert_eq!(
        (&plan["uploads"][0]["remote_name"], &plan["uploads"][0]["already_there"]),
        (&json!("photo.png"), &json!(true))
    );
}

#[tokio::test]
async fn everything_wrong_comes_at_once_with_a_hint() {
    let stage = Stage::new().await;
    let mut graph = graph();
    graph["3"]["inputs"]["images"] = json!(["9", 0]);
    graph["5"] = json!({"class_type": "SaveImag", "inputs": {}});
    let request = dry(&stage, &graph);
    let (status, plan) = stage.service.client().execute(&request).await;
    assert_eq!((status, &plan["valid"]), (StatusCode::OK, &json!(false)), "{plan:#}");
    let codes: Vec<&Value> = plan["findings"].as_array().unwrap().iter().map(|finding| &finding["code"]).collect();
    assert_eq!(codes, ["missing_node_type", "missing_link_source", "missing_input_file"]);
    let missing = &plan["findings"][0];
    assert_eq!((&missing["node_id"], &missing["title"]), (&json!("5"), &json!("SaveImag")));
    assert!(missing["hint"].as_str().unwrap().starts_with("did you mean \"SaveImage\"?"), "{missing}");
    // The same in earnest: nothing is uploaded, and the answer has the same findings.
    let mut request = stage.request(&graph);
    request["input_images"] = json!([]);
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!((status, &answer["findings"]), (StatusCode::BAD_REQUEST, &plan["findings"]), "{answer:#}");
    let message = answer["message"].as_str().unwrap();
    assert!(message.contains("SaveImag is not on the box") && message.ends_with("(and 2 more)"), "{message}");
}

#[tokio::test]
async fn warnings_by_the_hundred_hide_no_error() {
    let stage = Stage::new().await;
    let mut graph = graph();
    for n in 0..210 {
        // What a pack's node allows is for itself to say.
        let inputs = json!({"image": ["1", 0], "steps": 0, "step_ms": 0});
        graph[format!("steps{n}")] = json!({"class_type": "RigSlowSteps", "inputs": inputs});
        let inputs = json!({"images": [format!("steps{n}"), 0], "filename_prefix": "x"});
        graph[format!("save{n}")] = json!({"class_type": "SaveImage", "inputs": inputs});
    }
    let mut request = dry(&stage, &graph);
    request["input_images"] = json!([]);
    let (status, plan) = stage.service.client().execute(&request).await;
    assert_eq!((status, &plan["valid"]), (StatusCode::OK, &json!(false)));
    let findings = plan["findings"].as_array().unwrap();
    let errors: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] == "error").collect();
    assert_eq!((findings.len(), errors.len(), &errors[0]["code"]), (200, 1, &json!("missing_input_file")));
    request["dry_run"] = json!(false);
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!((status, &answer["findings"]), (StatusCode::BAD_REQUEST, &plan["findings"]));
    // And on the command line.
    assert_eq!(check(&stage, &graph, &[]).await.status.code(), Some(1));
}

#[tokio::test]
async fn a_dry_run_without_a_box_is_a_502() {
    let stage = Stage::new().await;
    let mut request = dry(&stage, &graph());
    request["ssh_connection"] = json!("ssh -p 1 root@127.0.0.1");
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!((status, &answer["success"]), (StatusCode::BAD_GATEWAY, &json!(false)), "{answer}");
    let mut request = dry(&stage, &graph());
    request["comfyui_port"] = json!(stage.sandbox.ssh_port());
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{answer}");
    assert!(answer["message"].as_str().unwrap().contains("does not answer as ComfyUI does"), "{answer}");
}

#[tokio::test]
async fn parameters_and_new_seeds_reach_the_box_and_are_checked() {
    let stage = Stage::new().await;
    let client = stage.service.client();
    let mut request = stage.request(&graph());
    request["input_images"] = json!([photo(&stage)]);
    request["parameters"] = json!({"Steps.steps": 2, "4.filename_prefix": "by parameter", "2.preview_every": 1});
    let id = client.accepted(&request).await;
    let done = stage.completed(&id).await;
    let names: Vec<&str> =
        done["outputs"].as_array().unwrap().iter().filter_map(|output| output["filename"].as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("by parameter_")), "{done:#}");
    let (_, ran) = sent(&stage, &done).await;
    assert_eq!((&ran["2"]["inputs"]["steps"], &ran["2"]["inputs"]["preview_every"]), (&json!(2), &json!(1)));

    for (name, value, expected) in [
        ("9.steps", json!(1), "Parameter 9.steps names no node: "),
        (
            "Save.images",
            json!(1),
            "Parameter Save.images names several nodes, all called \"Save\"; use one of their ids instead: 3, 4",
        ),
        ("2.stepz", json!(1), "A parameter fits no input: node 2 (Steps, RigSlowSteps): has no input stepz"),
        (
            "2.steps",
            json!("many"),
            "The box would refuse the workflow: node 2 (Steps, RigSlowSteps): steps must be a whole number",
        ),
    ] {
        request["parameters"] = json!({name: value});
        let (status, answer) = client.execute(&request).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer["message"].as_str().unwrap().starts_with(expected), "{answer}");
    }
    for (field, value) in [("parameters", json!([])), ("randomize_seeds", json!(1)), ("dry_run", json!("yes"))] {
        let mut request = request.clone();
        request[field] = value;
        let (status, answer) = client.execute(&request).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
        assert!(answer["message"].as_str().unwrap().starts_with(&format!("Field {field} must be ")), "{answer}");
    }
}

/// The prompt that ComfyUI got for a workflow.
async fn sent(stage: &Stage, done: &Value) -> (String, Value) {
    let id = done["prompt_id"].as_str().unwrap();
    let url = format!("http://127.0.0.1:{}/history/{id}", stage.sandbox.comfyui_port());
    let (_, history) = answer(reqwest::Client::new().get(url)).await;
    (id.to_owned(), history[id]["prompt"][2].clone())
}

#[tokio::test]
async fn seeds_are_new_for_each_run_and_the_same_for_its_retry() {
    let stage = Stage::new().await;
    let client = stage.service.client();
    let graph = json!({
        "1": {"class_type": "RigManyImages", "inputs": {"count": 1, "size": 8, "seed": 5}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": tag()}},
    });
    let mut request = stage.request(&graph);
    request["randomize_seeds"] = json!(true);
    let mut seeds = Vec::new();
    let mut last = String::new();
    for _ in 0..2 {
        last = client.accepted(&request).await;
        let done = stage.completed(&last).await;
        seeds.push(sent(&stage, &done).await.1["1"]["inputs"]["seed"].as_u64().unwrap());
    }
    let (_, again) = client.retry(&last).await;
    let done = stage.completed(again["workflow_id"].as_str().unwrap()).await;
    seeds.push(sent(&stage, &done).await.1["1"]["inputs"]["seed"].as_u64().unwrap());
    assert!(seeds.iter().all(|seed| *seed != 5 && *seed < 1 << 50), "{seeds:?}");
    assert!(seeds[0] != seeds[1] && seeds[1] == seeds[2], "{seeds:?}");
}

/// A sampler-like node whose control says what becomes of its seed.
fn saved(control: &str) -> Value {
    json!({
        "nodes": [
            {"id": 1, "type": "RigManyImages", "mode": 0, "inputs": [], "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
             "widgets_values": [1, 8, 5, control]},
            {"id": 2, "type": "SaveImage", "mode": 0, "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
             "outputs": [], "widgets_values": ["saved"]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    })
}

#[tokio::test]
async fn a_saved_workflows_control_decides_about_its_seed_and_parameters_wait_for_the_conversion() {
    let stage = Stage::new().await;
    let client = stage.service.client();
    for (control, parameters, expected) in
        [("fixed", json!({}), Some(5)), ("randomize", json!({}), None), ("randomize", json!({"1.seed": 77}), Some(77))]
    {
        let mut request = stage.request(&saved(control));
        request["randomize_seeds"] = json!(true);
        request["parameters"] = parameters;
        let done = stage.completed(&client.accepted(&request).await).await;
        let seed = sent(&stage, &done).await.1["1"]["inputs"]["seed"].as_u64().unwrap();
        assert!(expected.map_or(seed != 5, |expected| seed == expected), "{control}: {seed}");
    }
    let mut request = stage.request(&saved("fixed"));
    request["parameters"] = json!({"7.seed": 1});
    let (status, answer) = client.execute(&request).await;
    assert_eq!(
        (status, &answer["findings"][0]["code"]),
        (StatusCode::BAD_REQUEST, &json!("unknown_parameter")),
        "{answer}"
    );
}

#[tokio::test]
async fn a_workflow_is_converted_over_http_for_a_box_or_with_a_file() {
    let stage = Stage::new().await;
    let client = stage.service.client();
    let convert = |body: Value| {
        let request = client.request(Method::POST, "/comfyui/workflow/convert").json(&body);
        async move { answer(request).await }
    };
    let graph = json!({
        "1": {"inputs": {"count": 1, "size": 8, "seed": 5}, "class_type": "RigManyImages", "_meta": {"title": "RigManyImages"}},
        "2": {"inputs": {"images": ["1", 0], "filename_prefix": "saved"}, "class_type": "SaveImage", "_meta": {"title": "Save Image"}},
    });
    let (connection, port) = (stage.sandbox.ssh_connection(), stage.sandbox.comfyui_port());
    let (status, converted) =
        convert(json!({"workflow": saved("fixed"), "ssh_connection": connection, "comfyui_port": port})).await;
    assert_eq!(status, StatusCode::OK, "{converted}");
    assert_eq!(converted["workflow_format"], "ui");
    for (id, node) in graph.as_object().unwrap() {
        assert_eq!(converted["prompt"][id]["inputs"], node["inputs"]);
    }
    let url = format!("http://127.0.0.1:{port}/object_info");
    let (_, definitions) = answer(reqwest::Client::new().get(url)).await;
    let file = |name: &str, content: &Value| {
        let path = stage.service.folder().join(name);
        fs::write(&path, content.to_string()).unwrap();
        path
    };
    let by_file = json!({
        "workflow_file": file("saved.json", &saved("fixed")), "object_info_file": file("object_info.json", &definitions), "odd": 1
    });
    let (status, again) = convert(by_file.clone()).await;
    assert_eq!((status, &again["prompt"]), (StatusCode::OK, &converted["prompt"]), "{again}");
    assert_eq!(again["warnings"], json!(["Unknown field ignored: odd"]));
    let (status, same) = convert(json!({"workflow": graph})).await;
    assert_eq!((status, &same["prompt"], &same["workflow_format"]), (StatusCode::OK, &graph, &json!("api")));

    let mut unknown = saved("fixed");
    unknown["nodes"][0]["type"] = json!("RigManyImage");
    let (status, refused) =
        convert(json!({"workflow": unknown, "ssh_connection": connection, "comfyui_port": port})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{refused}");
    assert!(
        refused["findings"][0]["hint"].as_str().unwrap().starts_with("did you mean \"RigManyImages\"?"),
        "{refused}"
    );
    // Nothing of a file is told that is something else.
    let pin = file("pin.txt", &json!(271_828));
    for (body, status) in [
        (json!({"workflow": saved("fixed")}), StatusCode::BAD_REQUEST),
        (json!({}), StatusCode::BAD_REQUEST),
        (json!({"workflow": 3}), StatusCode::BAD_REQUEST),
        (json!({"workflow": {}, "workflow_file": "x"}), StatusCode::BAD_REQUEST),
        (json!({"workflow_file": "/nowhere/x.json"}), StatusCode::BAD_REQUEST),
        (json!({"workflow": saved("fixed"), "ssh_connection": "ssh -p 1 root@127.0.0.1"}), StatusCode::BAD_GATEWAY),
        (json!({"workflow": saved("fixed"), "object_info_file": pin}), StatusCode::BAD_REQUEST),
        (json!({"workflow": saved("fixed"), "object_info_file": by_file["workflow_file"]}), StatusCode::BAD_REQUEST),
        (
            json!({"workflow": {"nodes": [{"id": 1}], "links": []}, "object_info_file": by_file["object_info_file"]}),
            StatusCode::BAD_REQUEST,
        ),
        (json!({"workflow": graph, "object_info_file": pin, "ssh_connection": connection}), StatusCode::BAD_REQUEST),
    ] {
        let (answered, answer) = convert(body).await;
        let said = answer["message"].as_str().unwrap();
        assert!(!said.contains("271828") && !said.contains("it has no nodes"), "{answer}");
        assert_eq!((answered, &answer["success"]), (status, &json!(false)), "{answer}");
    }
}

/// How many definitions a run asks for.
async fn questions(stage: &Stage, file: &Value) -> usize {
    let before = stage.sandbox.engine().definitions_asked_for();
    let id = stage.service.client().accepted(file).await;
    stage.completed(&id).await;
    stage.sandbox.engine().definitions_asked_for() - before
}

#[tokio::test]
async fn a_box_is_asked_once_for_each_class_as_long_as_its_comfyui_stays_up_and_nothing_is_found() {
    let stage = Stage::new().await;
    // What the conversion was told just now is not asked for again, whatever is wrong with it.
    let mut wrong = saved("fixed");
    wrong["links"] = json!([]);
    let (status, answer) = stage.service.client().execute(&stage.request(&wrong)).await;
    assert_eq!(
        (status, &answer["findings"][0]["code"]),
        (StatusCode::BAD_REQUEST, &json!("required_input_missing")),
        "{answer}"
    );
    assert_eq!(stage.sandbox.engine().definitions_asked_for(), 2);
    for document in [graphs::slow(&tag(), 1, 1), saved("fixed")] {
        let request = stage.request(&document);
        assert!(questions(&stage, &request).await > 0);
        // The first run of a start leaves the mark by which the next ones know it again.
        questions(&stage, &request).await;
        assert_eq!(questions(&stage, &request).await, 0);
    }
    // A choice that came since is found because the box is asked anew before anything is refused.
    let mut load = graph();
    load["4"]["inputs"]["images"] = json!(["1", 0]);
    let mut request = stage.request(&load);
    request["input_images"] = json!([photo(&stage)]);
    questions(&stage, &request).await;
    let mut later = load.clone();
    later["1"]["inputs"]["image"] = json!("later.png");
    fs::copy(photo(&stage), stage.sandbox.input_dir().join("later.png")).unwrap();
    let asked = questions(&stage, &stage.request(&later)).await;
    assert_eq!(asked, 0, "it lies where ComfyUI sees it");
    fs::remove_file(stage.sandbox.input_dir().join("later.png")).unwrap();
    let before = stage.sandbox.engine().definitions_asked_for();
    let (status, answer) = stage.service.client().execute(&stage.request(&later)).await;
    assert_eq!(
        (status, &answer["findings"][0]["code"]),
        (StatusCode::BAD_REQUEST, &json!("missing_input_file")),
        "{answer}"
    );
    assert!(stage.sandbox.engine().definitions_asked_for() > before);
    // Another start knows nothing of what this one had.
    stage.sandbox.engine().restart().await.unwrap();
    assert!(questions(&stage, &stage.request(&load)).await > 0);
}

/// A way to a ComfyUI on which a class gets an input more whenever it is wanted, as when its pack is reloaded; and how
/// often it is asked for that class.
async fn reloading(comfyui: u16, class: &'static str, input: &'static str) -> (u16, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (reloaded, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
    let state = (Arc::clone(&reloaded), Arc::clone(&asked));
    let pass_on = move |request: axum::extract::Request| {
        let (reloaded, asked) = state.clone();
        async move {
            let (head, body) = request.into_parts();
            let url = format!("http://127.0.0.1:{comfyui}{}", head.uri);
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let sent = reqwest::Client::new().request(head.method, url).headers(head.headers).body(body).send().await;
            let answer = sent.unwrap();
            let (status, mut headers) = (answer.status(), answer.headers().clone());
            headers.remove("transfer-encoding");
            let mut body = answer.bytes().await.unwrap().to_vec();
            if head.uri.path() == format!("/object_info/{class}") {
                asked.fetch_add(1, Ordering::SeqCst);
                let mut definition: Value = serde_json::from_slice(&body).unwrap();
                if reloaded.load(Ordering::SeqCst) {
                    definition[class]["input"]["optional"][input] = json!(["INT"]);
                }
                body = definition.to_string().into();
                headers.remove("content-length");
            }
            (status, headers, body)
        }
    };
    let port = loopback::serve(axum::Router::new().fallback(pass_on)).await.port();
    (port, reloaded, asked)
}

#[tokio::test]
async fn a_parameter_is_not_refused_for_what_is_remembered() {
    let stage = Stage::new().await;
    let (port, reloaded, asked) = reloading(stage.sandbox.comfyui_port(), "RigSlowSteps", "later").await;
    let mut request = stage.request(&graphs::slow(&tag(), 1, 1));
    request["comfyui_port"] = json!(port);
    request["parameters"] = json!({"2.preview_every": 1});
    // The first run marks the ComfyUI, the second learns its definitions, each for the parameter and for the look alike.
    for times in [1, 2, 2] {
        let id = stage.service.client().accepted(&request).await;
        stage.completed(&id).await;
        assert_eq!(asked.load(Ordering::SeqCst), times);
    }
    request["parameters"] = json!({"2.later": 1});
    let (status, answer) = stage.service.client().execute(&request).await;
    assert_eq!((status, &answer["findings"][0]["code"]), (StatusCode::BAD_REQUEST, &json!("unknown_parameter")));
    reloaded.store(true, Ordering::SeqCst);
    let id = stage.service.client().accepted(&request).await;
    stage.completed(&id).await;
}

/// As many boxes as are looked at at once say nothing; what needs no box is answered all the same.
#[tokio::test]
async fn mute_boxes_keep_no_conversion_waiting() {
    let stage = Stage::new().await;
    let mut looks = tokio::task::JoinSet::new();
    let mut held = Vec::new();
    for _ in 0..16 {
        let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut request = dry(&stage, &graph());
        request["ssh_connection"] = json!(format!("ssh -p {} root@127.0.0.1", mute.local_addr().unwrap().port()));
        request["input_images"] = json!([]);
        let client = stage.service.client();
        looks.spawn(async move { client.execute(&request).await });
        held.push(mute.accept().await.unwrap());
    }
    let client = stage.service.client();
    let body = json!({"workflow": graph()});
    let convert = client.request(Method::POST, "/comfyui/workflow/convert").json(&body);
    let converted = tokio::time::timeout(std::time::Duration::from_secs(5), answer(convert)).await;
    let (status, converted) = converted.unwrap();
    assert_eq!((status, &converted["prompt"]), (StatusCode::OK, &graph()), "{converted}");
    assert!(looks.try_join_next().is_none());
}

#[tokio::test]
async fn a_dry_run_that_gives_up_a_mute_box_says_where_it_stood() {
    let stage = Stage::new().await;
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = mute.local_addr().unwrap();
    let mut request = dry(&stage, &graph());
    request["ssh_connection"] = json!(format!("ssh -p {} root@127.0.0.1", address.port()));
    request["input_images"] = json!([]);
    let (status, answer) = stage.service.client().execute(&request).await;
    let expected = format!(
        "the box could not be reached within 15 s: root@{address} has not let us in; is the instance running, and is the \
         port right?"
    );
    assert_eq!((status, &answer["message"]), (StatusCode::BAD_GATEWAY, &json!(expected)));
}
