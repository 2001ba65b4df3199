//! Connection strings in all the forms that people paste, up to the login.

use std::{env, fs, process::Command};

use comfy_remote::ssh::{Options, Pool, SshError};

use super::{Place, is_inner_run, parsed, run_again, within};
use crate::{
    loopback::Deaf,
    support::sshd::{make_key, user},
};

/// What people paste for one and the same box. The key may also stand in `~/.ssh/config`.
const SPELLINGS: &[&str] = &[
    "ssh -p PORT USER@127.0.0.1",
    "ssh -p PORT USER@127.0.0.1 -L 8080:localhost:8080",
    "ssh USER@127.0.0.1 -p PORT -i KEY",
    "ssh -i KEY -pPORT USER@127.0.0.1",
    "ssh -i 'KEY' -l USER -p PORT \"127.0.0.1\"",
    "ssh -NTfp PORT -lUSER 127.0.0.1",
    "ssh -o Port=PORT -o User=USER 127.0.0.1",
    "ssh -oPort=PORT -o 'User USER' -o \"IdentityFile = KEY\" 127.0.0.1",
    "ssh -o HostName=127.0.0.1 -p PORT USER@gpu-3.example.com",
    "ssh -vvv -C -t -x -4 -- USER@127.0.0.1:PORT",
    "/usr/bin/ssh -p PORT USER@127.0.0.1",
    "$ ssh -p PORT USER@127.0.0.1\n",
    "# ssh -p PORT USER@127.0.0.1",
    "  ssh -p PORT \\\n    -i KEY \\\n    USER@127.0.0.1 \\\n",
    "ssh\u{a0}-p\u{200b}PORT USER@127.0.0.1",
    "-p PORT USER@127.0.0.1",
    "ssh ssh://USER@127.0.0.1:PORT",
    "ssh://USER@127.0.0.1:PORT/",
    "SSH://USER@127.0.0.1:PORT",
    "USER@127.0.0.1:PORT",
    "127.0.0.1:PORT",
    "[127.0.0.1]:PORT",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_spelling_reaches_the_same_box() {
    let Some(place) = Place::start() else { return };
    let key = place.sshd.client_key().display().to_string();
    fs::write(place.path("config"), format!("Host *\nIdentityFile {key}\nIdentitiesOnly yes\n")).unwrap();
    let spell = |spelling: &str| {
        let port = place.sshd.port().to_string();
        parsed(&spelling.replace("PORT", &port).replace("USER", &user()).replace("KEY", &key))
    };
    for (before, spelling) in SPELLINGS.iter().enumerate() {
        place.reach(&place.pool(), &spell(spelling)).await;
        assert_eq!(place.logins(), before + 1, "{spelling}");
    }
    let pool = place.pool();
    for spelling in SPELLINGS {
        place.reach(&pool, &spell(spelling)).await;
    }
    assert_eq!(place.logins(), SPELLINGS.len() + 1, "a box that is the same shares its connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_options_of_throwaway_boxes_do_what_they_say() {
    let Some(place) = Place::start() else { return };
    let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=20 \
                   -o ServerAliveInterval=30 -o ServerAliveCountMax=3 -o IdentitiesOnly=yes";
    let target = place.target_at(place.sshd.port(), options);
    assert_eq!(target.warnings(), ["ignored, because it changes nothing here: -o LogLevel"]);
    let session = place.reach(&place.pool(), &target).await;
    assert_eq!(session.warnings(), [""; 0]);
    assert!(!place.sshd.known_hosts().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_alias_of_the_configuration_file_is_enough() {
    let Some(place) = Place::start() else { return };
    let config = format!(
        "Host gpu\nHostName 127.0.0.1\nPort {}\nUser {}\nIdentityFile {}\nIdentitiesOnly yes\nMatch all\nPort 1\n",
        place.sshd.port(),
        user(),
        place.sshd.client_key().display()
    );
    fs::write(place.path("config"), config).unwrap();
    let session = within(place.pool().connect(&parsed("gpu"))).await.unwrap();
    assert_eq!(session.warnings().len(), 1, "{:?}", session.warnings());
    assert!(session.warnings()[0].contains("Match blocks are not used"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_string_wins_over_the_configuration_file() {
    let Some(place) = Place::start() else { return };
    let (deaf, wrong) = (Deaf::new(), place.path("wrong"));
    make_key(&wrong);
    fs::create_dir(place.path("boxes")).unwrap();
    let config = format!(
        "Host gpu-*\nHostName 127.0.0.1\nPort {}\nUser nobody-here\nIdentityFile {}\nIdentitiesOnly yes\n",
        deaf.port,
        wrong.display()
    );
    fs::write(place.path("boxes/gpu"), config).unwrap();
    fs::write(place.path("config"), "Include boxes/*\n").unwrap();
    let (port, user, key) = (place.sshd.port(), user(), place.sshd.client_key().display().to_string());
    for (before, text) in [
        format!("ssh -p {port} -i {key} {user}@gpu-3"),
        format!("ssh -o Port={port} -o User={user} -o IdentityFile={key} gpu-3"),
        format!("ssh -i {key} ssh://{user}@gpu-3:{port}"),
    ]
    .iter()
    .enumerate()
    {
        place.reach(&place.pool(), &parsed(text)).await;
        assert_eq!(place.logins(), before + 1, "{text}");
    }
    // And without it, the file is obeyed.
    let error = within(place.pool().connect(&parsed(&format!("ssh -p {port} gpu-3")))).await.unwrap_err();
    let SshError::AuthFailed { user, tried, .. } = &error else { panic!("{error:?}") };
    assert_eq!((user.as_str(), tried.len()), ("nobody-here", 1), "{error}");
    assert!(tried[0].starts_with(wrong.to_str().unwrap()), "{error}");
    let error = within(place.pool().connect(&parsed("gpu-3"))).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("connection refused by 127.0.0.1:{}", deaf.port)), "{error}");
}

/// Runs itself again with a home and a current folder of its own.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_found_from_the_home_and_the_current_folder() {
    let Some(place) = Place::start() else { return };
    if !is_inner_run() {
        fs::create_dir_all(place.path("home/.ssh")).unwrap();
        fs::create_dir_all(place.path("here/keys")).unwrap();
        let mut itself = Command::new(env::current_exe().unwrap());
        itself.env("HOME", place.path("home")).current_dir(place.path("here"));
        run_again("openssh::pasted::files_are_found_from_the_home_and_the_current_folder", &mut itself);
        return;
    }
    let home = env::home_dir().unwrap();
    let (key, port, user) = (place.sshd.client_key(), place.sshd.port(), user());
    // Nothing but the home folder: no configuration file and no known_hosts of the test.
    let pool = || Pool::new(Options { use_agent: false, ..Options::default() }).unwrap();
    fs::copy(&key, home.join(".ssh/rented")).unwrap();
    fs::copy(&key, "keys/box").unwrap();
    fs::copy(&key, "keys/my box").unwrap();
    let named = [
        "-i ~/.ssh/rented",
        "-i '~/.ssh/rented'",
        "-o IdentityFile=~/.ssh/rented",
        "-i %d/.ssh/rented",
        "-i keys/box",
        "-i ./keys/box",
        "-i 'keys/my box'",
        "-i keys/my\\ box",
        "-i ../home/.ssh/rented",
    ];
    for (before, key) in named.iter().enumerate() {
        place.reach(&pool(), &parsed(&format!("ssh -o IdentitiesOnly=yes {key} -p {port} {user}@127.0.0.1"))).await;
        assert_eq!(place.logins(), before + 1, "{key}");
    }
    let missing = format!("ssh -o IdentitiesOnly=yes -i keys/other -p {port} {user}@127.0.0.1");
    let error = within(pool().connect(&parsed(&missing))).await.unwrap_err();
    assert!(error.to_string().contains("tried: keys/other (no such file)"), "{error}");

    let recorded = fs::read_to_string(home.join(".ssh/known_hosts")).unwrap();
    assert_eq!(recorded, place.sshd.known_hosts_line().replace(" test", "\n"));
    let config = format!("Host gpu\nHostName 127.0.0.1\nPort {port}\nUser {user}\nIdentityFile ~/.ssh/rented\n");
    fs::write(home.join(".ssh/config"), config).unwrap();
    place.reach(&pool(), &parsed("ssh gpu")).await;
    assert_eq!(place.logins(), named.len() + 1);
    fs::rename(home.join(".ssh/rented"), home.join(".ssh/id_ed25519")).unwrap();
    place.reach(&pool(), &parsed(&format!("{user}@127.0.0.1:{port}"))).await;
    assert_eq!(place.logins(), named.len() + 2, "a key under its usual name needs no naming");
}
