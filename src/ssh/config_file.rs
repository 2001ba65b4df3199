//! What `~/.ssh/config` says about one host: an own reader for the part of the format that this program can honour.
//!
//! Understood are `Host` with wildcards and negation, `Include`, quotes, `Keyword=value`, and the settings of
//! `settings`; the first value wins. `Match` blocks are cut out up to the next `Host` or `Match`, with a warning, because
//! their conditions can run commands. Other keywords are skipped. A file that is missing or broken is never an error:
//! what can be read is used, and a warning says what could not.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    pattern,
    settings::{Settings, Taken},
};
use crate::{
    files::{PathError, Roots, open_regular},
    home::expand_home,
};

const MAX_BYTES: u64 = 1 << 20;
const MAX_DEPTH: usize = 16;
const MAX_FILES: usize = 64;

/// The settings of `file` for `host`, and warnings. With `required`, a missing file is a warning too.
pub(super) fn lookup(file: &Path, required: bool, host: &str) -> (Settings, Vec<String>) {
    let base = file.parent().unwrap_or(Path::new("/")).to_owned();
    let mut reader = Reader { host, base, files: 0, settings: Settings::default(), warnings: Vec::new() };
    match read(file) {
        Ok(text) => reader.lines(file, &text, true, 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {}
        Err(error) => reader.warnings.push(format!("{} is not used: {error}", file.display())),
    }
    (reader.settings, reader.warnings)
}

fn read(file: &Path) -> io::Result<String> {
    if file == Path::new("/dev/null") {
        return Ok(String::new());
    }
    let opened = open_regular(file, &Roots::anywhere()).map_err(|error| match error {
        PathError::Io(error) => error,
        error => io::Error::other(error.to_string()),
    })?;
    if opened.metadata()?.len() > MAX_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    let mut bytes = Vec::new();
    opened.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Reader<'a> {
    host: &'a str,
    /// What relative `Include` paths start from.
    base: PathBuf,
    files: usize,
    settings: Settings,
    warnings: Vec<String>,
}

impl Reader<'_> {
    /// `active`: whether lines before the first `Host` apply, which depends on the block an `Include` stands in.
    fn lines(&mut self, file: &Path, text: &str, mut active: bool, depth: usize) {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let end = line.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(line.len());
            let (keyword, rest) = line.split_at(end);
            let rest = rest.trim_start();
            let value = rest.strip_prefix('=').unwrap_or(rest).trim();
            match keyword.to_ascii_lowercase().as_str() {
                "host" => active = pattern::list_matches(words(value).iter().map(String::as_str), self.host),
                "match" => {
                    active = false;
                    self.warn(file, number, "Match blocks are not used");
                }
                "include" if active => self.include(file, number, value, depth),
                "proxycommand" if active && !value.eq_ignore_ascii_case("none") && self.settings.jumps.is_none() => {
                    self.warn(file, number, "ProxyCommand is not used; ProxyJump would be");
                }
                _ if active => match self.settings.set(keyword, without_comment(value)) {
                    Ok(Taken::Yes | Taken::Shadowed | Taken::Unknown) => {}
                    Err(expected) => self.warn(file, number, &format!("{keyword} is not used; expected {expected}")),
                },
                _ => {}
            }
        }
    }

    fn include(&mut self, file: &Path, number: usize, value: &str, depth: usize) {
        for pattern in words(value) {
            let path = self.base.join(expand_home(Path::new(&pattern)));
            for found in glob(&path) {
                self.files += 1;
                if depth == MAX_DEPTH || self.files > MAX_FILES {
                    self.warn(file, number, "Include goes too deep");
                    return;
                }
                match read(&found) {
                    Ok(text) => self.lines(&found, &text, true, depth + 1),
                    Err(error) => self.warnings.push(format!("{} is not used: {error}", found.display())),
                }
            }
        }
    }

    fn warn(&mut self, file: &Path, number: usize, what: &str) {
        self.warnings.push(format!("{} line {}: {what}", file.display(), number + 1));
    }
}

/// Words between white space, where double quotes hold together.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '#' if !quoted && word.is_none() => break,
            c if c.is_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// OpenSSH since 8.5 takes ` #` behind a value for a comment.
