//! Running what the core decided: one command, aimed at one process.
//!
//! The command is an argument vector, never a shell line. Right before it starts, the process it is
//! meant for is taken hold of and compared with the one that fell silent: a recycled pid is not
//! touched. The child gets a clean environment, no input, and a process group of its own, which is
//! killed as a whole when its time is up.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use varta_core::Agent;

use crate::identity::{self, Means};

/// Where programs are looked up, and all a child knows of the observer's environment.
const CHILD_PATH: &str = "/usr/bin:/bin";

/// What `{pid}` stands for in an argument.
const PID_PLACEHOLDER: &str = "{pid}";

/// What stands for the address of an agent elsewhere; empty for a local one.
pub(crate) const SOURCE_PLACEHOLDER: &str = "{source}";

/// A recovery command that cannot be used. The text names the flag.
#[derive(Debug)]
#[non_exhaustive]
pub(crate) enum CommandError {
    Empty,
    NotFound(String),
    Unreachable(PathBuf, io::Error),
    NotExecutable(PathBuf),
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(
                f,
                "--recovery-exec is empty; name a program or leave it out"
            ),
            Self::NotFound(program) => write!(
                f,
                "--recovery-exec: program {program} not found in the command's PATH; give its full path"
            ),
            Self::Unreachable(path, error) => write!(
                f,
                "--recovery-exec: cannot use {}: {error}; name a program this user may run",
                path.display()
            ),
            Self::NotExecutable(path) => write!(
                f,
                "--recovery-exec: {} is not an executable file for this user",
                path.display()
            ),
        }
    }
}

impl std::error::Error for CommandError {}

/// A checked recovery command.
#[derive(Clone, Debug)]
pub(crate) struct RecoveryCommand {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    timeout: Option<Duration>,
}

/// Why a command was not started.
#[derive(Debug)]
pub(crate) enum StartError {
    /// The process it is meant for has ended, or its pid belongs to another one now.
    TargetGone,
    /// It lives in another pid namespace, and the operator has not allowed that.
    CrossNamespace,
    /// Nothing proves which process the pid belongs to.
    Unidentified,
    /// The system could not start it.
    Spawn(io::Error),
}

/// A command at work.
pub(crate) struct Running {
    child: Child,
    pub(crate) pid: u32,
    started: Instant,
    timeout: Option<Duration>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: io::Result<ExitStatus>,
    /// It was killed because its time was up.
    pub(crate) killed: bool,
    pub(crate) duration: Duration,
}

impl RecoveryCommand {
    /// Splits `text` at white space, as the 0.2.0 generation did: no quoting, no expansion. The
    /// program must exist and be executable now.
    pub(crate) fn parse(
        text: &str,
        environment: Vec<(String, String)>,
        timeout: Option<Duration>,
    ) -> Result<Self, CommandError> {
        let mut words = text.split_whitespace();
        let program = words.next().ok_or(CommandError::Empty)?;
        let path = environment
            .iter()
            .rev()
            .find(|(key, _)| key == "PATH")
            .map_or(CHILD_PATH, |(_, value)| value);
        Ok(Self {
            program: find_program(program, path)?,
            arguments: words.map(str::to_owned).collect(),
            environment,
            timeout,
        })
    }

    /// The command line for this agent, for people to read.
    pub(crate) fn shown_for(&self, pid: u32, source: Option<IpAddr>) -> String {
        let mut shown = self.program.display().to_string();
        for argument in self.arguments_for(pid, source) {
            shown.push(' ');
            shown.push_str(&argument);
        }
        shown
    }

    /// The command line with its placeholders.
    pub(crate) fn shown(&self) -> String {
        format!("{} {}", self.program.display(), self.arguments.join(" "))
            .trim_end()
            .to_owned()
    }

    fn arguments_for(&self, pid: u32, source: Option<IpAddr>) -> impl Iterator<Item = String> {
        let pid = pid.to_string();
        let source = source.map(|source| source.to_string()).unwrap_or_default();
        self.arguments.iter().map(move |argument| {
            let argument = argument.replace(PID_PLACEHOLDER, &pid);
            argument.replace(SOURCE_PLACEHOLDER, &source)
        })
    }

