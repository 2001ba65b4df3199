//! The options of a pasted ssh command: which are carried out, which are ignored aloud, which are refused.
//!
//! Options may stand before and behind the host and may be clustered, as OpenSSH's getopt has them
//! (ssh.c, 9.2: `1246ab:c:e:fgi:kl:m:no:p:qstvxAB:CD:E:F:GI:J:KL:MNO:P:Q:R:S:TVw:W:XYy`). Ignored is what changes nothing
//! for a program that opens its own forward and runs no shell; refused is what would do something else than asked.

use std::collections::VecDeque;

use super::{
    settings::{Settings, Taken},
    target::{Destination, TargetError, parse_port, shown},
    words,
};

/// The host, what the options say, and warnings about what was ignored.
pub(super) fn parse(text: &str) -> Result<(Destination, Settings, Vec<String>), TargetError> {
    let mut parser = Parser { words: command_words(text)?, ..Parser::default() };
    while let Some(word) = parser.words.pop_front() {
        parser.word(&word)?;
    }
    let destination = parser.destination.ok_or(TargetError::NoHost)?;
    if !parser.ignored.is_empty() {
        parser.warnings.insert(0, format!("ignored, because it changes nothing here: {}", parser.ignored.join(", ")));
    }
    Ok((destination, parser.settings, parser.warnings))
}

/// The words behind `ssh`, without a prompt in front of it.
fn command_words(text: &str) -> Result<VecDeque<String>, TargetError> {
    let text = text.trim();
    let text = text.strip_prefix("$ ").or_else(|| text.strip_prefix("# ")).unwrap_or(text);
    let mut words: VecDeque<String> = words::split(text)?.into();
    match words.front().map(String::as_str) {
        None => return Err(TargetError::Empty),
        Some(program) if is_program(program, "ssh") => {
            words.pop_front();
        }
        Some(program)
            if words.len() > 1
                && ["scp", "sftp", "mosh", "autossh", "sudo", "rsync", "ssh-copy-id", "sshfs", "telnet"]
                    .iter()
                    .any(|other| is_program(program, other)) =>
        {
            return Err(TargetError::OtherProgram { token: shown(program) });
        }
        Some(_) => {}
    }
    Ok(words)
}

fn is_program(word: &str, name: &str) -> bool {
    word.strip_suffix(name).is_some_and(|folder| folder.is_empty() || folder.ends_with('/'))
}

#[derive(Default)]
struct Parser {
    words: VecDeque<String>,
    options_ended: bool,
    destination: Option<Destination>,
    settings: Settings,
    /// Options without effect, for one warning.
    ignored: Vec<String>,
    warnings: Vec<String>,
}

impl Parser {
    fn word(&mut self, word: &str) -> Result<(), TargetError> {
        if !self.options_ended {
            if word == "--" {
                self.options_ended = true;
                return Ok(());
            }
            if word.starts_with(['–', '—', '−', '‐', '‑']) {
                return Err(TargetError::TypographicDash { token: shown(word) });
            }
            if word.len() > 1 && word.starts_with('-') {
                return self.options(word);
            }
        }
        if self.destination.is_none() {
            self.destination = Some(Destination::parse(word)?);
            return Ok(());
        }
        let token = shown(word);
        let another_host = word.contains('@') || word.contains("://") || word.starts_with('[');
        Err(if another_host { TargetError::SecondHost { token } } else { TargetError::RemoteCommand { token } })
    }

    /// One word of options: `-N`, `-NTp22`, `-p` with its value in the next word.
    fn options(&mut self, word: &str) -> Result<(), TargetError> {
        if word.starts_with("--") {
            return Err(TargetError::UnknownOption { token: shown(word) });
        }
        for (at, letter) in word.char_indices().skip(1) {
            if "46aCfgKknNqtTvxXYy2".contains(letter) {
                self.ignore(format!("-{letter}"));
            } else if let Some((why, instead)) = refused_flag(letter) {
                return Err(TargetError::Refused { option: format!("-{letter}"), why, instead });
            } else if "bBceiJlLmop".contains(letter) {
                let rest = &word[at + letter.len_utf8()..];
                let value = if rest.is_empty() { self.words.pop_front() } else { Some(rest.to_owned()) };
                let value = value.ok_or_else(|| TargetError::MissingValue { option: format!("-{letter}") })?;
                return self.with_value(letter, &value);
            } else {
                return Err(TargetError::UnknownOption { token: shown(word) });
            }
        }
        Ok(())
    }

