//! One progress bar per node on a terminal, one line per change elsewhere.

use std::{
    collections::HashMap,
    io::{IsTerminal, stdout},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::{say, text};

/// Draws what the progress endpoint says.
pub(super) struct Bars {
    screen: MultiProgress,
    bars: HashMap<String, ProgressBar>,
    plain: bool,
    last: String,
}

impl Bars {
    pub(super) fn new() -> Self {
        let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        Self { screen, bars: HashMap::new(), plain: !stdout().is_terminal(), last: String::new() }
    }

    pub(super) fn draw(&mut self, progress: &Value) {
        if self.plain {
            self.print(progress);
            return;
        }
        for node in progress["nodes"].as_array().into_iter().flatten() {
            let (Some(id), Some(class)) = (text(&node["node_id"]), text(&node["node_type"])) else { continue };
            let screen = &self.screen;
            let bar = self.bars.entry(id.to_owned()).or_insert_with(|| screen.add(bar(class)));
            let percent = node["progress"].as_f64().unwrap_or_default();
            bar.set_position(percent as u64);
            bar.set_message(text(&node["message"]).or(text(&node["status"])).unwrap_or_default().to_owned());
            if node["status"] == "executed" && !bar.is_finished() {
                bar.abandon();
            }
        }
    }

    fn print(&mut self, progress: &Value) {
        let line = format!(
            "{} ({}) {}%",
            text(&progress["status"]).unwrap_or_default(),
            text(&progress["current_node"]).or(text(&progress["phase"])).unwrap_or("done"),
            progress["progress_percent"]
        );
        if line != self.last {
            say(&line);
            self.last = line;
        }
    }
}

fn bar(class: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("  {prefix:16} [{bar:32}] {pos:>3}%  {msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    ProgressBar::new(100).with_style(style).with_prefix(class.to_owned())
}
