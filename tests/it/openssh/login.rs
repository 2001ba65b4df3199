//! Which keys are offered, and what is said when none is accepted.

use std::{fs, process::Command};

use comfy_remote::ssh::{Options, Pool, SshError, SshErrorKind};

use super::{Place, is_inner_run, parsed, proxy::Proxy, run, run_again, within};
use crate::support::sshd::{make_key, make_key_as, user};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_key_is_final_and_named() {
    let Some(place) = Place::start() else { return };
    let proxy = Proxy::to(place.sshd.port()).await;
    let wrong = place.path("wrong");
    make_key(&wrong);
    let text = format!(
        "ssh -o IdentitiesOnly=yes -i {} -i /missing/key -p {} {}@127.0.0.1",
        wrong.display(),
        proxy.port,
        user()
    );
    let error = within(place.pool().connect(&parsed(&text))).await.unwrap_err();
    assert_eq!(error.kind(), SshErrorKind::Auth);
    assert!(!error.is_transient());
    assert_eq!(proxy.connections(), 1, "not tried again");
    let fingerprint = run(Command::new("ssh-keygen").arg("-lf").arg(&wrong)).stdout;
    let fingerprint = String::from_utf8(fingerprint).unwrap().split(' ').nth(1).unwrap().to_owned();
    assert_eq!(
        error.to_string(),
        format!(
            "{}@127.0.0.1:{} refused to let us in; tried: {} ({fingerprint}), /missing/key (no such file); \
             add the public key of one of them to the instance; it accepts: publickey",
            user(),
            proxy.port,
            wrong.display()
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_all_types_log_in() {
    let Some(place) = Place::start() else { return };
    for (name, args) in [
        ("rsa", &["-t", "rsa", "-b", "2048", "-N", ""][..]),
        ("pem", &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""]),
        ("ecdsa", &["-t", "ecdsa", "-b", "384", "-N", ""]),
    ] {
        make_key_as(&place.path(name), args);
        place.sshd.authorize_only(&place.path(&format!("{name}.pub")));
        let text = format!("ssh -i {} {}@127.0.0.1:{}", place.path(name).display(), user(), place.sshd.port());
        within(place.pool().connect(&parsed(&text))).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_key_is_unlocked_with_the_passphrase_file() {
    let Some(place) = Place::start() else { return };
    make_key_as(&place.path("locked"), &["-t", "ed25519", "-N", "open sesame"]);
    place.sshd.authorize_only(&place.path("locked.pub"));
    let text = format!(
        "ssh -o IdentitiesOnly=yes -i {} {}@127.0.0.1:{}",
        place.path("locked").display(),
        user(),
        place.sshd.port()
    );
    let target = parsed(&text);
    let error = within(place.pool().connect(&target)).await.unwrap_err();
    assert!(
        error.to_string().contains("locked (encrypted: add it to the SSH agent or set passphrase_file)"),
        "{error}"
    );
    fs::write(place.path("passphrase"), "open sesame\n").unwrap();
    let options = Options { passphrase_file: Some(place.path("passphrase")), ..place.options() };
    within(Pool::new(options).unwrap().connect(&target)).await.unwrap();
}

/// Runs itself again below an agent.
#[tokio::test(flavor = "multi_thread")]
async fn keys_of_the_agent_log_in() {
    let Some(place) = Place::start() else { return };
    if !is_inner_run() {
        let itself = std::env::current_exe().unwrap();
        run_again("openssh::login::keys_of_the_agent_log_in", Command::new("ssh-agent").arg(itself));
        return;
    }
    let target = parsed(&format!("{}@127.0.0.1:{}", user(), place.sshd.port()));
    // More keys than sshd lets anybody try; the last one is right, so it has to be named to be found in time.
    for number in 0..6 {
        let file = place.path(&format!("agent{number}"));
        make_key(&file);
        run(Command::new("ssh-add").arg("-q").arg(&file));
    }
    run(Command::new("ssh-add").arg("-q").arg(place.sshd.client_key()));
    let with_agent = || Pool::new(Options { use_agent: true, ..place.options() }).unwrap();
    let error = within(with_agent().connect(&target)).await.unwrap_err();
    assert!(matches!(error, SshError::AuthFailed { cut_off: true, .. }), "{error:?}");
    assert!(error.to_string().contains("agent key test (SHA256:"), "{error}");

    // Named by its public half only: the file has no private key in it.
    fs::remove_file(place.sshd.client_key()).unwrap();
    let text =
        format!("ssh -i {}.pub -p {} {}@127.0.0.1", place.sshd.client_key().display(), place.sshd.port(), user());
    within(with_agent().connect(&parsed(&text))).await.unwrap();

    run(Command::new("ssh-add").args(["-q", "-D"]));
    make_key_as(&place.path("rsa"), &["-t", "rsa", "-b", "2048", "-N", ""]);
    run(Command::new("ssh-add").arg("-q").arg(place.path("rsa")));
    place.sshd.authorize_only(&place.path("rsa.pub"));
    within(with_agent().connect(&target)).await.unwrap();
    let error = within(place.pool().connect(&target)).await.unwrap_err();
    assert_eq!(error.kind(), SshErrorKind::Auth, "the agent is only asked if allowed");
}
