//! What comes over the websocket while a run is followed, and whether it can be believed that nothing comes.

use std::time::{Duration, Instant};

use super::ear::Ear;
use crate::{
    comfy::{Decoded, Decoder, NodeFailure, SocketMessage},
    workflow::{Phase, PromptId, WorkflowState},
};

/// The pause before a lost websocket is opened again; each further one is twice as long.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// The longest such pause.
const LISTEN_AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// A socket that has told nothing at all of a running prompt for this long is taken for deaf; another one is opened,
/// which takes twice as long to come under suspicion.
const UNTOLD: Duration = Duration::from_secs(5);

/// A socket that did tell something, and then nothing for this long. Silence is normal while a model loads.
const SILENCE: Duration = Duration::from_secs(120);

/// The websocket of a run, if there is one, and what was heard of the prompt.
#[derive(Debug)]
pub(super) struct Hearing {
    ear: Option<Ear>,
    decoder: Decoder,
    /// The failure as the socket told it: some servers' history lacks its details.
    pub(super) failure: Option<NodeFailure>,
    /// When to open another socket if there is none, and the pause after that.
    again: (Instant, Duration),
    /// Whether the socket has told anything of the prompt, and when last; before that, since when it could have.
    told: (bool, Instant),
    /// How long a socket may tell nothing at all.
    untold: Duration,
    /// When the prompt moved last, as far as is known; before it runs, when that was seen.
    moved: Instant,
}

impl Hearing {
    pub(super) fn new(ear: Option<Ear>, prompt: PromptId) -> Self {
        let now = Instant::now();
        Self {
            ear,
            decoder: Decoder::new(prompt),
            failure: None,
            again: (now, LISTEN_AGAIN),
            told: (false, now),
            untold: UNTOLD,
            moved: now,
        }
    }

    /// The next message; `None` when the socket is gone. Never resolves without one. Cancel-safe, as [`Ear::next`] is.
    pub(super) async fn next(&mut self) -> Option<SocketMessage> {
        let Some(ear) = &mut self.ear else { return std::future::pending().await };
        let message = ear.next().await;
        if message.is_none() {
            self.ear = None;
        }
        message
    }

    /// What a message means for the prompt.
    pub(super) fn understand(&mut self, message: &SocketMessage) -> Decoded {
        let mut decoded = self.decoder.decode(message);
        if !decoded.events.is_empty() {
            self.moved = Instant::now();
            self.told = (true, self.moved);
        }
        self.failure = decoded.failure.take().or(self.failure.take());
        decoded
    }

    /// The prompt goes by this id.
    pub(super) fn rename(&mut self, prompt: PromptId) {
        self.decoder = Decoder::new(prompt);
    }

    /// The queue shows the prompt running. `phase` is what was known before that.
    pub(super) fn note_running(&mut self, phase: Option<Phase>) {
        self.decoder.set_running();
        if phase < Some(Phase::Running) {
            self.moved = Instant::now();
            self.told.1 = self.moved;
        }
    }

    /// The queue shows the prompt waiting.
    pub(super) fn note_waiting(&mut self) {
        self.moved = Instant::now();
        self.told.1 = self.moved;
    }

    /// Whether the socket of a running prompt should be replaced.
    pub(super) fn is_deaf(&mut self) -> bool {
        match self.told {
            _ if self.ear.is_none() => false,
            (true, heard) => heard.elapsed() >= SILENCE,
            (false, since) if since.elapsed() >= self.untold => {
                self.untold *= 2;
                true
            }
            (false, _) => false,
        }
    }

    /// How long a running prompt has not moved.
    pub(super) fn quiet_for(&self) -> Duration {
        self.moved.elapsed()
    }

    /// Whether it is time to open a socket, because there is none.
    pub(super) fn wants_ear(&self) -> bool {
        self.ear.is_none() && Instant::now() >= self.again.0
    }

    /// Takes another socket, or takes note that there is none to be had now.
    pub(super) fn listen_to(&mut self, ear: Option<Ear>, state: &WorkflowState) {
        if ear.is_some() {
            self.rename(state.prompt_id.clone());
            if state.phase() == Some(Phase::Running) {
                self.decoder.set_running();
            }
            self.told = (false, Instant::now());
            self.ear = ear;
        }
        let pause = self.again.1;
        self.again = (Instant::now() + pause, (pause * 2).min(LISTEN_AGAIN_AT_MOST));
    }

    pub(super) async fn close(&mut self) {
        if let Some(ear) = self.ear.take() {
            ear.close().await;
        }
    }
}
