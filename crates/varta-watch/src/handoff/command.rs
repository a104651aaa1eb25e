//! Commands of an operator to the control thread: pause an agent, resume it. Each is answered.

use tokio::sync::{mpsc, oneshot};
use varta_core::engine::{AgentGone, Command};

/// Commands that may be queued; a caller with one more waits.
const COMMANDS_MAX: usize = 64;

/// A command, and the channel for its answer.
#[derive(Debug)]
pub(crate) struct CommandRequest {
    pub(crate) command: Command,
    pub(crate) reply: Reply,
}

/// The answer contains the number of the update to the beat path; its effect is visible once that [is
/// done](super::LivenessProbe::has_done).
pub(crate) type Reply = oneshot::Sender<Result<u64, AgentGone>>;

/// The queue to the control thread.
pub(crate) fn channel() -> (mpsc::Sender<CommandRequest>, mpsc::Receiver<CommandRequest>) {
    mpsc::channel(COMMANDS_MAX)
}
