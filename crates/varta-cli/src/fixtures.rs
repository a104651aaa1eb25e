//! Fixtures that the tests of several modules share.

use varta_api::log_line::BeatStatus;
use varta_api::v1::{AgentView, State};

/// An agent that is alive.
pub(crate) fn agent(name: &str, pid: u32) -> AgentView {
    AgentView {
        id: format!("{pid}-0"),
        state: State::Alive,
        pid,
        name: Some(name.to_owned()),
        uid: Some(1000),
        unit: None,
        user_unit: None,
        source: None,
        sessions: None,
        transport: "unix".to_owned(),
        status: BeatStatus::Ok,
        payload: 0,
        nonce: None,
        silence: 0.4,
        threshold: 2.0,
        beats: 10,
        beats_per_second: 2.0,
        stalls: 0,
        tracked: 5.0,
        recovery: None,
        gave_up: false,
        paused_for: None,
        pause_reason: None,
    }
}
