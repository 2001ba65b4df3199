//! For the fuzzer: what people, and attackers, paste as a connection string.

use super::Target;

/// Whatever is understood names a host that is one, and reads the same when asked twice.
pub(crate) fn ssh_string(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(target) = Target::parse(text) else { return };
    let plain = |word: &str| {
        !word.is_empty() && !word.starts_with('-') && !word.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    assert!(plain(target.host()), "{:?}", target.host());
    assert!(target.user().is_none_or(plain), "{:?}", target.user());
    assert_ne!(target.port(), Some(0));
    assert_eq!(Target::parse(text).ok().as_ref(), Some(&target));
}