    /// Starts the command for this very process, or says why not. For a process elsewhere, whose address
    /// is `source`, the command itself must find out who that is.
    pub(crate) fn start(
        &self,
        agent: Agent,
        source: Option<IpAddr>,
        means: Means,
    ) -> Result<Running, StartError> {
        if agent.instance == identity::UNIDENTIFIED {
            return Err(StartError::Unidentified);
        }
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments_for(agent.pid, source))
            .env_clear()
            .env("PATH", CHILD_PATH)
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        if !agent.is_remote() {
            check_target(agent, means)?;
        }
        let child = command.spawn().map_err(StartError::Spawn)?;
        let pid = child.id().unwrap_or(0);
        Ok(Running {
            child,
            pid,
            started: Instant::now(),
            timeout: self.timeout,
        })
    }
}

/// Whether a process of this host is still the one that is meant.
fn check_target(agent: Agent, means: Means) -> Result<(), StartError> {
    // The latest moment at which the number can be checked. It does not reserve the pid for as long as
    // the command takes to use it.
    let target = means.hold(agent.pid).map_err(|error| {
        if identity::is_gone(&error) {
            StartError::TargetGone
        } else {
            StartError::Spawn(error)
        }
    })?;
    if target.instance != agent.instance || identity::has_ended(&target.pidfd) {
        return Err(StartError::TargetGone);
    }
    Ok(())
}

impl Running {
    /// Waits for the end, or kills the whole group when the time is up.
    pub(crate) async fn wait(mut self) -> Ended {
        let limit = self.timeout.unwrap_or(Duration::MAX);
        let in_time = tokio::time::timeout(limit, self.child.wait()).await;
        let killed = in_time.is_err();
        let status = match in_time {
            Ok(status) => status,
            Err(_) => {
                kill_group(self.pid);
                self.child.wait().await
            }
        };
        Ended {
            status,
            killed,
            duration: self.started.elapsed(),
        }
    }
}

/// Kills a command and everything it started that stayed in its process group. The caller makes sure
/// that the command has not been reaped, so that the number is still its own.
pub(crate) fn kill_group(pid: u32) {
    if let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn find_program(program: &str, path: &str) -> Result<PathBuf, CommandError> {
    if program.contains('/') {
        let path = PathBuf::from(program);
        return match path.metadata() {
            Err(error) => Err(CommandError::Unreachable(path, error)),
            Ok(_) if !is_executable(&path) => Err(CommandError::NotExecutable(path)),
            Ok(_) => Ok(path),
        };
    }
    std::env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| CommandError::NotFound(program.to_owned()))
}

