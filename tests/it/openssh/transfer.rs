//! Files over SFTP: large ones, many, and everything that keeps one from arriving.

use std::{
    fs,
    io::ErrorKind,
    time::{Duration, UNIX_EPOCH},
};

use comfy_remote::ssh::{SshErrorKind, Stat, TransferError};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::{Place, opened, proxy::Proxy, within};
use crate::support::sshd::SshdOptions;

#[tokio::test(flavor = "multi_thread")]
async fn a_box_without_sftp_says_so() {
    // None at all, and one that is not where it should be.
    for extra in [vec![], vec!["Subsystem sftp /nonexistent/sftp-server".to_owned()]] {
        let options = SshdOptions { sftp: false, extra, ..SshdOptions::default() };
        let Some(place) = Place::start_with(options) else { return };
        let error = within(place.session().await.transfer()).await.unwrap_err();
        assert_eq!(error.kind(), SshErrorKind::SftpMissing, "{error}");
        assert!(!error.is_transient(), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_arrive_whole_in_both_directions() {
    let Some(place) = Place::start() else { return };
    let content: Vec<u8> = (0..20_000_000u64).map(|number| ((number * number) >> 7) as u8).collect();
    fs::write(place.path("large"), &content).unwrap();
    let session = place.session().await;
    let transfer = within(session.transfer()).await.unwrap();
    let part = place.remote("large.part");
    let remote = place.remote("large here \u{e4}");
    assert_eq!(within(transfer.upload(opened(&place.path("large")), &part, 0)).await.unwrap(), 20_000_000);
    within(transfer.rename(&part, &remote)).await.unwrap();
    assert_eq!(within(transfer.stat(&part)).await.unwrap(), None);
    let modified = fs::metadata(&remote).unwrap().modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    let modified = Some(UNIX_EPOCH + Duration::from_secs(modified.as_secs()));
    let expected = Stat { size: 20_000_000, is_dir: false, is_file: true, modified };
    assert_eq!(within(transfer.stat(&remote)).await.unwrap(), Some(expected));
    assert_eq!(within(transfer.sha256(&remote)).await.unwrap(), <[u8; 32]>::from(Sha256::digest(&content)));
    let mut back = Vec::new();
    assert_eq!(within(transfer.download(&remote, 0, &mut back, 20_000_000)).await.unwrap(), 20_000_000);
    assert!(back == content);
    let mut back = Vec::new();
    let error = within(transfer.download(&remote, 0, &mut back, 19_999_999)).await.unwrap_err();
    assert!(matches!(error, TransferError::TooLarge { limit: 19_999_999, .. }), "{error:?}");
    assert!(back.len() <= 19_999_999);
    let error = within(transfer.download(&remote, 0, &mut Vec::new(), 20_000_001)).await.unwrap_err();
    assert!(matches!(error, TransferError::TooShort { size: 20_000_001, .. }), "{error:?}");
    within(transfer.remove(&remote)).await.unwrap();
    assert_eq!(within(transfer.stat(&remote)).await.unwrap(), None);
    assert!(within(transfer.free_bytes(place.folder.path().to_str().unwrap())).await.unwrap().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_small_files_pass_side_by_side() {
    let Some(place) = Place::start() else { return };
    let proxy = Proxy::to(place.sshd.port()).await;
    let session = within(place.pool().connect(&place.target_at(proxy.port, ""))).await.unwrap();
    fs::create_dir(place.path("in")).unwrap();
    let folder = place.folder.path().to_owned();
    let files = (0..200usize).map(|number| {
        let (session, folder) = (session.clone(), folder.clone());
        tokio::spawn(async move {
            let content = vec![number as u8; number * 37];
            let local = folder.join(format!("small{number}"));
            fs::write(&local, &content).unwrap();
            let remote = folder.join(format!("in/{number}")).to_str().unwrap().to_owned();
            let transfer = session.transfer().await.unwrap();
            assert_eq!(transfer.upload(opened(&local), &remote, 0).await.unwrap(), content.len() as u64);
            let mut back = Vec::new();
            transfer.download(&remote, 0, &mut back, content.len() as u64).await.unwrap();
            assert_eq!(back, content);
        })
    });
    for done in within(futures_util::future::join_all(files)).await {
        done.unwrap();
    }
    assert_eq!(proxy.connections(), 2);
    let channels = place.sshd.log().matches("Starting session: subsystem 'sftp'").count();
    assert!((1..=8).contains(&channels), "channels are used again, but there were {channels}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_sessions_than_usual_are_made_do_with() {
    let options = SshdOptions { extra: vec!["MaxSessions 2".to_owned()], ..SshdOptions::default() };
    let Some(place) = Place::start_with(options) else { return };
    let session = place.session().await;
    let looks = (0..12).map(|_| {
        let session = session.clone();
        tokio::spawn(async move { session.transfer().await.unwrap().stat("/").await.unwrap().unwrap() })
    });
    for look in within(futures_util::future::join_all(looks)).await {
        assert!(look.unwrap().is_dir);
    }
    assert!(!session.is_closed());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_ever_overwritten_and_failures_are_told_apart() {
    let Some(place) = Place::start() else { return };
    let session = place.session().await;
    let transfer = within(session.transfer()).await.unwrap();
    let path = |name: &str| place.remote(name);
    fs::write(place.path("one"), "one").unwrap();
    fs::write(place.path("two"), "two").unwrap();

    let error = within(transfer.upload(opened(&place.path("one")), &path("two"), 0)).await.unwrap_err();
    assert!(matches!(error, TransferError::AlreadyExists { .. }), "{error:?}");
    let error = within(transfer.rename(&path("one"), &path("two"))).await.unwrap_err();
    assert!(matches!(error, TransferError::AlreadyExists { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(place.path("two")).unwrap(), "two");
    assert_eq!(fs::read_to_string(place.path("one")).unwrap(), "one");

    let error = within(transfer.upload(opened(&place.path("one")), &path("missing/one"), 0)).await.unwrap_err();
    assert!(matches!(error, TransferError::NotFound { .. }), "{error:?}");
    let error = within(transfer.upload(opened(place.folder.path()), &path("folder"), 0)).await.unwrap_err();
    assert!(
        matches!(&error, TransferError::Local { source, .. } if source.kind() == ErrorKind::IsADirectory),
        "{error:?}"
    );
    let error = within(transfer.download(&path("missing"), 0, &mut Vec::new(), 1)).await.unwrap_err();
    assert!(matches!(error, TransferError::NotFound { .. }), "{error:?}");
    assert_eq!(error.to_string(), format!("{} does not exist on the box", path("missing")));
    for error in [
        within(transfer.sha256(&path("missing"))).await.unwrap_err(),
        within(transfer.remove(&path("missing"))).await.unwrap_err(),
        within(transfer.rename(&path("missing"), &path("three"))).await.unwrap_err(),
        within(transfer.free_bytes(&path("missing"))).await.unwrap_err(),
    ] {
        assert!(matches!(error, TransferError::NotFound { .. }), "{error:?}");
    }
    let folder = place.folder.path().to_str().unwrap();
    assert!(matches!(within(transfer.sha256(folder)).await, Err(TransferError::Other { .. })));
    assert!(!within(transfer.stat(folder)).await.unwrap().unwrap().is_file);
    assert_eq!(within(transfer.stat(&path("two"))).await.unwrap().unwrap().size, 3, "the channel still works");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_whose_connection_breaks_is_transient() {
    let Some(place) = Place::start() else { return };
    let proxy = Proxy::to(place.sshd.port()).await;
    let pool = place.pool();
    let session = within(pool.connect(&place.target_at(proxy.port, ""))).await.unwrap();
    let transfer = within(session.transfer()).await.unwrap();
    fs::File::create(place.path("endless")).unwrap().set_len(1 << 40).unwrap();
    let remote = place.remote("endless");
    let (mut near, mut far) = tokio::io::duplex(1024);
    let downloading = tokio::spawn(async move { transfer.download(&remote, 0, &mut near, u64::MAX).await });
    within(far.read_exact(&mut vec![0; 1_000_000])).await.unwrap();
    proxy.cut.cancel();
    let drain = tokio::spawn(async move { while far.read(&mut [0; 4096]).await.unwrap_or(0) > 0 {} });
    let error = within(downloading).await.unwrap().unwrap_err();
    assert!(matches!(error, TransferError::ConnectionLost { .. }) && error.is_transient(), "{error:?}");
    within(drain).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn both_directions_go_on_where_they_were_cut() {
    let Some(place) = Place::start() else { return };
    let content: Vec<u8> = (0..3_000_000u64).map(|number| ((number * number) >> 7) as u8).collect();
    fs::write(place.path("whole"), &content).unwrap();
    fs::write(place.path("begun"), &content[..1_234_567]).unwrap();
    let session = place.session().await;
    let transfer = within(session.transfer()).await.unwrap();
    let begun = place.remote("begun");
    assert_eq!(within(transfer.upload(opened(&place.path("whole")), &begun, 1_234_567)).await.unwrap(), 3_000_000);
    assert!(fs::read(place.path("begun")).unwrap() == content);
    let mut rest = Vec::new();
    assert_eq!(within(transfer.download(&begun, 1_234_567, &mut rest, 3_000_000)).await.unwrap(), 1_765_433);
    assert!(rest == content[1_234_567..]);
    assert_eq!(within(transfer.download(&begun, 3_000_000, &mut rest, 3_000_000)).await.unwrap(), 0);
    let error = within(transfer.download(&begun, 1_234_567, &mut Vec::new(), 2_999_999)).await.unwrap_err();
    assert!(matches!(error, TransferError::TooLarge { .. }), "{error:?}");
    let error = within(transfer.upload(opened(&place.path("whole")), &place.remote("missing"), 7)).await.unwrap_err();
    assert!(matches!(error, TransferError::NotFound { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_box_computes_checksums_of_files_however_they_are_named() {
    let Some(place) = Place::start() else { return };
    let session = place.session().await;
    let transfer = within(session.transfer()).await.unwrap();
    let trap = format!("$(touch {})", place.remote("trapped").replace('/', "\u{2215}"));
    let names =
        ["plain", "with space", "ünï", "back\\slash", "new\nline", "quote'\"", "; touch trapped #", "-b", &trap];
    for name in names {
        fs::write(place.path(name), name).unwrap();
        let hash = <[u8; 32]>::from(Sha256::digest(name));
        assert_eq!(within(transfer.sha256_by_box(&place.remote(name), 1)).await.unwrap(), Some(hash), "{name:?}");
    }
    assert_eq!(
        fs::read_dir(place.folder.path())
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name() == "trapped" })
            .count(),
        0,
        "no name was taken for a command"
    );
    for nothing in [place.remote("missing"), place.folder.path().to_str().unwrap().to_owned(), "relative".to_owned()] {
        assert_eq!(within(transfer.sha256_by_box(&nothing, 1)).await.unwrap(), None, "{nothing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_allows_no_commands_just_computes_no_checksums() {
    for line in ["ForceCommand internal-sftp", "ForceCommand echo no", "ForceCommand /bin/false", "MaxSessions 1"] {
        let options = SshdOptions { extra: vec![line.to_owned()], ..SshdOptions::default() };
        let Some(place) = Place::start_with(options) else { return };
        fs::write(place.path("file"), "content").unwrap();
        let session = place.session().await;
        // A forced command replaces SFTP too, unless it is SFTP.
        let Ok(transfer) = within(session.transfer()).await else { continue };
        assert_eq!(within(transfer.sha256_by_box(&place.remote("file"), 7)).await.unwrap(), None, "{line}");
        let by_reading = within(transfer.sha256(&place.remote("file"))).await.unwrap();
        assert_eq!(by_reading, <[u8; 32]>::from(Sha256::digest("content")), "{line}: the channel still works");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_checksums_at_once_stay_within_the_boxs_sessions() {
    let Some(place) = Place::start() else { return };
    fs::write(place.path("file"), "content").unwrap();
    let session = place.session().await;
    let looks = (0..20).map(|_| {
        let (session, path) = (session.clone(), place.remote("file"));
        tokio::spawn(async move { session.transfer().await.unwrap().sha256_by_box(&path, 7).await.unwrap() })
    });
    for look in within(futures_util::future::join_all(looks)).await {
        assert_eq!(look.unwrap(), Some(Sha256::digest("content").into()));
    }
}
