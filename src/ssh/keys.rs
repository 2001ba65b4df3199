//! Private key files: read once, unlocked once, and then kept in memory for as long as the pool lives.
//!
//! A file that has changed is read again. Nothing of a key or passphrase is ever logged. Only regular files of a sane size
//! are read, because their paths may come from a connection string.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use russh::keys::{self, PrivateKey, PublicKey};

use super::named_file::NamedFile;
use crate::files::PathError;

const MAX_BYTES: u64 = 64 * 1024;
const MAX_KEPT: usize = 64;

/// The key files of a pool.
#[derive(Debug)]
pub(super) struct KeyRing {
    pub(super) use_agent: bool,
    passphrase_file: Option<PathBuf>,
    /// Tried after everything that was named; skipped silently where they do not exist.
    pub(super) default_files: Vec<PathBuf>,
    unlocked: Mutex<HashMap<PathBuf, (Stamp, Arc<PrivateKey>)>>,
}

/// Tells whether a file is still the one that was read.
type Stamp = (Option<SystemTime>, u64);

/// What a file has in it.
#[derive(Debug, Clone)]
pub(super) enum Identity {
    /// A key that can sign.
    Private(Arc<PrivateKey>),
    /// A public key, or a private one that stays locked: the agent may have its other half.
    Public(PublicKey, Problem),
}

impl Identity {
    pub(super) fn public_key(&self) -> &PublicKey {
        match self {
            Self::Private(key) => key.public_key(),
            Self::Public(key, _) => key,
        }
    }
}

/// Why a key file is of no use. The text goes behind the file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    Missing,
    /// It must not be used.
    Refused,
    Unreadable(String),
    NoKey,
    /// Encrypted, and there is no passphrase.
    Locked,
    /// Encrypted, and the passphrase does not fit.
    WrongPassphrase,
    /// A public key whose private half the agent does not have.
    PublicOnly,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no such file"),
            Self::Refused => f.write_str("outside of the folders that [files] read_roots allows"),
            Self::Unreadable(why) => f.write_str(why),
            Self::NoKey => f.write_str("not a private key"),
            Self::Locked => f.write_str("encrypted: add it to the SSH agent or set passphrase_file"),
            Self::WrongPassphrase => f.write_str("encrypted, and the passphrase of passphrase_file does not fit"),
            Self::PublicOnly => f.write_str("a public key that the SSH agent does not have"),
        }
    }
}

impl KeyRing {
    pub(super) fn new(use_agent: bool, passphrase_file: Option<PathBuf>, default_files: Vec<PathBuf>) -> Self {
        Self { use_agent, passphrase_file, default_files, unlocked: Mutex::default() }
    }

    /// Reads a key file. Blocking, and slow (a tenth of a second) when an encrypted key is unlocked the first time.
    pub(super) fn load(&self, file: &NamedFile) -> Result<Identity, Problem> {
        let (text, stamp) = read(file)?;
        let file = file.path.as_path();
        if let Some((seen, key)) = self.unlocked().get(file)
            && *seen == stamp
        {
            return Ok(Identity::Private(Arc::clone(key)));
        }
        if let Ok(public) = PublicKey::from_openssh(text.trim()) {
            return Ok(Identity::Public(public, Problem::PublicOnly));
        }
        let key = match keys::decode_secret_key(&text, None) {
            Ok(key) => key,
            Err(keys::Error::KeyIsEncrypted) => return self.unlock(file, &text, stamp),
            // Encrypted PKCS#8 and PEM files do not say so: they just fail to decode without a passphrase.
            Err(_) if text.contains("ENCRYPTED") => return self.unlock(file, &text, stamp),
            Err(_) => return Err(Problem::NoKey),
        };
        Ok(Identity::Private(self.keep(file, stamp, key)))
    }

    fn unlock(&self, file: &Path, text: &str, stamp: Stamp) -> Result<Identity, Problem> {
        // OpenSSH's own format has the public key in clear, so that the agent can be asked for it.
        let public = PrivateKey::from_openssh(text).ok().map(|key| key.public_key().clone());
        let problem = match self.passphrase() {
            None => Problem::Locked,
            Some(Err(problem)) => problem,
            Some(Ok(passphrase)) => match keys::decode_secret_key(text, Some(&passphrase)) {
                Ok(key) => return Ok(Identity::Private(self.keep(file, stamp, key))),
                Err(_) => Problem::WrongPassphrase,
            },
        };
        match public {
            Some(public) => Ok(Identity::Public(public, problem)),
            None => Err(problem),
        }
    }