fn is_executable(path: &Path) -> bool {
    let is_program = path
        .metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    is_program && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means() -> Means {
        Means::find(std::os::unix::net::UnixDatagram::unbound().unwrap())
    }

    fn parse(text: &str) -> Result<RecoveryCommand, CommandError> {
        RecoveryCommand::parse(text, Vec::new(), None)
    }

    fn this_process() -> Agent {
        let pid = std::process::id();
        Agent {
            slot: 0,
            pid,
            instance: means().hold(pid).unwrap().instance,
        }
    }

    async fn run(command: &RecoveryCommand, agent: Agent) -> Ended {
        command.start(agent, None, means()).unwrap().wait().await
    }

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn words_are_split_at_white_space_and_every_placeholder_is_filled() {
        let command = parse(" /bin/echo  {pid} 'a b' x{pid}y{pid} ").unwrap();
        assert_eq!(command.shown_for(7, None), "/bin/echo 7 'a b' x7y7");
        assert_eq!(command.shown(), "/bin/echo {pid} 'a b' x{pid}y{pid}");
    }

    #[test]
    fn an_agent_elsewhere_is_named_by_its_address_and_a_local_one_has_none() {
        let command = parse("/bin/echo {pid}@{source}").unwrap();
        let address = "10.0.0.7".parse().unwrap();
        assert_eq!(command.shown_for(7, Some(address)), "/bin/echo 7@10.0.0.7");
        assert_eq!(command.shown_for(7, None), "/bin/echo 7@");
    }

    #[test]
    fn a_program_without_a_slash_is_looked_up_in_the_childs_path() {
        assert!(parse("true").unwrap().shown().ends_with("bin/true"));
        let elsewhere = vec![("PATH".to_owned(), "/nowhere".to_owned())];
        let error = RecoveryCommand::parse("true", elsewhere, None).unwrap_err();
        assert!(matches!(error, CommandError::NotFound(_)), "{error}");
    }

    #[test]
    fn an_unusable_program_is_named_at_start() {
        for (text, words) in [
            ("   ", "empty"),
            ("no-such-program-here", "no-such-program-here not found"),
            ("/no/such/program {pid}", "/no/such/program: No such file"),
            ("/etc/passwd {pid}", "/etc/passwd is not an executable file"),
            ("/usr/bin", "/usr/bin is not an executable file"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert!(error.contains("--recovery-exec"), "{error}");
        }
    }

    #[test]
    fn the_exit_status_of_the_command_is_told() {
        block_on(async {
            let ended = run(&parse("sh -c {pid}").unwrap(), this_process()).await;
            assert_eq!(ended.status.unwrap().code(), Some(127), "no such command");
            assert!(!ended.killed);
        });
    }

    #[test]
    fn a_process_with_a_recycled_pid_is_not_touched() {
        block_on(async {
            let other = Agent {
                instance: this_process().instance + 1,
                ..this_process()
            };
            let command = parse("true").unwrap();
            assert!(matches!(
                command.start(other, None, means()),
                Err(StartError::TargetGone)
            ));
            let unknown = Agent {
                instance: identity::UNIDENTIFIED,
                ..this_process()
            };
            assert!(matches!(
                command.start(unknown, None, means()),
                Err(StartError::Unidentified)
            ));
        });
    }

    #[test]
    fn a_process_that_has_ended_is_not_touched_even_as_a_zombie() {
        block_on(async {
            let mut child = std::process::Command::new("sleep")
                .arg("60")
                .spawn()
                .unwrap();
            let agent = Agent {
                slot: 0,
                pid: child.id(),
                instance: means().hold(child.id()).unwrap().instance,
            };
            child.kill().unwrap();
            let command = parse("true").unwrap();
            while command.start(agent, None, means()).is_ok() {
                tokio::task::yield_now().await;
            }
            assert!(matches!(
                command.start(agent, None, means()),
                Err(StartError::TargetGone)
            ));
            child.wait().unwrap();
            assert!(matches!(
                command.start(agent, None, means()),
                Err(StartError::TargetGone)
            ));
        });
    }

    #[test]
    fn a_command_that_takes_too_long_is_killed_with_everything_it_started() {
        block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let script = directory.path().join("slow");
            let marker = directory.path().join("grandchild");
            let text = format!(
                "#!/bin/sh\nsleep 600 &\necho $! > {}\nwait\n",
                marker.display()
            );
            std::fs::write(&script, text).unwrap();
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
            let command = RecoveryCommand::parse(
                script.to_str().unwrap(),
                Vec::new(),
                Some(Duration::from_millis(300)),
            );
            let ended = run(&command.unwrap(), this_process()).await;
            assert!(ended.killed);
            let grandchild: u32 = std::fs::read_to_string(&marker)
                .unwrap()
                .trim()
                .parse()
                .unwrap();
            let gone = means().hold(grandchild).map_or(true, |held| {
                use rustix::event::{PollFd, PollFlags, poll};
                let mut fds = [PollFd::new(&held.pidfd, PollFlags::IN)];
                let second = rustix::time::Timespec {
                    tv_sec: 5,
                    tv_nsec: 0,
                };
                poll(&mut fds, Some(&second)).unwrap() > 0
            });
            assert!(gone, "the grandchild survived");
        });
    }

    #[test]
    fn the_child_sees_a_clean_environment_and_what_was_asked_for() {
        block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let script = directory.path().join("show");
            let out = directory.path().join("env");
            std::fs::write(&script, format!("#!/bin/sh\nenv > {}\n", out.display())).unwrap();
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
            let environment = vec![("WHO".to_owned(), "a=b".to_owned())];
            let command = RecoveryCommand::parse(script.to_str().unwrap(), environment, None);
            run(&command.unwrap(), this_process()).await;
            let seen = std::fs::read_to_string(&out).unwrap();
            assert!(seen.contains("PATH=/usr/bin:/bin\n"), "{seen}");
            assert!(seen.contains("WHO=a=b\n"), "{seen}");
            assert!(!seen.contains("CARGO"), "{seen}");
        });
    }
}