fn without_comment(value: &str) -> &str {
    match value.split_once(" #") {
        Some((before, _)) if !value.contains('"') => before.trim_end(),
        _ => value,
    }
}

/// The files a path with wildcards stands for, in order of their names.
fn glob(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for part in path.components() {
        let part = part.as_os_str().to_string_lossy();
        if !part.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(part.as_ref()));
            continue;
        }
        let mut next = Vec::new();
        for folder in &found {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten().take(10_000) {
                let name = entry.file_name().to_string_lossy().into_owned();
                // As in a shell, a wildcard does not stand for the dot of a hidden file.
                if pattern::matches(&part, &name) && (!name.starts_with('.') || part.starts_with('.')) {
                    next.push(folder.join(name));
                }
            }
        }
        next.sort();
        found = next;
    }
    found.retain(|path| path.is_file());
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings(config: &str, host: &str) -> (Settings, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        fs::write(&file, config).unwrap();
        lookup(&file, true, host)
    }

    #[test]
    fn the_first_value_wins_and_blocks_apply_by_pattern() {
        let config = "\
            User early\n\
            Host gpu-* !gpu-9\n\
              HostName = 10.0.0.1\n\
              Port=2222\n\
            \tUser\tlate\n\
              IdentityFile \"~/my keys/a\"\n\
            Host *\n\
              Port 23\n\
              IdentityFile ~/b # the other one\n\
              ConnectTimeout 5\n";
        let (found, warnings) = settings(config, "gpu-1");
        assert_eq!(warnings, [""; 0]);
        assert_eq!(
            found,
            Settings {
                user: Some("early".into()),
                host_name: Some("10.0.0.1".into()),
                port: Some(2222),
                identity_files: vec!["~/my keys/a".into(), "~/b".into()],
                connect_timeout: Some(Duration::from_secs(5)),
                ..Settings::default()
            }
        );
        assert_eq!(settings(config, "gpu-9").0.port, Some(23));
    }

    #[test]
    fn match_blocks_are_cut_out_with_a_warning() {
        let config = "Host gpu\n User a\nMatch exec \"rm -rf /\"\n User b\n Port 1\nHost gpu\n Port 2\n";
        let (found, warnings) = settings(config, "gpu");
        assert_eq!((found.user.as_deref(), found.port), (Some("a"), Some(2)));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].ends_with("line 3: Match blocks are not used"), "{warnings:?}");
    }

    #[test]
    fn includes_are_followed_where_they_apply() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        fs::write(folder.path().join("conf.d/20"), "Port 20\nHost other\nUser other\n").unwrap();
        fs::write(folder.path().join("conf.d/10"), "Port 10\nInclude config\n").unwrap();
        fs::write(folder.path().join("conf.d/.hidden"), "User hidden\n").unwrap();
        let file = folder.path().join("config");
        fs::write(&file, "Host gpu\nInclude conf.d/* missing\nUser me\n").unwrap();
        let (found, warnings) = lookup(&file, true, "gpu");
        assert_eq!((found.port, found.user.as_deref()), (Some(10), Some("me")));
        assert_eq!(warnings.iter().filter(|warning| warning.contains("too deep")).count(), warnings.len());
        assert!(!warnings.is_empty(), "the file that includes itself is stopped");
        assert_eq!(lookup(&file, true, "elsewhere").0, Settings::default());
    }

    #[test]
    fn broken_lines_and_files_are_warnings() {
        let (found, warnings) = settings("Port no\nPort 22\nProxyCommand nc %h %p\nNonsense\n", "gpu");
        assert_eq!(found.port, Some(22));
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        let missing = Path::new("/nonexistent/config");
        assert_eq!(lookup(missing, false, "gpu"), (Settings::default(), Vec::new()));
        assert_eq!(lookup(missing, true, "gpu").1.len(), 1);
        assert_eq!(lookup(Path::new("/dev/zero"), true, "gpu").1.len(), 1);
        assert_eq!(lookup(Path::new("/dev/null"), true, "gpu"), (Settings::default(), Vec::new()));
    }
}