    fn passphrase(&self) -> Option<Result<String, Problem>> {
        let file = self.passphrase_file.as_ref()?;
        Some(match read(&file.clone().into()) {
            Ok((text, _)) => Ok(text.lines().next().unwrap_or_default().to_owned()),
            Err(problem) => Err(Problem::Unreadable(format!("encrypted, and {}: {problem}", file.display()))),
        })
    }

    fn keep(&self, file: &Path, stamp: Stamp, key: PrivateKey) -> Arc<PrivateKey> {
        let key = Arc::new(key);
        let mut unlocked = self.unlocked();
        if unlocked.len() >= MAX_KEPT {
            unlocked.clear();
        }
        unlocked.insert(file.to_owned(), (stamp, Arc::clone(&key)));
        key
    }

    fn unlocked(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Stamp, Arc<PrivateKey>)>> {
        self.unlocked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(file: &NamedFile) -> Result<(String, Stamp), Problem> {
    let unreadable = |error: io::Error| Problem::Unreadable(error.to_string());
    let file = file.open().map_err(|error| match error {
        PathError::Outside => Problem::Refused,
        error if error.is_not_found() => Problem::Missing,
        PathError::Io(error) => unreadable(error),
        PathError::Foreign { .. } | PathError::IsFolder | PathError::NotAFolder { .. } | PathError::NotRegular => {
            Problem::NoKey
        }
    })?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.len() > MAX_BYTES {
        return Err(Problem::NoKey);
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|_| Problem::NoKey)?;
    Ok((text, (metadata.modified().ok(), metadata.len())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{fs, process::Command};

    use super::*;

    /// `None` where there is no ssh-keygen; the tests then have nothing to read.
    fn keygen(folder: &Path, name: &str, args: &[&str]) -> Option<PathBuf> {
        let file = folder.join(name);
        let made = Command::new("ssh-keygen").args(["-q", "-f"]).arg(&file).args(args).status();
        match made {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            made => {
                assert!(made.unwrap().success());
                Some(file)
            }
        }
    }

    #[test]
    fn encrypted_keys_are_unlocked_once() {
        let folder = tempfile::tempdir().unwrap();
        for (name, args) in [
            ("openssh", &["-t", "ed25519", "-N", "secret"][..]),
            ("pkcs8", &["-t", "ecdsa", "-m", "PKCS8", "-N", "secret"]),
        ] {
            let Some(file) = keygen(folder.path(), name, args) else { return };
            let passphrase = folder.path().join("passphrase");
            let ring = KeyRing::new(false, Some(passphrase.clone()), Vec::new());
            let locked = |problem| match ring.load(&file.clone().into()) {
                Ok(Identity::Public(_, found)) => assert_eq!(found, problem),
                Ok(Identity::Private(_)) => panic!("unlocked"),
                Err(found) => assert_eq!(found, problem),
            };
            let _ = fs::remove_file(&passphrase);
            locked(Problem::Unreadable(format!("encrypted, and {}: no such file", passphrase.display())));
            fs::write(&passphrase, "wrong\n").unwrap();
            locked(Problem::WrongPassphrase);
            fs::write(&passphrase, "secret\n").unwrap();
            assert!(matches!(ring.load(&file.clone().into()), Ok(Identity::Private(_))), "{name}");
            fs::remove_file(&passphrase).unwrap();
            assert!(matches!(ring.load(&file.clone().into()), Ok(Identity::Private(_))), "{name} is kept unlocked");
        }
    }

    #[test]
    fn plain_keys_and_public_halves_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let ring = KeyRing::new(false, None, Vec::new());
        for args in [
            &["-t", "ed25519", "-N", ""][..],
            &["-t", "ecdsa", "-N", ""],
            &["-t", "rsa", "-b", "2048", "-N", ""],
            &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""],
        ] {
            let folder = tempfile::tempdir_in(folder.path()).unwrap();
            let Some(file) = keygen(folder.path(), "key", args) else { return };
            let private = ring.load(&file.clone().into()).unwrap();
            assert!(matches!(private, Identity::Private(_)), "{args:?}");
            let public = ring.load(&folder.path().join("key.pub").into()).unwrap();
            assert!(matches!(public, Identity::Public(_, Problem::PublicOnly)));
            assert_eq!(public.public_key().key_data(), private.public_key().key_data());
        }
    }

    #[test]
    fn what_is_no_key_is_named() {
        let ring = KeyRing::new(false, None, Vec::new());
        assert_eq!(ring.load(&PathBuf::from("/nonexistent").into()).unwrap_err(), Problem::Missing);
        assert_eq!(ring.load(&PathBuf::from("/dev/zero").into()).unwrap_err(), Problem::NoKey);
        assert_eq!(ring.load(&PathBuf::from("/etc/passwd").into()).unwrap_err(), Problem::NoKey);
    }
}
