//! Outputs come here as soon as their node has run: a rented box can vanish without notice.
//!
//! This is a help, not the truth: whatever does not come this way is fetched when the run is over.

use std::{
    collections::{HashSet, VecDeque},
    pin::pin,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};

use super::{execution::Execution, link::Link};
use crate::workflow::{Folder, Output, RemoteFile, WorkflowState};

/// Files under way at once, while the box still works on the run.
const PARALLEL: usize = 2;

/// The files of one run that are, or were, on their way early.
pub(super) struct EarlyFetches<'a> {
    execution: &'a Execution,
    link: &'a Link,
    under_way: FuturesUnordered<BoxFuture<'a, ()>>,
    waiting: VecDeque<Output>,
    seen: HashSet<RemoteFile>,
}

impl<'a> EarlyFetches<'a> {
    pub(super) fn new(execution: &'a Execution, link: &'a Link) -> Self {
        let under_way = FuturesUnordered::new();
        Self { execution, link, under_way, waiting: VecDeque::new(), seen: HashSet::new() }
    }

    /// Takes up what is new among the reported outputs. Previews wait for the end, when it is known whether they count.
    pub(super) fn take_up(&mut self, state: &WorkflowState) {
        for output in state.outputs.iter().filter(|output| !output.downloaded()) {
            if output.remote.folder == Folder::Output && self.seen.insert(output.remote.clone()) {
                self.waiting.push_back(output.clone());
            }
        }
        self.start_waiting();
    }

    /// Resolves when one has come or failed; never, when none is under way. Cancel-safe.
    pub(super) async fn next(&mut self) {
        if self.under_way.next().await.is_none() {
            std::future::pending::<()>().await;
        }
        self.start_waiting();
    }

    /// Does something else while they come. Whoever talks to the box meanwhile must do it this way: what lies unread in the
    /// tunnel holds up the whole connection, the answer that is waited for included.
    pub(super) async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = self.next() => {}
            }
        }
    }

    /// Lets those that are under way come to their end, which is sooner than beginning them again.
    pub(super) async fn finish(mut self) {
        while self.under_way.next().await.is_some() {}
    }

    fn start_waiting(&mut self) {
        while self.under_way.len() < PARALLEL
            && let Some(output) = self.waiting.pop_front()
        {
            self.under_way.push(Box::pin(self.execution.fetch_early(self.link, output)));
        }
    }
}
