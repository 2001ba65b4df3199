//! The record of host keys, in OpenSSH's known_hosts format.
//!
//! Read are plain, wildcard, negated and hashed (`|1|`) names, `[host]:port`, and `@revoked`; `@cert-authority` lines are
//! skipped, because certificates are not asked for. As in OpenSSH (hostfile.c, 9.2), a host with keys on record that shows
//! none of them has changed, also if the types differ; which is why [`Record::algorithms`] has the known types asked for
//! first. New keys are appended with a single write under a file lock; nothing is ever rewritten.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use russh::keys::{Algorithm, HashAlg, PublicKey, parse_public_key_base64, ssh_key::known_hosts::HostPatterns};
use rustix::fs::OFlags;
use sha1::Sha1;

use super::{named_file::NamedFile, pattern};
use crate::files::{Folder, PathError};

const MAX_BYTES: u64 = 16 << 20;

/// The settings that confine a record named by a connection string: new keys are written to it.
pub(super) const ROOTS: &str = "read_roots and write_roots";

/// What is on record about one host.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The name under which the host is recorded: `host`, or `[host]:port` for other ports than 22.
    pub(super) name: String,
    entries: Vec<Entry>,
    /// Lines for the bare name of a host on another port; they can vouch for a key, but not against it.
    fallback: Vec<Entry>,
    /// Files that exist but could not be read.
    pub(super) unreadable: Vec<(PathBuf, io::Error)>,
    /// A file that must not be used.
    pub(super) refused: Option<PathBuf>,
}

/// A line that applies to the host.
#[derive(Debug)]
struct Entry {
    file: PathBuf,
    line: usize,
    revoked: bool,
    key: PublicKey,
}

/// How a shown key relates to the record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Known,
    Unknown,
    /// None of the recorded keys is shown; this is one of those.
    Changed {
        file: PathBuf,
        line: usize,
        old: String,
    },
    Revoked {
        file: PathBuf,
        line: usize,
    },
}

impl Record {
    /// Collects what `files` say about `host` at `port`. Missing files are empty ones.
    pub(super) fn read(files: &[NamedFile], host: &str, port: u16) -> Self {
        let mut record = Self { name: recorded_name(host, port), ..Self::default() };
        let bare = host.to_lowercase();
        for file in files {
            let path = &file.path;
            match read_file(file) {
                Ok(text) => record.collect(path, &text, &bare),
                Err(error) if error.is_not_found() => {}
                Err(PathError::Outside) => record.refused = Some(file.name()),
                Err(PathError::Io(error)) => record.unreadable.push((path.clone(), error)),
                Err(error) => record.unreadable.push((path.clone(), io::Error::other(error.to_string()))),
            }
        }
        record
    }

    /// Judges a key the host has proved to own.
    pub(super) fn judge(&self, key: &PublicKey) -> Verdict {
        let same = |entry: &&Entry| entry.key.key_data() == key.key_data();
        if let Some(entry) = self.entries.iter().chain(&self.fallback).filter(|entry| entry.revoked).find(same) {
            return Verdict::Revoked { file: entry.file.clone(), line: entry.line };
        }
        let recorded = || self.entries.iter().filter(|entry| !entry.revoked);
        if recorded().chain(self.fallback.iter().filter(|entry| !entry.revoked)).any(|entry| same(&entry)) {
            return Verdict::Known;
        }
        let same_type = recorded().find(|entry| entry.key.algorithm() == key.algorithm());
        match same_type.or_else(|| recorded().next()) {
            None => Verdict::Unknown,
            Some(entry) => {
                Verdict::Changed { file: entry.file.clone(), line: entry.line, old: fingerprint(&entry.key) }
            }
        }
    }

    /// The key types on record, for asking for those first.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        let recorded = if self.entries.iter().any(|entry| !entry.revoked) { &self.entries } else { &self.fallback };
        recorded.iter().filter(|entry| !entry.revoked).map(|entry| entry.key.algorithm()).collect()
    }

    fn collect(&mut self, file: &Path, text: &str, bare: &str) {
        for (number, line) in text.lines().enumerate() {
            let Some((hosts, revoked, key)) = parse_line(line) else { continue };
            let entry = |key| Entry { file: file.to_owned(), line: number + 1, revoked, key };
            if applies(hosts, &self.name) {
                self.entries.extend(key().map(entry));
            } else if bare != self.name && applies(hosts, bare) {
                self.fallback.extend(key().map(entry));
            }
        }
    }
}

/// The name under which a host is recorded.
pub(super) fn recorded_name(host: &str, port: u16) -> String {
    let host = host.to_lowercase();
    if port == 22 { host } else { format!("[{host}]:{port}") }
}

/// The line that records `key`.
pub(super) fn entry_line(name: &str, key: &PublicKey) -> String {
    let mut key = key.clone();
    key.set_comment("");
    format!("{name} {}", key.to_openssh().unwrap_or_default().trim_end())
}

