//! Commands of an operator to the control thread: pause an agent, resume it. Each is answered.

use tokio::sync::{mpsc, oneshot};
use varta_core::engine::{AgentGone, Command};

/// Commands that wait; a sender of more waits, too.
const COMMANDS_MAX: usize = 64;

/// A command, and who waits for its answer.
#[derive(Debug)]
pub(crate) struct CommandRequest {
    pub(crate) command: Command,
    pub(crate) reply: Reply,
}

/// Answers with the number of the update to the beat path; its effect can be seen once that
/// [is done](super::LivenessProbe::has_done).
pub(crate) type Reply = oneshot::Sender<Result<u64, AgentGone>>;

/// The way to the control thread.
pub(crate) fn channel() -> (mpsc::Sender<CommandRequest>, mpsc::Receiver<CommandRequest>) {
    mpsc::channel(COMMANDS_MAX)
}
