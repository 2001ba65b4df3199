//! A mark by which one start of ComfyUI is told from the next.
//!
//! ComfyUI empties its temp folder whenever it starts (main.py, `cleanup_temp`, v0.3.64 to v0.26), and keeps queue and
//! history in memory only. A small file there with a random text shows, as long as it can be read back, that the process
//! which could read it before has been up throughout: then a prompt that is in neither queue nor history was never taken.
//! There is one such file per start, whatever the number of prompts and of services that use the box.

use std::time::Duration;

use reqwest::{
    Method,
    multipart::{Form, Part},
};

use super::{
    answer::Answer,
    client::{Client, SMALL, repeated, text_of, within},
    error::ComfyError,
};
use crate::workflow::ServerMark;

const READ: &str = "GET /view";
const WRITE: &str = "POST /upload/image";

/// The file's name; its content is the mark.
const NAME: &str = "comfy-remote-server-mark.txt";

/// What else might lie under that name is not read whole.
const MAX_BYTES: u64 = 4 << 10;

/// How often the mark is looked for, since another service may set one at the same moment.
const ATTEMPTS: u32 = 3;

/// Marking is a precaution: it must not hold up a submission for long.
const DEADLINE: Duration = Duration::from_secs(15);

impl Client {
    /// The mark of the present start, which is set if there is none yet. `None` when this server can't be marked.
    ///
    /// # Errors
    /// As for every read.
    pub async fn mark_server(&self) -> Result<Option<ServerMark>, ComfyError> {
        let mark = async {
            for _ in 0..ATTEMPTS {
                if let Some(mark) = self.server_mark().await? {
                    return Ok(Some(mark));
                }
                if !self.set_mark(&ServerMark::fresh()).await? {
                    return Ok(None);
                }
            }
            Ok(None)
        };
        within(WRITE, DEADLINE, mark).await
    }

    /// The mark of the present start; `None` when it has none.
    ///
    /// # Errors
    /// As for every read.
    pub async fn server_mark(&self) -> Result<Option<ServerMark>, ComfyError> {
        let path = format!("/view?filename={NAME}&type=temp");
        let attempt = || async {
            let sent = self.request(Method::GET, &path).send().await;
            let response = sent.map_err(|error| ComfyError::from_reqwest(READ, error))?;
            self.read_whole(READ, response, MAX_BYTES).await
        };
        match within(READ, SMALL, repeated(attempt)).await {
            Ok(answer) if answer.status.is_success() => {
                Ok(str::from_utf8(&answer.body).ok().and_then(ServerMark::parse))
            }
            Ok(answer) => not_from_a_gateway(&answer).map(|()| None),
            Err(ComfyError::TooBig { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Leaves the mark. `false` when the server does not take it.
    async fn set_mark(&self, mark: &ServerMark) -> Result<bool, ComfyError> {
        let part = Part::text(mark.as_str().to_owned()).file_name(NAME);
        let form = Form::new().text("type", "temp").part("image", part);
        let request = self.request(Method::POST, "/upload/image").multipart(form);
        let exchange = async {
            let response = request.send().await.map_err(|error| ComfyError::from_reqwest(WRITE, error))?;
            self.read_whole(WRITE, response, MAX_BYTES).await
        };
        let answer = within(WRITE, SMALL, exchange).await?;
        not_from_a_gateway(&answer)?;
        let stored = answer.json().await.unwrap_or_default();
        // Under another name when somebody else was faster; then theirs is read.
        Ok(text_of(&stored, "type").as_deref() == Some("temp") && text_of(&stored, "name").is_some())
    }
}

/// A gateway that can't reach ComfyUI at the moment says nothing about its mark.
fn not_from_a_gateway(answer: &Answer) -> Result<(), ComfyError> {
    match answer.success() {
        Err(error @ ComfyError::Foreign { may_pass: true, .. }) => Err(error),
        _ => Ok(()),
    }
}
