//! Commands of an operator to the control thread: pause an agent, resume it. Each is answered.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use varta_core::Agent;

/// Commands that wait; who sends more waits, too.
const COMMANDS_MAX: usize = 64;

/// What an operator wants done while the observer runs.
#[derive(Debug)]
pub(crate) enum Command {
    /// Do not judge an agent for so long.
    Pause {
        agent: Agent,
        time: Duration,
        reason: Option<String>,
        reply: Reply,
    },
    /// Judge it again. Nothing to do for one that is not paused.
    Resume { agent: Agent, reply: Reply },
}

/// The agent has left by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// Answers with the number of the update to the beat path; its effect can be seen once that
/// [is done](super::LivenessProbe::has_done).
pub(crate) type Reply = oneshot::Sender<Result<u64, Gone>>;

/// The way to the control thread.
pub(crate) fn channel() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(COMMANDS_MAX)
}
