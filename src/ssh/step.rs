//! One step of a transfer, and what ends it early.

use std::{io, time::Duration};

use russh_sftp::client::error::Error as SftpError;
use tokio::time::sleep;

/// The longest that one request may take while bytes move, in which others stand in line before it. Bytes that answer
/// nothing count for nothing then.
const LONGEST_STEP: Duration = Duration::from_secs(600);

/// The result of a step, unless the connection is gone, nothing moves any more, or it takes far too long.
pub(super) async fn bounded<T>(
    step: impl Future<Output = Result<T, Failure>>,
    gone: impl Future<Output = ()>,
    stalled: impl Future<Output = ()>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        result = step => result,
        () = gone => Err(Failure::Sftp(SftpError::IO(String::new()))),
        () = stalled => Err(Failure::Sftp(SftpError::Timeout)),
        () = sleep(LONGEST_STEP) => {
            let reason = format!("no answer for {} s", LONGEST_STEP.as_secs());
            Err(Failure::Sftp(SftpError::IO(reason)))
        }
    }
}

/// What a step can end with, before it is known what that means.
pub(super) enum Failure {
    Sftp(SftpError),
    /// The box's words, from where the library keeps only those.
    Status(String),
}

impl From<SftpError> for Failure {
    fn from(error: SftpError) -> Self {
        Self::Sftp(error)
    }
}

/// russh-sftp's files wrap its errors into I/O errors, and statuses into their bare texts.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<SftpError>()) {
            Some(inner) => Self::Sftp(inner.clone()),
            None => Self::Status(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    /// Bytes keep moving, but none of them answers.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_never_comes_is_waited_for_ten_minutes() {
        let begun = Instant::now();
        let answer = bounded(pending::<Result<(), Failure>>(), pending(), pending());
        // Else a wait without end would end by the clock of whoever runs the tests.
        let ended = tokio::time::timeout(LONGEST_STEP * 2, answer).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(600));
        let Ok(Err(Failure::Sftp(SftpError::IO(reason)))) = ended else { panic!("it has not ended") };
        assert_eq!(reason, "no answer for 600 s");
    }
}