/// Type and SHA-256 fingerprint, as people compare them.
pub(super) fn fingerprint(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

/// Appends a host key that is unknown. The folder and the file are made private when they are new.
///
/// Two programs, or two connections of this one, that do so at once do not disturb each other: the file is locked, the
/// key is judged again by what was added meanwhile, and the line is one write. Returns that judgement; the key was added
/// if it is `Unknown`. Blocking; at most about two seconds.
pub(super) fn remember(file: &NamedFile, name: &str, key: &PublicKey) -> io::Result<Verdict> {
    let mut open = open_to_append(file)?;
    lock(&open)?;
    open.seek(SeekFrom::Start(0))?;
    let mut text = Vec::new();
    (&open).take(MAX_BYTES).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let mut record = Record { name: name.to_owned(), ..Record::default() };
    record.collect(&file.path, &text, name);
    let verdict = record.judge(key);
    if verdict != Verdict::Unknown {
        return Ok(verdict);
    }
    if !looks_like_known_hosts(&text) {
        // The path may come from a connection string; no line must end up in somebody's shell profile.
        return Err(io::Error::other("it has other content than host keys"));
    }
    let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    open.write_all(format!("{gap}{}\n", entry_line(name, key)).as_bytes())?;
    Ok(Verdict::Unknown)
}

fn open_to_append(file: &NamedFile) -> io::Result<File> {
    let path = &file.path;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let (Some(roots), Some(name)) = (&file.write_roots, path.file_name()) {
        let folder = Folder::make(folder, roots).map_err(|error| match error {
            PathError::Io(error) => error,
            error => io::Error::other(error.to_string()),
        })?;
        return folder.file(name, OFlags::CREATE | OFlags::APPEND);
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    // A pipe in its place must not hold us up.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let open = OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if open.metadata()?.is_file() { Ok(open) } else { Err(io::Error::other("it is not a regular file")) }
}

/// Waits for the lock, but not for ever: the append itself is atomic, the lock only prevents double lines.
fn lock(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => return Ok(()),
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn looks_like_known_hosts(text: &str) -> bool {
    let mut content = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    content.peek().is_none()
        || content.any(|line| line.starts_with('@') || parse_line(line).is_some_and(|l| l.2().is_some()))
}

fn read_file(file: &NamedFile) -> Result<String, PathError> {
    let file = file.open()?;
    if file.metadata()?.len() > MAX_BYTES {
        return Err(PathError::Io(io::Error::other("it is larger than 16 MiB")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Host names, whether revoked, and the key (decoded only on demand). `None` for lines that say nothing about host keys.
fn parse_line(line: &str) -> Option<(&str, bool, impl Fn() -> Option<PublicKey>)> {
    let mut fields = line.split([' ', '\t']).filter(|field| !field.is_empty());
    let first = fields.next().filter(|field| !field.starts_with('#'))?;
    let (hosts, revoked) = match first {
        "@revoked" => (fields.next()?, true),
        marker if marker.starts_with('@') => return None,
        hosts => (hosts, false),
    };
    let _type = fields.next()?;
    let key = fields.next()?;
    Some((hosts, revoked, move || parse_public_key_base64(key).ok()))
}

fn applies(hosts: &str, name: &str) -> bool {
    if !hosts.starts_with("|1|") {
        return pattern::list_matches(hosts.to_lowercase().split(','), name);
    }
    let Ok(HostPatterns::HashedName { salt, hash }) = hosts.parse() else { return false };
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(&salt) else { return false };
    mac.update(name.as_bytes());
    mac.verify_slice(&hash).is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const ONE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const TWO: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";
    const ECDSA: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";

    fn key(text: &str) -> PublicKey {
        PublicKey::from_openssh(text).unwrap()
    }

    /// The verdict of a file with this content on key ONE.
    fn verdict(content: &str, host: &str, port: u16) -> Verdict {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        fs::write(&file, content).unwrap();
        Record::read(&[file.into()], host, port).judge(&key(ONE))
    }

    #[test]
    fn names_of_all_kinds_are_found() {
        for (names, host, port, known) in [
            ("box", "box", 22, true),
            ("BOX", "Box", 22, true),
            ("box", "box", 2222, true),
            ("[box]:2222", "box", 2222, true),
            ("[box]:2222", "box", 22, false),
            ("[box]:2222", "box", 2223, false),
            ("other,box", "box", 22, true),
            ("*.example,!bad.example", "good.example", 22, true),
            ("*.example,!bad.example", "bad.example", 22, false),
            ("[10.0.0.?]:*", "10.0.0.7", 40738, true),
            ("::1", "::1", 22, true),
            ("[::1]:2222", "::1", 2222, true),
            ("|1|broken", "box", 22, false),
        ] {
            let expected = if known { Verdict::Known } else { Verdict::Unknown };
            assert_eq!(verdict(&format!("{names} {ONE}\n"), host, port), expected, "{names} {host} {port}");
            assert_eq!(verdict(&format!("{names}\t{} comment", ONE.replace(' ', "\t")), host, port), expected);
        }
    }

    #[test]
    fn hashed_names_are_found() {
        // `ssh-keygen -H` (OpenSSH 9.2) made this from `[example.com]:2222`.
        let line = format!("|1|snvOO3U0W9TwH1FnsZrN69g4LOI=|0MlXWxcNxnIaB5BR1R/aW2h+PQ0= {ONE}\n");
        assert_eq!(verdict(&line, "example.com", 2222), Verdict::Known);
        assert_eq!(verdict(&line, "example.com", 22), Verdict::Unknown);
    }

    #[test]
    fn another_key_is_a_change_unless_a_later_line_has_the_right_one() {
        let changed = verdict(&format!("# comment\n\nbox {TWO}\n"), "box", 22);
        let Verdict::Changed { line: 3, old, .. } = changed else { panic!("{changed:?}") };
        assert_eq!(old, fingerprint(&key(TWO)));
        assert_eq!(verdict(&format!("box {TWO}\nbox {ONE}\n"), "box", 22), Verdict::Known);
        assert!(matches!(verdict(&format!("box {ECDSA}\n"), "box", 22), Verdict::Changed { line: 1, .. }));
        let both = verdict(&format!("box {ECDSA}\nbox {TWO}\n"), "box", 22);
        assert!(matches!(both, Verdict::Changed { line: 2, .. }), "the line with the same type is named: {both:?}");
        assert_eq!(verdict(&format!("box {TWO}\n"), "box", 2222), Verdict::Unknown, "another port is another host");
        assert_eq!(verdict(&format!("@cert-authority box {TWO}\n"), "box", 22), Verdict::Unknown);
        assert_eq!(verdict("box ssh-ed25519 rubbish\nbox\nbox x\n", "box", 22), Verdict::Unknown);
    }

    #[test]
    fn a_revoked_key_is_refused_wherever_it_stands() {
        let file = format!("box {ONE}\n@revoked * {ONE}\n");
        assert!(matches!(verdict(&file, "box", 22), Verdict::Revoked { line: 2, .. }));
        assert_eq!(verdict(&format!("@revoked * {TWO}\n"), "box", 22), Verdict::Unknown);
        assert_eq!(verdict(&format!("@revoked * {TWO}\nbox {ONE}\n"), "box", 22), Verdict::Known);
    }

    #[test]
    fn known_types_are_asked_for_first() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        fs::write(&file, format!("@revoked box {ONE}\n[box]:23 {ECDSA}\nbox {TWO}\n")).unwrap();
        assert_eq!(Record::read(&[file.clone().into()], "box", 22).algorithms(), [Algorithm::Ed25519]);
        assert_eq!(Record::read(&[file.clone().into()], "box", 23).algorithms(), [key(ECDSA).algorithm()]);
        assert_eq!(Record::read(&[file.into()], "other", 22).algorithms(), []);
    }

    #[test]
    fn missing_files_are_empty_and_odd_ones_unreadable() {
        let record =
            Record::read(&["/nonexistent/known_hosts", "/dev/zero"].map(|file| PathBuf::from(file).into()), "box", 22);
        assert_eq!(record.judge(&key(ONE)), Verdict::Unknown);
        assert_eq!(record.unreadable.len(), 1);
    }

    #[test]
    fn new_keys_are_appended_once_and_privately() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("new/known_hosts");
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| remember(&file.clone().into(), "[box]:2222", &key(ONE)).unwrap());
            }
        });
        assert_eq!(remember(&file.clone().into(), "other", &key(TWO)).unwrap(), Verdict::Unknown);
        let late = remember(&file.clone().into(), "[box]:2222", &key(TWO)).unwrap();
        assert!(matches!(late, Verdict::Changed { line: 1, .. }), "the first one stays: {late:?}");
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("[box]:2222 {ONE}\nother {TWO}\n"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(Record::read(&[file.into()], "box", 2222).judge(&key(ONE)), Verdict::Known);
    }

    #[test]
    fn a_missing_line_end_is_added_and_foreign_files_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("known_hosts");
        fs::write(&file, format!("box {ONE}")).unwrap();
        remember(&file.clone().into(), "other", &key(TWO)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), format!("box {ONE}\nother {TWO}\n"));
        let profile = folder.path().join(".bashrc");
        fs::write(&profile, "export A=1\nalias x=y\n").unwrap();
        assert!(remember(&profile.clone().into(), "box", &key(ONE)).is_err());
        assert_eq!(fs::read_to_string(&profile).unwrap(), "export A=1\nalias x=y\n");
    }
}
