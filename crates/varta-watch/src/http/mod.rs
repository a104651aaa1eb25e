//! Answers: metrics, the JSON API and health, through one router with two doors, TCP and the control socket.
//!
//! Everything is read from what the other rooms put up ([`view`]); the beat path is not asked and does not
//! notice. Both doors are served by the control thread's runtime. Bounds: connections per door, bytes and header
//! lines per request, time to ask and to read ([`connection`]), requests per address ([`rate`]), questions at
//! work, those that wait and the answers that are not read yet ([`work`]), followers of events ([`events`]), the
//! last three per door. Bodies are read where something is to be changed ([`pause`]), up to a bound.

mod accept;
mod agents;
mod connection;
mod events;
mod guard;
pub(crate) mod metrics;
mod pause;
mod problem;
mod rate;
mod routes;
pub(crate) mod token;
pub(crate) mod view;
mod work;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::config::http::{HttpConfig, Place};
use crate::config::users::SocketAccess;
use crate::control::wishes::Wish;
use crate::socket_file::{BoundSocket, Purpose};
use connection::{Door, Listener};
use guard::Guard;
use routes::{Answers, router};
use token::TokenFile;
use view::View;

/// Connections of one door at the same time, if there are descriptors for as many.
const CONNECTIONS_MAX: usize = 256;

/// How long answers under way may take when the observer stops.
const STOP_WAIT: Duration = Duration::from_millis(500);

/// The control socket is for the observer's own user, and for root.
const CONTROL_ACCESS: SocketAccess = SocketAccess {
    mode: 0o600,
    gid: None,
};

/// Doors that are open and not served yet: who knocks waits.
#[derive(Debug)]
pub(crate) struct Doors {
    tcp: Option<TcpListener>,
    control: Option<(BoundSocket, UnixListener)>,
    token: Option<Arc<TokenFile>>,
    places: Places,
}

/// Where questions are answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) tcp: Option<SocketAddr>,
    pub(crate) control: Option<PathBuf>,
    /// Why a door that was not asked for is not there.
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

/// How far the observer has come, as its doors need to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    /// It is not ready any more and says so to whoever asks.
    Stopping,
    /// Nobody is answered any more.
    Closing,
}

/// Doors that are served.
pub(crate) struct Served {
    doors: JoinSet<()>,
    stage: watch::Sender<Stage>,
    _control: Option<BoundSocket>,
}

impl Doors {
    /// Opens what was asked for, or says what is in the way. What nobody asked for may be missing.
    pub(crate) fn open(config: &HttpConfig) -> Result<Self, String> {
        let token = config.token_file.as_deref().map(TokenFile::open);
        let token = token.transpose().map_err(|error| error.to_string())?;
        let mut places = Places::default();
        let tcp = opened(config.tcp.as_ref(), &mut places.notices, open_tcp)?;
        let (tcp, address) = tcp.unzip();
        places.tcp = address;
        let control = opened(config.control.as_ref(), &mut places.notices, |path| {
            open_control(path)
        })?;
        if let Some(Place { at, .. }) = config.control.as_ref().filter(|_| control.is_some()) {
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

    /// The token that questions over TCP must bring along.
    pub(crate) fn token(&self) -> Option<Arc<TokenFile>> {
        self.token.clone()
    }

    /// Begins to answer. Must be called within the runtime; `descriptors` is how many there are for doors and
    /// everything else that comes and goes.
    pub(crate) fn serve(
        self,
        view: View,
        wishes: &mpsc::Sender<Wish>,
        config: &HttpConfig,
        descriptors: usize,
    ) -> io::Result<Served> {
        let (stage, seen) = watch::channel(Stage::Running);
        let counters = Arc::clone(&view.counters);
        let view = Arc::new(view);
        let router = || {
            let view = Arc::clone(&view);
            let wishes = wishes.clone();
            router(Answers::new(view, wishes, config.agents, seen.clone()))
        };
        let mut doors = JoinSet::new();
        let door = |listener, router| Door {
            listener,
            router,
            connections_max: connections_max(descriptors),
            counters: Arc::clone(&counters),
            stage: seen.clone(),
        };
        if let Some(listener) = self.tcp {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let guard = Arc::new(Guard::new(self.token, Arc::clone(&counters)));
            let guarded = router().layer(from_fn_with_state(guard, Guard::check));
            doors.spawn(door(Listener::Tcp(listener), guarded).serve());
        }
        let mut control = None;
        if let Some((socket, listener)) = self.control {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            doors.spawn(door(Listener::Unix(listener), router()).serve());
            control = Some(socket);
        }
        Ok(Served {
            doors,
            stage,
            _control: control,
        })
    }
}

impl Served {
    /// Goes on answering, and says that the observer stops.
    pub(crate) fn say_stopping(&self) {
        let _ = self.stage.send(Stage::Stopping);
    }

    /// Takes no more connections, lets answers under way end for a moment, and removes the control socket.
    pub(crate) async fn close(mut self) {
        let _ = self.stage.send(Stage::Closing);
        let ended = async { while self.doors.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_WAIT, ended).await;
    }
}

/// Connections of one door: with those of the other one no more than half of what there is.
fn connections_max(descriptors: usize) -> usize {
    (descriptors / 4).clamp(1, CONNECTIONS_MAX)
}

/// Opens a door; one that nobody asked for costs a notice if it cannot be had.
fn opened<T, D>(
    place: Option<&Place<T>>,
    notices: &mut Vec<String>,
    open: impl FnOnce(&T) -> Result<D, String>,
) -> Result<Option<D>, String> {
    let Some(Place { at, asked_for }) = place else {
        return Ok(None);
    };
    match open(at) {
        Ok(door) => Ok(Some(door)),
        Err(problem) if *asked_for => Err(problem),
        Err(problem) => {
            notices.push(problem);
            Ok(None)
        }
    }
}

fn open_tcp(address: &SocketAddr) -> Result<(TcpListener, SocketAddr), String> {
    let open = || {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    open().map_err(|error: io::Error| {
        format!("cannot answer on {address}: {error}; choose another address with --http, or off")
    })
}

fn open_control(path: &Path) -> Result<(BoundSocket, UnixListener), String> {
    let bound = BoundSocket::bind(path, CONTROL_ACCESS, Purpose::Questions)
        .map_err(|error| error.to_string())?;
    let socket = bound.as_fd().try_clone_to_owned();
    let socket = socket.map_err(|error| format!("cannot listen on {}: {error}", path.display()))?;
    Ok((bound, socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_doors_leave_half_of_the_descriptors_to_others() {
        for descriptors in [4, 8, 31, 256, 1_000_000] {
            let both = 2 * connections_max(descriptors);
            assert!((2..=descriptors / 2).contains(&both), "{descriptors}");
        }
        assert_eq!(connections_max(0), 1);
        assert_eq!(connections_max(2048), CONNECTIONS_MAX);
    }
}
