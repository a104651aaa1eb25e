//! Answers: metrics, the JSON API and health, through one router with two listeners, TCP and the control socket.
//!
//! Everything is read from the snapshot ([`crate::snapshot`]) and the log's history, without any effect on the beat
//! path. The control thread's runtime serves both listeners. Bounds: connections per listener, bytes and header lines
//! per request, time to send and to read ([`connection`]), requests per address ([`rate`]), running requests, waiting
//! requests and answers that are not read yet ([`work`]), followers of events ([`events`]), the last three per
//! listener. Bodies are read only for changes ([`pause`]), up to a bound.

mod accept;
mod agents;
mod answers;
mod connection;
mod events;
mod guard;
mod listen;
pub(crate) mod metrics;
mod pause;
mod problem;
mod rate;
mod routes;
mod stage;
mod work;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::handoff::command::CommandRequest;
use crate::report::history::History;
use crate::settings::http::{HttpSettings, Place};
use crate::snapshot::view::View;
use crate::socket_file::BoundSocket;
use crate::token::TokenFile;
use answers::Answers;
use connection::{Listener, Socket};
use guard::Guard;
pub(crate) use listen::ListenError;
use listen::{open_control, open_tcp, opened};
use routes::router;
use stage::Stage;

/// Connections of one listener at the same time, if there are descriptors for as many.
const CONNECTIONS_MAX: usize = 256;

/// How long current answers may take when the observer stops.
const STOP_WAIT: Duration = Duration::from_millis(500);

/// Listeners that are open and not served yet: a client that connects waits.
#[derive(Debug)]
pub(crate) struct Listeners {
    tcp: Option<TcpListener>,
    control: Option<(BoundSocket, UnixListener)>,
    token: Option<Arc<TokenFile>>,
    places: Places,
}

/// The listeners.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) control: Option<PathBuf>,
    /// Why a default listener is missing.
    pub(crate) notices: Vec<String>,
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.tcp, &self.control) {
            (Some(tcp), Some(control)) => {
                write!(f, "answers on http://{tcp} and {}", control.display())
            }
            (Some(tcp), None) => write!(f, "answers on http://{tcp}"),
            (None, Some(control)) => write!(f, "answers on {}", control.display()),
            (None, None) => f.write_str("answers nowhere"),
        }
    }
}

/// Listeners that are served.
pub(crate) struct Server {
    listeners: JoinSet<()>,
    stage: watch::Sender<Stage>,
    _control: Option<BoundSocket>,
}

impl Listeners {
    /// Opens the listeners, or returns the error of a requested one. A default one may be missing.
    pub(crate) fn open(settings: &HttpSettings) -> Result<Self, ListenError> {
        let token = settings.token_file.as_deref().map(TokenFile::open);
        let token = token.transpose().map_err(ListenError::Token)?;
        let mut places = Places::default();
        let tcp = opened(settings.tcp.as_ref(), &mut places.notices, open_tcp)?;
        let (tcp, address) = tcp.unzip();
        places.tcp = address;
        let control = settings.control.as_ref();
        let control = opened(control, &mut places.notices, |path| open_control(path))?;
        if let Some(Place { at, .. }) = settings.control.as_ref().filter(|_| control.is_some()) {
            places.control = Some(at.clone());
        }
        Ok(Self {
            tcp,
            control,
            token: token.map(Arc::new),
            places,
        })
    }

    pub(crate) fn places(&self) -> Places {
        self.places.clone()
    }

    /// The token that requests over TCP must present.
    pub(crate) fn token(&self) -> Option<Arc<TokenFile>> {
        self.token.clone()
    }

    /// Starts to answer. Must be called within the runtime; `descriptors` is how many there are for listeners and all
    /// other short-lived uses.
    pub(crate) fn serve(
        self,
        view: View,
        history: &Arc<History>,
        commands: &mpsc::Sender<CommandRequest>,
        settings: &HttpSettings,
        descriptors: usize,
    ) -> io::Result<Server> {
        let (stage, seen) = watch::channel(Stage::Running);
        let counters = Arc::clone(&view.counters);
        let view = Arc::new(view);
        let router = || {
            let view = Arc::clone(&view);
            let (history, commands) = (Arc::clone(history), commands.clone());
            router(Answers::new(
                view,
                history,
                commands,
                settings.agents,
                seen.clone(),
            ))
        };
        let mut listeners = JoinSet::new();
        let listener = |socket, router| Listener {
            socket,
            router,
            connections_max: connections_max(descriptors),
            counters: Arc::clone(&counters),
            stage: seen.clone(),
        };
        if let Some(socket) = self.tcp {
            let socket = tokio::net::TcpListener::from_std(socket)?;
            let guard = Arc::new(Guard::new(self.token, Arc::clone(&counters)));
            let guarded = router().layer(from_fn_with_state(guard, Guard::check));
            listeners.spawn(listener(Socket::Tcp(socket), guarded).serve());
        }
        let mut control = None;
        if let Some((bound, socket)) = self.control {
            let socket = tokio::net::UnixListener::from_std(socket)?;
            listeners.spawn(listener(Socket::Unix(socket), router()).serve());
            control = Some(bound);
        }
        Ok(Server {
            listeners,
            stage,
            _control: control,
        })
    }
}

impl Server {
    /// Continues to answer, and reports that the observer stops.
    pub(crate) fn set_stopping(&self) {
        let _ = self.stage.send(Stage::Stopping);
    }

    /// Accepts no more connections, lets current answers end within a bound, and removes the control socket.
    pub(crate) async fn close(mut self) {
        let _ = self.stage.send(Stage::Closing);
        let ended = async { while self.listeners.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_WAIT, ended).await;
    }
}

/// Connections of one listener: both listeners together use no more than half of the descriptors.
fn connections_max(descriptors: usize) -> usize {
    (descriptors / 4).clamp(1, CONNECTIONS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_listeners_leave_half_of_the_descriptors_to_others() {
        for descriptors in [4, 8, 31, 256, 1_000_000] {
            let both = 2 * connections_max(descriptors);
            assert!((2..=descriptors / 2).contains(&both), "{descriptors}");
        }
        assert_eq!(connections_max(0), 1);
        assert_eq!(connections_max(2048), CONNECTIONS_MAX);
    }
}
