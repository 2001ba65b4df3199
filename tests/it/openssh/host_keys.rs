//! Which host keys are accepted, and what is kept of them. OpenSSH's own client reads and writes the same file.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use comfy_remote::ssh::{HostKeyPolicy, Options, Pool, SshError, SshErrorKind};

use super::{Place, run, within};

#[tokio::test(flavor = "multi_thread")]
async fn the_first_host_key_is_recorded_and_another_one_refused() {
    let Some(place) = Place::start() else { return };
    let known_hosts = place.path("fresh/known_hosts");
    let pool = || Pool::new(Options { known_hosts: known_hosts.clone(), ..place.options() }).unwrap();
    within(pool().connect(&place.target())).await.unwrap();
    let recorded = fs::read_to_string(&known_hosts).unwrap();
    assert_eq!(recorded, place.sshd.known_hosts_line().replace(" test", "\n"));
    assert_eq!(fs::metadata(&known_hosts).unwrap().permissions().mode() & 0o777, 0o600);
    within(pool().connect(&place.target())).await.unwrap();
    assert_eq!(fs::read_to_string(&known_hosts).unwrap(), recorded, "a known key is not recorded again");

    fs::write(&known_hosts, format!("# mine\n{}", another_key_on_record(&place))).unwrap();
    let error = within(pool().connect(&place.target())).await.unwrap_err();
    assert_eq!(error.kind(), SshErrorKind::HostKey);
    assert!(!error.is_transient());
    let message = error.to_string();
    for part in [
        format!("the host key of [127.0.0.1]:{} has changed", place.sshd.port()),
        format!("{} line 2", known_hosts.display()),
        format!("ssh-keygen -R '[127.0.0.1]:{}' -f '{}'", place.sshd.port(), known_hosts.display()),
    ] {
        assert!(message.contains(&part), "{part} in {message}");
    }
    assert_eq!(message.matches("ssh-ed25519 SHA256:").count(), 2, "{message}");
    let off = place.target_at(place.sshd.port(), "-o StrictHostKeyChecking=no");
    place.reach(&pool(), &off).await;
    assert_eq!(place.logins(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_checking_accepts_only_what_is_on_record() {
    let Some(place) = Place::start() else { return };
    let pool = || Pool::new(Options { host_keys: HostKeyPolicy::Strict, ..place.options() }).unwrap();
    let error = within(pool().connect(&place.target())).await.unwrap_err();
    let SshError::HostKeyUnknown { entry, file, .. } = &error else { panic!("{error:?}") };
    assert_eq!(file, &place.sshd.known_hosts());
    assert!(error.to_string().ends_with(entry.as_str()), "{error}");
    fs::write(file, format!("{entry}\n")).unwrap();
    within(pool().connect(&place.target())).await.unwrap();
    fs::write(file, format!("{entry}\n@revoked * {}\n", entry.split_once(' ').unwrap().1)).unwrap();
    let error = within(pool().connect(&place.target())).await.unwrap_err();
    assert!(matches!(error, SshError::HostKeyRevoked { line: 2, .. }), "{error:?}");
    fs::remove_file(file).unwrap();
    fs::create_dir(file).unwrap();
    let error = within(pool().connect(&place.target())).await.unwrap_err();
    assert!(matches!(error, SshError::KnownHosts { .. }), "{error:?}");
    let session = within(place.pool().connect(&place.target())).await.unwrap();
    assert_eq!(session.warnings().len(), 2, "neither read nor written: {:?}", session.warnings());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_known_by_its_second_key_shows_that_one() {
    let Some(place) = Place::start() else { return };
    let ecdsa = fs::read_to_string(place.path("host_ecdsa.pub")).unwrap();
    fs::write(place.sshd.known_hosts(), format!("[127.0.0.1]:{} {ecdsa}", place.sshd.port())).unwrap();
    within(place.pool().connect(&place.target())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_hashed_by_openssh_are_found() {
    let Some(place) = Place::start() else { return };
    let file = place.sshd.known_hosts();
    fs::write(&file, another_key_on_record(&place)).unwrap();
    run(Command::new("ssh-keygen").arg("-H").arg("-f").arg(&file));
    assert!(fs::read_to_string(&file).unwrap().starts_with("|1|"));
    let error = within(place.pool().connect(&place.target())).await.unwrap_err();
    assert!(matches!(error, SshError::HostKeyChanged { line: 1, .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_null_records_nothing() {
    let Some(place) = Place::start() else { return };
    let target = place.target_at(place.sshd.port(), "-o UserKnownHostsFile=/dev/null");
    within(place.pool().connect(&target)).await.unwrap();
    assert!(!place.sshd.known_hosts().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn openssh_and_this_program_read_what_the_other_has_recorded() {
    let Some(place) = Place::start() else { return };
    let file = place.sshd.known_hosts();
    let openssh_connects = || {
        let output = place.sshd.run_with_openssh("true");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    within(place.pool().connect(&place.target())).await.unwrap();
    let recorded = fs::read_to_string(&file).unwrap();
    openssh_connects();
    assert_eq!(fs::read_to_string(&file).unwrap(), recorded, "OpenSSH would add a key that it did not find");

    fs::remove_file(&file).unwrap();
    openssh_connects();
    let strict = Options { host_keys: HostKeyPolicy::Strict, ..place.options() };
    within(Pool::new(strict).unwrap().connect(&place.target())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_key_alias_is_the_name_on_record() {
    let Some(place) = Place::start() else { return };
    let target = place.target_at(place.sshd.port(), "-o HostKeyAlias=rented-box");
    within(place.pool().connect(&target)).await.unwrap();
    let recorded = fs::read_to_string(place.sshd.known_hosts()).unwrap();
    assert!(recorded.starts_with("rented-box ssh-ed25519 "), "{recorded}");
    let strict = Options { host_keys: HostKeyPolicy::Strict, ..place.options() };
    within(Pool::new(strict.clone()).unwrap().connect(&target)).await.unwrap();
    let error = within(Pool::new(strict).unwrap().connect(&place.target())).await.unwrap_err();
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error:?}");
}

/// A line for known_hosts that contradicts what the server shows.
fn another_key_on_record(place: &Place) -> String {
    let key = fs::read_to_string(place.sshd.client_key().with_extension("pub")).unwrap();
    format!("[127.0.0.1]:{} {key}", place.sshd.port())
}
