//! The stage between start and end of the observer, as far as requests are concerned.

use tokio::sync::watch;

/// The stage between the observer's start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    /// The observer is not ready any more and reports that in its answers.
    Stopping,
    /// No request is answered any more.
    Closing,
}

/// Resolves when no request is answered any more.
pub(crate) async fn closing(mut stage: watch::Receiver<Stage>) {
    let _ = stage.wait_for(|stage| *stage == Stage::Closing).await;
}
