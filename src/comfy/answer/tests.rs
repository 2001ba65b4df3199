use futures_util::{FutureExt, StreamExt, stream};

use super::*;
use crate::comfy::room::Room;

fn answer(status: u16, content_type: &str, location: &str, body: &str) -> Answer {
    Answer {
        what: "GET /x",
        status: StatusCode::from_u16(status).unwrap(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        content_type: content_type.into(),
        location: location.into(),
        is_placeholder: false,
        room: None,
    }
}

#[test]
fn what_is_found_is_described() {
    for (status, content_type, location, body, expected) in [
        (200, "text/html", "", "<html><TITLE> Log\n in </title>", "an HTML page titled \"Log in\" (HTTP 200)"),
        (200, "text/plain", "", "\n<!DOCTYPE html><p>", "an HTML page (HTTP 200)"),
        (401, "text/html", "", "<html>", "HTTP 401 asking for a login"),
        (302, "", "/login?token=s3cret", "", "a redirect to /login"),
        (304, "", "", "", "HTTP 304"),
        (502, "text/html", "", "<html></html>", "HTTP 502 with an HTML page"),
        (403, "", "", "", "HTTP 403"),
        (403, "application/json", "", r#"{"error": "bad credential"}"#, "HTTP 403: bad credential"),
        (200, "application/json", "", "[]", "JSON that ComfyUI would not send (HTTP 200)"),
        (200, "text/plain", "", "hello", "something that is not JSON (HTTP 200): hello"),
        (200, "", "", "  ", "an empty answer (HTTP 200)"),
    ] {
        assert_eq!(answer(status, content_type, location, body).describe(), expected);
    }
}

#[test]
fn a_proxy_page_may_pass_and_a_login_does_not() {
    let may_pass = |answer: Answer| match answer.success() {
        Err(error @ ComfyError::Foreign { .. }) => error.is_transient(),
        other => panic!("{other:?}"),
    };
    assert!(may_pass(answer(503, "text/html", "", "<html>")));
    assert!(may_pass(answer(524, "", "", "")));
    assert!(may_pass(Answer { is_placeholder: true, ..answer(200, "text/html", "", "<html>") }));
    assert!(!may_pass(answer(200, "text/html", "", "<html>")));
    assert!(!may_pass(answer(401, "", "", "")));
}

#[test]
fn excerpts_are_one_short_line() {
    assert_eq!(answer(500, "", "", "500 Internal\n\n  Server\tError").excerpt(), "500 Internal Server Error");
    assert_eq!(answer(400, "", "", r#"{"error": {"message": "no prompt"}}"#).excerpt(), "no prompt");
    let long = answer(500, "", "", &"ü".repeat(5000)).excerpt();
    assert_eq!(long.chars().count(), 200);
    assert!(long.ends_with('…'));
}

#[tokio::test]
async fn of_an_error_only_the_beginning_is_read() {
    for status in [400, 500] {
        let mut response = hyper::Response::new(reqwest::Body::from("x".repeat(3 << 20)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        let room = Room::of("errors");
        // Somebody else has the box's turn.
        let _turn = room.turn(1).await;
        let claim = Claim { room: &room, turn: None };
        let read = Answer::read("GET /x", response.into(), 64 << 20, Duration::MAX, Some(claim)).await;
        assert_eq!(read.unwrap().body.len() as u64, SMALL_BYTES);
    }
}

#[tokio::test]
async fn a_large_body_is_parsed_where_it_holds_up_nobody() {
    let document = format!("{{\"a\": \"{}\"}}", "a".repeat(SMALL_BYTES as usize));
    let (large, small) = (answer(200, "", "", &document), answer(200, "", "", r#"{"a": 1}"#));
    assert!(small.json().now_or_never().unwrap().is_ok());
    let mut parsing = Box::pin(large.json());
    assert!((&mut parsing).now_or_never().is_none());
    assert!(parsing.await.unwrap()["a"].is_string());
}

/// Reads a body of which a piece comes after each of these pauses, in seconds.
async fn read_in_pieces(pauses: &'static [u64]) -> Result<usize, ComfyError> {
    let pieces = stream::iter(pauses).then(|pause| async {
        tokio::time::sleep(Duration::from_secs(*pause)).await;
        Ok::<_, std::io::Error>("[]")
    });
    let response = hyper::Response::new(reqwest::Body::wrap_stream(pieces));
    let claim = None;
    let read = Answer::read("GET /x", response.into(), 100, Duration::from_secs(10), claim).await;
    read.map(|answer| answer.body.len())
}

#[tokio::test(start_paused = true)]
async fn a_body_may_take_its_time_as_long_as_it_goes_on() {
    assert_eq!(read_in_pieces(&[9, 9, 9, 9]).await.unwrap(), 8);
    let stalled = read_in_pieces(&[1, 11]).await;
    assert!(matches!(stalled, Err(ComfyError::Timeout { after, .. }) if after.as_secs() == 10), "{stalled:?}");
}

/// Gets `piece` bytes, of which `before` had come when there was room, every second until it is cut off.
async fn cut_off_after(announced: Option<u64>, before: usize, piece: usize) -> (Duration, usize) {
    let (begun, mut received) = (Instant::now(), before);
    let pace = Pace::begin(before, announced);
    loop {
        let next = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(piece)
        };
        match keeping(Some(&pace), "GET /x", received, next).await {
            Ok(piece) => received += piece,
            Err(ComfyError::TooSlow { .. }) => return (begun.elapsed(), received),
            Err(other) => panic!("{other}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_body_that_trickles_is_cut_off_soon_and_one_that_comes_is_not() {
    let seconds = |(after, _): (Duration, usize)| after.as_secs();
    assert_eq!(seconds(cut_off_after(Some(60_000_000), 4 << 20, 1).await), 5, "a drop a second");
    assert_eq!(seconds(cut_off_after(None, 1 << 20, 100).await), 5);
    // Half of what it takes: when that shows, and not at its deadline.
    assert!(seconds(cut_off_after(Some(60_000_000), 0, 500_000).await) < 10);
    let (after, received) = cut_off_after(Some(60_000_000), 0, 1_200_000).await;
    assert!(after == LARGE && received >= 59_000_000, "{after:?}: {received}");
}
