#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ssh::{HostKeyPolicy, settings::HostKeyChoice};

fn parsed(text: &str) -> Target {
    Target::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

fn refused(text: &str) -> TargetError {
    match Target::parse(text) {
        Ok(target) => panic!("{text:?} became {target:?}"),
        Err(error) => error,
    }
}

#[test]
fn what_people_paste_is_understood() {
    for (text, expected) in [
        ("ssh -p 40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("ssh -p 40738 root@198.53.64.194 -L 8080:localhost:8080", "root@198.53.64.194:40738"),
        ("ssh root@198.53.64.194 -p 40738 -i ~/.ssh/id_ed25519", "root@198.53.64.194:40738"),
        ("ssh -p40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("ssh -NTp40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("ssh -NTp 40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("  ssh   -p\t40738\n root@198.53.64.194 \n", "root@198.53.64.194:40738"),
        ("ssh -p 40738 \\\n    root@198.53.64.194 \\\n    -L 8080:localhost:8080\n", "root@198.53.64.194:40738"),
        ("$ ssh -p 40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("# ssh -p 40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("/usr/bin/ssh -p 40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("-p 40738 root@198.53.64.194", "root@198.53.64.194:40738"),
        ("ssh -l root -p 22 'box'", "root@box:22"),
        ("ssh -lroot box", "root@box"),
        ("ssh -- root@box", "root@box"),
        ("ssh -o Port=22 -oUser=root box", "root@box:22"),
        ("ssh -o 'Port 22' -o \"User = root\" box", "root@box:22"),
        ("ssh://root@box:22", "root@box:22"),
        ("SSH://box/", "box"),
        ("ssh ssh://root@[::1]:22", "root@[::1]:22"),
        ("ssh://[::1]:22", "[::1]:22"),
        ("root@box:22", "root@box:22"),
        ("box:22", "box:22"),
        ("box", "box"),
        ("my_alias-2.gpu", "my_alias-2.gpu"),
        ("[::1]:22", "[::1]:22"),
        ("::1", "::1"),
        ("root@fe80::1", "root@fe80::1"),
        ("ssh -p 22 root@fe80::1%eth0", "root@[fe80::1%eth0]:22"),
        ("my-user-name@box", "my-user-name@box"),
        ("user@corp.example@box:22", "user@corp.example@box:22"),
        ("abc123-64410d2f@ssh.runpod.io", "abc123-64410d2f@ssh.runpod.io"),
        ("ssh -N -T -f -t -v -vvv -q -C -4 -6 -x -X -Y -n -g -a -k -K -y -2 box", "box"),
    ] {
        assert_eq!(parsed(text).to_string(), expected, "{text:?}");
    }
}

#[test]
fn values_arrive_where_they_belong() {
    let target = parsed(
        "ssh -i a -i 'b c' -ic -J u@hop:23,hop2 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
         -o ConnectTimeout=5 -o ServerAliveInterval=30 -o ServerAliveCountMax=4 -o IdentitiesOnly=yes \
         -o HostName=10.0.0.1 -o IdentityFile=~/d root@box",
    );
    assert_eq!((target.host(), target.user(), target.port()), ("box", Some("root"), None));
    assert_eq!(target.warnings(), [""; 0]);
    assert_eq!(
        target.settings,
        Settings {
            host_name: Some("10.0.0.1".into()),
            user: Some("root".into()),
            identity_files: vec!["a".into(), "b c".into(), "c".into(), "~/d".into()],
            identities_only: Some(true),
            connect_timeout: Some(Duration::from_secs(5)),
            alive_interval: Some(Duration::from_secs(30)),
            alive_count_max: Some(4),
            host_keys: Some(HostKeyChoice::Policy(HostKeyPolicy::Off)),
            known_hosts: Some(Vec::new()),
            jumps: Some(vec![
                Destination { user: Some("u".into()), host: "hop".into(), port: Some(23) },
                Destination { user: None, host: "hop2".into(), port: None },
            ]),
            ..Settings::default()
        }
    );
}

#[test]
fn what_changes_nothing_is_ignored_aloud() {
    for (text, warning) in [
        ("ssh -N -T box", "ignored, because it changes nothing here: -N, -T"),
        ("ssh -NNN box", "ignored, because it changes nothing here: -N"),
        ("ssh -L 8080:localhost:8080 box", "ignored, because it changes nothing here: -L 8080:localhost:8080"),
        ("ssh -o LogLevel=ERROR box", "ignored, because it changes nothing here: -o LogLevel"),
        ("ssh -o Nonsense=1 box", "ignored, because it changes nothing here: -o Nonsense"),
        ("ssh -p 22 -p 23 box", "`-p 23` is ignored, because the same is given before with another value"),
        ("ssh -o Port=22 box -p 23", "`-p 23` is ignored, because the same is given before with another value"),
        ("ssh -p 22 box:23", "the port is given twice; the first one is used"),
        ("ssh -l one two@box", "the user is given twice; the first one is used"),
        ("ssh -o StrictHostKeyChecking=ask box", "nobody can be asked about host keys; the service's own rule is used"),
    ] {
        assert_eq!(parsed(text).warnings(), [warning], "{text}");
    }
    for name in "LogLevel Compression ForwardX11 RequestTTY ExitOnForwardFailure LocalForward TCPKeepAlive".split(' ') {
        assert_eq!(parsed(&format!("ssh -o {name}=x box")).warnings().len(), 1, "{name}");
    }
    assert_eq!(parsed("ssh -p 22 -p 23 box").port(), Some(22));
    assert_eq!(parsed("ssh -p 22 -o Port=22 root@box -l root").warnings(), [""; 0]);
}

#[test]
fn what_would_do_something_else_is_refused_by_name() {
    for flag in "A D:1 R:1 w:0 W:h F:f S:s M E:f O:exit Q:key I:lib P:22 s G V 1".split(' ') {
        let (letter, value) = flag.split_once(':').unwrap_or((flag, ""));
        match refused(&format!("ssh -{letter} {value} box")) {
            TargetError::Refused { option, .. } => assert_eq!(option, format!("-{letter}")),
            error => panic!("-{letter}: {error}"),
        }
    }
    for name in
        "ProxyCommand LocalCommand PermitLocalCommand RemoteCommand KnownHostsCommand ControlMaster ControlPath \
                 ForwardAgent SendEnv SetEnv Tunnel RemoteForward DynamicForward Include Match"
            .split_whitespace()
    {
        for text in [format!("ssh -o {name}=x box"), format!("ssh -o{} box", name.to_lowercase() + "=x")] {
            assert!(matches!(refused(&text), TargetError::Refused { .. }), "{text}");
        }
    }
    assert_eq!(
        refused("ssh -NA box").to_string(),
        "`-A` is not allowed here: agent forwarding would lend your keys to the box; leave it out"
    );
    assert_eq!(
        refused("ssh -P 22 box").to_string(),
        "`-P` is not allowed here: it is the port option of scp; write -p"
    );
    assert_eq!(
        refused("ssh -o ProxyCommand=x box").to_string(),
        "`ProxyCommand` is not allowed here: no commands are run on this machine; use ProxyJump (-J)"
    );
}

#[test]
fn mistakes_are_named() {
    for (text, message) in [
        ("", "the SSH connection is empty; write it like `ssh -p 40738 root@198.53.64.194`"),
        (" \n", "the SSH connection is empty; write it like `ssh -p 40738 root@198.53.64.194`"),
        ("ssh", "the SSH connection names no host"),
        ("ssh -p 22", "the SSH connection names no host"),
        ("ssh -p", "`-p` needs a value"),
        ("ssh box -o", "`-o` needs a value"),
        ("ssh -o Port box", "`Port` needs a value"),
        ("ssh -o '' box", "`-o` needs a value"),
        ("ssh -p 0 box", "`0` is no port; a port is a number from 1 to 65535"),
        ("ssh -p 65536 box", "`65536` is no port; a port is a number from 1 to 65535"),
        ("ssh -p +22 box", "`+22` is no port; a port is a number from 1 to 65535"),
        ("ssh -p root@box", "`root@box` is no port; a port is a number from 1 to 65535"),
        ("ssh -o Port=x box", "`Port` cannot be `x`; expected a number from 1 to 65535"),
        (
            "ssh -o StrictHostKeyChecking=never box",
            "`StrictHostKeyChecking` cannot be `never`; expected yes, no, accept-new, ask or off",
        ),
        (
            "ssh -J a,,b box",
            "`-J` cannot be `a,,b`; expected up to 8 jump hosts like user@host:port, separated by commas",
        ),
        ("box:port", "`port` is no port; a port is a number from 1 to 65535"),
        ("root@box:", "`root@box:` is no host: a port must follow the colon"),
        ("root@box:/path", "`root@box:/path` is no host: a port must follow the colon"),
        ("@box", "`` is no user name: it is empty"),
        ("root@", "`root@` is no host: it is empty"),
        ("ssh root@-oProxyCommand", "`root@-oProxyCommand` is no host: it begins with a dash"),
        ("ssh -l -oProxyCommand box", "`-l` cannot be `-oProxyCommand`; expected a user name"),
        ("ssh -- -box", "`-box` is no host: it begins with a dash"),
        ("ssh 'my box'", "`my box` is no host: it has a space in it"),
        ("ssh 'a;b'", "`a;b` is no host: it has a character in it that no host name has"),
        ("ssh box/path", "`box/path` is no host: it has a character in it that no host name has"),
        ("ssh a:b:c", "`a:b:c` is no host: it has colons but is no IPv6 address"),
        ("[::1", "`[::1` is no host: the bracket is never closed"),
        ("[::1]22", "`[::1]22` is no host: only `:port` can follow the bracket"),
        ("https://box", "`https://box` is no host: only ssh:// addresses are understood"),
        ("ssh://root:secret@box", "`root` is no user name: a password in an address is not supported, use keys"),
        (
            "ssh root@box ls -la",
            "`ls` behind the host looks like a remote command; only the connection itself can be given",
        ),
        (
            "ssh root@box nvidia-smi",
            "`nvidia-smi` behind the host looks like a remote command; only the connection itself can be given",
        ),
        ("ssh root@box root@other", "`root@other` is a second host; only one can be given (for a jump host use -J)"),
        ("ssh box ssh://other", "`ssh://other` is a second host; only one can be given (for a jump host use -J)"),
        (
            "ssh root@box; ls",
            "`root@box;` is shell syntax; give one plain ssh command, without variables, pipes, redirections or comments",
        ),
        (
            "ssh -i $HOME/k box",
            "`$HOME/k` is shell syntax; give one plain ssh command, without variables, pipes, redirections or comments",
        ),
        ("ssh \u{2013}p 22 box", "`\u{2013}p` begins with a typographic dash; write options with a plain `-`"),
        ("ssh --port 22 box", "`--port` is no option of ssh"),
        ("ssh -z box", "`-z` is no option of ssh"),
        ("scp -P 22 root@box:file .", "`scp` is another program; give the ssh command"),
        ("ssh 'box", "a ' quote is never closed"),
        ("ssh bo\u{0}x", "the SSH connection has a control character in it"),
    ] {
        assert_eq!(refused(text).to_string(), message, "{text:?}");
    }
    let long = refused(&format!("ssh box {}", "x".repeat(1000))).to_string();
    assert!(long.len() < 200, "{long}");
}

proptest! {
    #[test]
    fn parsing_never_panics(text in "\\PC*", other in any::<String>()) {
        let _ = Target::parse(&text);
        let _ = Target::parse(&other);
    }

    #[test]
    fn parsing_of_almost_commands_never_panics(words in prop::collection::vec(
        prop_oneof![
            "-[a-zA-Z0-9]{0,3}", "[a-z]{1,4}@[a-z:\\[\\]%.]{0,8}", "(ssh://)?[\\PC]{0,6}", "[\"'\\\\ $|=,]{1,3}",
            "(Port|User|ProxyJump|IdentityFile|ConnectTimeout)[= ][\\PC]{0,5}",
        ], 0..8))
    {
        let text = format!("ssh {}", words.join(" "));
        if let Ok(target) = Target::parse(&text) {
            prop_assert!(!target.host().is_empty() && !target.host().starts_with('-'));
            prop_assert!(!target.host().contains(char::is_whitespace));
            prop_assert_ne!(target.port(), Some(0));
        }
    }

    #[test]
    fn what_is_displayed_is_understood_again(user in "[a-z][a-z0-9-]{0,8}", host in "[a-z][a-z0-9.-]{0,8}", port in 1u16..) {
        let target = parsed(&format!("ssh -p {port} {user}@{host}"));
        prop_assert_eq!(parsed(&target.to_string()), target);
    }
}
