//! The sockets of the observer, from flags, the environment or the defaults.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::Failure;

/// The source of the observer's address: a flag, else a variable, which the observer uses too.
const SOCKET: &str = "--socket";
const CONTROL_SOCKET: &str = "--control-socket";
const SOCKET_VARIABLE: &str = "VARTA_SOCKET";
const CONTROL_SOCKET_VARIABLE: &str = "VARTA_CONTROL_SOCKET";

/// Instead of a path: the observer has no control socket.
const OFF: &str = "off";

/// Which observer is asked.
#[derive(Debug, Args)]
pub(crate) struct ObserverArguments {
    /// Beat socket of the observer, as in 'varta beat'; it answers on the control socket beside it, with
    /// .control after its name [default: $VARTA_SOCKET, else where varta-watch listens by default]
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,

    /// Control socket of the observer, if it is not beside the beat socket [default: $VARTA_CONTROL_SOCKET
    /// unless --socket is given]
    #[arg(long, value_name = "PATH", conflicts_with = "socket")]
    pub(super) control_socket: Option<PathBuf>,
}

/// A path, with its source.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) path: PathBuf,
    pub(super) by: &'static str,
}

impl Given {
    /// The control socket of the selected observer.
    pub(super) fn control_socket(arguments: &ObserverArguments) -> Result<Self, Failure> {
        given_control_socket(arguments, variable)
    }
}

/// The beat socket from the flag or the environment, or the default one.
pub(crate) fn beat_socket(named: Option<&Path>) -> Result<PathBuf, Failure> {
    given_beat_socket(named, variable).map(|given| given.path)
}

/// A variable of the environment; an empty one is ignored.
fn variable(name: &str) -> Option<PathBuf> {
    let value = std::env::var_os(name).filter(|value| !value.is_empty());
    value.map(PathBuf::from)
}

fn given_beat_socket(
    named: Option<&Path>,
    variable: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Given, Failure> {
    let (path, by) = match (named, variable(SOCKET_VARIABLE)) {
        (Some(named), _) => (Some(named.to_owned()), SOCKET),
        (None, Some(path)) => (Some(path), SOCKET_VARIABLE),
        (None, None) => (varta_api::default_socket_path(), SOCKET),
    };
    let path = path.ok_or_else(|| {
        Failure::Usage(
            "nowhere to look for the observer: XDG_RUNTIME_DIR is not set; name its socket with \
             --socket PATH"
                .to_owned(),
        )
    })?;
    Ok(Given { path, by })
}

/// The control socket. The command line takes precedence over the environment.
fn given_control_socket(
    arguments: &ObserverArguments,
    variable: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Given, Failure> {
    let named = match (&arguments.control_socket, &arguments.socket) {
        (Some(control), _) => Some((control.clone(), CONTROL_SOCKET)),
        (None, Some(_)) => None,
        (None, None) => {
            variable(CONTROL_SOCKET_VARIABLE).map(|path| (path, CONTROL_SOCKET_VARIABLE))
        }
    };
    let (given, suffix) = match named {
        Some((path, by)) => (Given { path, by }, ""),
        None => {
            let beats = given_beat_socket(arguments.socket.as_deref(), variable)?;
            let path = varta_api::control_socket_beside(&beats.path);
            (Given { path, ..beats }, ", with .control behind it")
        }
    };
    let Given { path, by } = &given;
    if *by == CONTROL_SOCKET_VARIABLE && path == Path::new(OFF) {
        return Err(Failure::Usage(format!(
            "{by} is off, so that observer cannot be asked; name another one with --socket"
        )));
    }
    let bytes = path.as_os_str().len();
    if bytes > varta_api::SOCKET_PATH_BYTES_MAX {
        let (path, bytes_max) = (path.display(), varta_api::SOCKET_PATH_BYTES_MAX);
        return Err(Failure::Usage(format!(
            "{by}: {path} is {bytes} bytes long{suffix}, the kernel takes {bytes_max}; choose a shorter path"
        )));
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(
        flags: [Option<&str>; 2],
        variables: [Option<&str>; 2],
    ) -> Result<(String, &'static str), String> {
        let [socket, control_socket] = flags.map(|path| path.map(PathBuf::from));
        let arguments = ObserverArguments {
            socket,
            control_socket,
        };
        let [socket, control_socket] = variables.map(|path| path.map(PathBuf::from));
        let variable = |name: &str| match name {
            SOCKET_VARIABLE => socket.clone(),
            CONTROL_SOCKET_VARIABLE => control_socket.clone(),
            _ => panic!("{name}"),
        };
        let given = given_control_socket(&arguments, variable);
        let given = given.map(|Given { path, by }| (path.display().to_string(), by));
        given.map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_environment_says_where_the_observer_is_unless_a_flag_does() {
        let both = [Some("/v"), Some("/vc")];
        for (flags, variables, path, by) in [
            ([Some("/f"), None], both, "/f.control", "--socket"),
            ([None, Some("/fc")], both, "/fc", "--control-socket"),
            ([None, None], both, "/vc", "VARTA_CONTROL_SOCKET"),
            (
                [None, None],
                [Some("/v"), None],
                "/v.control",
                "VARTA_SOCKET",
            ),
        ] {
            let expected = Ok((path.to_owned(), by));
            assert_eq!(given(flags, variables), expected, "{flags:?} {variables:?}");
        }
        let beats = |named| given_beat_socket(named, |_| Some("/v".into())).unwrap();
        assert_eq!(beats(Some(Path::new("/f"))).path, Path::new("/f"));
        assert_eq!(beats(None).path, Path::new("/v"));
    }

    #[test]
    fn an_observer_without_a_control_socket_cannot_be_asked() {
        let why = given([None, None], [Some("/v"), Some("off")]).unwrap_err();
        assert!(why.contains("VARTA_CONTROL_SOCKET is off"), "{why}");
        assert!(given([None, Some("off")], [None, None]).is_ok(), "a file");
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_told_with_its_length_and_the_bound() {
        let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        assert!(given([Some(&path(99)), None], [None, None]).is_ok());
        assert!(given([None, Some(&path(107))], [None, None]).is_ok());
        for (flags, variables, words) in [
            ([Some(path(105)), None], None, "--socket: "),
            ([None, Some(path(113))], None, "--control-socket: "),
            ([None, None], Some(path(105)), "VARTA_SOCKET: "),
        ] {
            let [socket, control_socket] = &flags;
            let flags = [socket.as_deref(), control_socket.as_deref()];
            let why = given(flags, [variables.as_deref(), None]).unwrap_err();
            assert!(why.starts_with(words), "{why}");
            assert!(why.contains("113 bytes") && why.contains("107"), "{why}");
        }
    }
}
