//! How far the observer has come, as far as requests are concerned.

use tokio::sync::watch;

/// Where the observer is between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    /// It is not ready any more and says so in its answers.
    Stopping,
    /// Nothing is answered any more.
    Closing,
}

/// Ends when nothing is to be answered any more.
pub(crate) async fn closing(mut stage: watch::Receiver<Stage>) {
    let _ = stage.wait_for(|stage| *stage == Stage::Closing).await;
}
