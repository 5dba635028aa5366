//! Progress on standard error; nothing is drawn where that is no terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of so many steps, which says what is being done.
pub fn bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    // A template that cannot be read would be a mistake of ours; the default looks plainer and works.
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}").unwrap_or(ProgressStyle::default_bar());
    bar.set_style(style);
    // Steps take long: the time keeps moving between them.
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
