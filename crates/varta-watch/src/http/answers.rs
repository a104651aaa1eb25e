//! The state from which the answers of one listener are made, and the two ways in which most of them are written.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, watch};

use super::accept::GZIP;
use super::agents::find;
use super::events::FOLLOWERS_MAX;
use super::problem::Refusal;
use super::stage::Stage;
use super::work::Work;
use crate::handoff::command::CommandRequest;
use crate::report::history::History;
use crate::settings::http::AgentSeries;
use crate::snapshot::view::{AgentSnapshot, View};

pub(super) const JSON: &str = "application/json";

/// The request headers that affect an answer besides its path: the coding, and for some the format.
pub(super) const VARY_BY_CODING: &str = "accept-encoding";
pub(super) const VARY_BY_FORM: &str = "accept, accept-encoding";

/// The state from which the answers of one listener are made, and the limits on their number.
#[derive(Debug)]
pub(crate) struct Answers {
    pub(super) view: Arc<View>,
    pub(super) history: Arc<History>,
    /// To the control thread.
    pub(super) commands: mpsc::Sender<CommandRequest>,
    pub(super) agents: AgentSeries,
    work: Work,
    pub(super) followers: Arc<Semaphore>,
    pub(super) stage: watch::Receiver<Stage>,
}

/// Query parameters in their original order.
pub(super) type Parameters = Query<Vec<(String, String)>>;

pub(super) type Shared = State<Arc<Answers>>;

/// The agent that a path names.
pub(super) type AgentId = Result<Path<String>, PathRejection>;

impl Answers {
    pub(crate) fn new(
        view: Arc<View>,
        history: Arc<History>,
        commands: mpsc::Sender<CommandRequest>,
        agents: AgentSeries,
        stage: watch::Receiver<Stage>,
    ) -> Arc<Self> {
        Arc::new(Self {
            work: Work::new(Arc::clone(&view.counters)),
            view,
            history,
            commands,
            agents,
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            stage,
        })
    }

    /// An answer that is written on a thread of its own, compressed if the client accepts that.
    pub(super) async fn text(
        &self,
        headers: &HeaderMap,
        content_type: &'static str,
        vary: &'static str,
        write: impl FnOnce(&View) -> Result<String, Refusal> + Send + 'static,
    ) -> Result<Response, Refusal> {
        let view = Arc::clone(&self.view);
        let gzip = GZIP.is_preferred(headers);
        let text = self.work.text(gzip, move || write(&view)).await?;
        let mut response = Body::new(text).into_response();
        let mut set = |name: HeaderName, value| {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        };
        set(header::CONTENT_TYPE, content_type);
        set(header::VARY, vary);
        if gzip {
            set(header::CONTENT_ENCODING, "gzip");
        }
        Ok(response)
    }

    /// The same as JSON.
    pub(super) async fn json<T: Serialize>(
        &self,
        headers: &HeaderMap,
        find: impl FnOnce(&View) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<Response, Refusal> {
        let write =
            |view: &View| find(view).map(|found| serde_json::to_string(&found).unwrap_or_default());
        self.text(headers, JSON, VARY_BY_CODING, write).await
    }
}

impl Answers {
    /// The agent with this id.
    pub(super) async fn find(self: Arc<Self>, id: AgentId) -> Result<AgentSnapshot, Refusal> {
        let Path(id) = id.map_err(|_| no_such_agent())?;
        let view = Arc::clone(&self.view);
        // Looks through the whole table.
        let found = tokio::task::spawn_blocking(move || find(&view, &id)).await;
        found.ok().flatten().ok_or_else(no_such_agent)
    }
}

/// There is no agent with the given id.
pub(super) fn no_such_agent() -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        "no agent with this id is there (any more)",
    )
}

/// The observer stops.
pub(super) fn stops() -> Refusal {
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the observer stops")
}
