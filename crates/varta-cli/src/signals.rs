//! Signals as messages: a thread waits for them and calls back, so that commands can end cleanly at any point.

use std::future::pending;
use std::io;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// SIGINT: Ctrl-C.
pub(crate) const INTERRUPT: (SignalKind, &str) = (SignalKind::interrupt(), "SIGINT");
/// SIGTERM: from service managers and `kill`.
pub(crate) const TERMINATE: (SignalKind, &str) = (SignalKind::terminate(), "SIGTERM");
/// SIGHUP: the terminal was closed.
pub(crate) const HANGUP: (SignalKind, &str) = (SignalKind::hangup(), "SIGHUP");

/// From now on none of `signals` ends the process; instead `then` is called with the name of each one
/// that arrives.
pub(crate) fn on(
    signals: &[(SignalKind, &'static str)],
    then: impl Fn(&'static str) + Clone + Send + 'static,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let inside = runtime.enter();
    for (kind, name) in signals.iter().copied() {
        let mut arrivals = signal(kind)?;
        let then = then.clone();
        runtime.spawn(async move {
            while arrivals.recv().await.is_some() {
                then(name);
            }
        });
    }
    drop(inside);
    std::thread::Builder::new()
        .name("varta-signals".to_owned())
        .spawn(move || runtime.block_on(pending::<()>()))?;
    Ok(())
}