    fn with_value(&mut self, letter: char, value: &str) -> Result<(), TargetError> {
        match letter {
            'p' => {
                parse_port(value)?;
                self.set("-p", "Port", value)
            }
            'l' => self.set("-l", "User", value),
            'i' => self.set("-i", "IdentityFile", value),
            'J' => self.set("-J", "ProxyJump", value),
            'o' => self.named(value),
            _ => {
                self.ignore(format!("-{letter} {}", shown(value)));
                Ok(())
            }
        }
    }

    /// `-o`: `Name=value`, `Name value`, with spaces around the equals sign if it was quoted.
    fn named(&mut self, text: &str) -> Result<(), TargetError> {
        let text = text.trim();
        let end = text.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let rest = rest.trim_start();
        let value = rest.strip_prefix('=').unwrap_or(rest).trim();
        if name.is_empty() {
            return Err(TargetError::MissingValue { option: "-o".to_owned() });
        }
        if let Some((why, instead)) = refused_name(name) {
            return Err(TargetError::Refused { option: shown(name), why, instead });
        }
        if value.is_empty() {
            return Err(TargetError::MissingValue { option: shown(name) });
        }
        self.set(name, name, value)
    }

    fn set(&mut self, option: &str, name: &str, value: &str) -> Result<(), TargetError> {
        match self.settings.set(name, value) {
            Ok(Taken::Yes)
                if name.eq_ignore_ascii_case("StrictHostKeyChecking") && value.eq_ignore_ascii_case("ask") =>
            {
                self.warnings.push("nobody can be asked about host keys; the service's own rule is used".to_owned());
            }
            Ok(Taken::Yes) => {}
            Ok(Taken::Shadowed) => self.warnings.push(format!(
                "`{} {}` is ignored, because the same is given before with another value",
                shown(option),
                shown(value)
            )),
            Ok(Taken::Unknown) => self.ignore(format!("-o {}", shown(name))),
            Err(expected) => {
                return Err(TargetError::BadValue { option: shown(option), value: shown(value), expected });
            }
        }
        Ok(())
    }

    fn ignore(&mut self, what: String) {
        // A cluster can repeat one letter thousands of times (`-vvv…`).
        if !self.ignored.contains(&what) {
            self.ignored.push(what);
        }
    }
}

const FORWARDING: &str = "only the forward to ComfyUI is opened, by the service itself";
const SHARING: &str = "the service shares connections by itself";
const COMMANDS: &str = "no commands are run, neither here nor on the box";

const LEAVE: &str = "leave it out";

/// Why a flag is refused, and what to do.
fn refused_flag(letter: char) -> Option<(&'static str, &'static str)> {
    let why = match letter {
        'A' => "agent forwarding would lend your keys to the box",
        'D' | 'R' | 'w' | 'W' => FORWARDING,
        'M' | 'S' | 'O' => SHARING,
        'F' => return Some(("only ~/.ssh/config is read", "put the options into the connection itself")),
        'E' => "it writes a file, and the service has a log of its own",
        'I' => "keys on tokens are only used through the SSH agent",
        'P' => return Some(("it is the port option of scp", "write -p")),
        's' => "subsystems are opened by the service itself",
        'G' | 'Q' | 'V' => "it prints something instead of connecting",
        '1' => "version 1 of the protocol is not supported",
        _ => return None,
    };
    Some((why, LEAVE))
}

/// The same for a setting.
fn refused_name(name: &str) -> Option<(&'static str, &'static str)> {
    let why = match name.to_ascii_lowercase().as_str() {
        "proxycommand" => return Some(("no commands are run on this machine", "use ProxyJump (-J)")),
        "localcommand" | "permitlocalcommand" | "remotecommand" | "knownhostscommand" => COMMANDS,
        "controlmaster" | "controlpath" => SHARING,
        "forwardagent" => "agent forwarding would lend your keys to the box",
        "sendenv" | "setenv" => "nothing runs on the box that could see it",
        "tunnel" | "remoteforward" | "dynamicforward" => FORWARDING,
        "include" | "match" => "it belongs into ~/.ssh/config",
        _ => return None,
    };
    Some((why, LEAVE))
}
