//! The flags about HTTP, and their combination.
//!
//! No listener is opened in this module: the start checks whether an address is available and a file is valid.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;

use super::Toggle;
use super::problems::Problems;
use super::units::{OFF, quoted};
use crate::settings::http::{AgentSeries, HttpSettings, Place};

/// The flags about answering.
#[derive(Debug, Args)]
pub(super) struct HttpFlags {
    /// Address and port to answer HTTP on; or off
    ///
    /// Port 0 stands for any free one, which is then printed on standard output. Unless given:
    /// 127.0.0.1:8278, if it is free.
    #[arg(long, alias = "prom-addr", value_name = "ADDR|off", value_parser = address_or_off, help_heading = "Answering")]
    http: Option<Toggle<SocketAddr>>,

    /// File with the token that questions over TCP must have
    ///
    /// 16 to 4096 characters, readable by its owner only; needed unless --http is on loopback.
    #[arg(
        long,
        alias = "prom-token-file",
        value_name = "PATH",
        help_heading = "Answering"
    )]
    http_token_file: Option<PathBuf>,

    /// Unix socket to answer HTTP on; or off
    ///
    /// For the observer's own user. Unless given: next to the socket, its name and .control.
    #[arg(long, value_name = "PATH|off", value_parser = path_or_off, help_heading = "Answering")]
    control_socket: Option<Toggle<PathBuf>>,

    /// Agents that have metrics of their own
    ///
    /// All, only faulty ones, none, or that many at most.
    #[arg(long, value_name = "all|faulty|none|N", value_parser = agent_series, default_value = "all", help_heading = "Answering")]
    metrics_agents: AgentSeries,
}

impl HttpFlags {
    /// The combination of the flags. Reports every problem.
    pub(super) fn check(self, socket: &Path, problems: &mut Problems) -> HttpSettings {
        let tcp = match self.http {
            Some(Toggle::Off) => None,
            Some(Toggle::At(at)) => Some(Place {
                at,
                asked_for: true,
            }),
            None => Some(Place {
                at: varta_api::HTTP_ADDRESS,
                asked_for: false,
            }),
        };
        if tcp.is_none() && self.http_token_file.is_some() {
            let text = "it is about TCP, and --http is off; leave one out";
            problems.about("http-token-file", &["http"], text);
        }
        if let Some(Place { at, .. }) = &tcp
            && self.http_token_file.is_none()
            && !is_loopback(at.ip())
        {
            let text = format!(
                "{at} can be reached from elsewhere and needs a token: give --http-token-file, or an address \
                 on loopback"
            );
            problems.about("http", &["http-token-file"], text);
        }
        let control = match self.control_socket {
            Some(Toggle::Off) => None,
            Some(Toggle::At(at)) => {
                if at == socket {
                    let text = "it names the same file as --socket; give another path";
                    problems.about("control-socket", &["socket"], text);
                }
                Some(Place {
                    at,
                    asked_for: true,
                })
            }
            None => Some(Place {
                at: varta_api::control_socket_beside(socket),
                asked_for: false,
            }),
        };
        HttpSettings {
            tcp,
            token_file: self.http_token_file,
            control,
            agents: self.metrics_agents,
        }
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn address_or_off(text: &str) -> Result<Toggle<SocketAddr>, String> {
    if text == OFF {
        return Ok(Toggle::Off);
    }
    text.parse().map(Toggle::At).map_err(|_| {
        format!(
            "{} is not an address with a port; write 127.0.0.1:8278, [::1]:8278 or off",
            quoted(text)
        )
    })
}

fn path_or_off(text: &str) -> Result<Toggle<PathBuf>, String> {
    match text {
        "" => Err("it is empty; give a path or off".to_owned()),
        OFF => Ok(Toggle::Off),
        path => Ok(Toggle::At(path.into())),
    }
}

fn agent_series(text: &str) -> Result<AgentSeries, String> {
    Ok(match text {
        "all" => AgentSeries::All,
        "faulty" => AgentSeries::Faulty,
        "none" => AgentSeries::None,
        number => AgentSeries::AtMost(usize::from_str(number).map_err(|_| {
            format!(
                "{} means nothing here; write all, faulty, none or a number of agents",
                quoted(number)
            )
        })?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{error_of, parse};

    const SOCKET: &str = "--socket=/run/here/varta.sock";

    fn http(arguments: &[&str]) -> HttpSettings {
        let all: Vec<&str> = [SOCKET]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        parse(&all).unwrap().settings.http
    }

    #[test]
    fn loopback_and_a_socket_next_to_the_beat_socket_answer_unless_told_otherwise() {
        let config = http(&[]);
        let tcp = config.tcp.unwrap();
        assert_eq!(tcp.at.to_string(), "127.0.0.1:8278");
        assert!(!tcp.asked_for);
        let control = config.control.unwrap();
        assert_eq!(control.at, PathBuf::from("/run/here/varta.sock.control"));
        assert!(!control.asked_for);
        assert_eq!(config.agents, AgentSeries::All);
        assert_eq!(config.token_file, None);
    }

    #[test]
    fn either_listener_can_be_off() {
        let config = http(&["--http=off", "--control-socket=off"]);
        assert_eq!((config.tcp, config.control), (None, None));
    }

    #[test]
    fn the_names_of_0_2_0_mean_the_same() {
        let old = http(&["--prom-addr=0.0.0.0:9100", "--prom-token-file=/t"]);
        assert_eq!(old, http(&["--http=0.0.0.0:9100", "--http-token-file=/t"]));
        assert!(old.tcp.unwrap().asked_for);
    }

    #[test]
    fn off_loopback_a_token_is_needed() {
        for address in ["0.0.0.0:1", "192.0.2.1:1", "[::]:1", "[::ffff:192.0.2.1]:1"] {
            let error = error_of(&[SOCKET, "--http", address]);
            assert!(error.contains(address), "{error}");
            assert!(error.contains("--http-token-file"), "{error}");
        }
        for address in ["127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            http(&["--http", address]);
        }
    }

    #[test]
    fn a_token_without_a_listener_is_an_error() {
        let error = error_of(&[SOCKET, "--http=off", "--http-token-file=/t"]);
        assert!(error.contains("--http-token-file"), "{error}");
    }

    #[test]
    fn one_file_cannot_take_beats_and_questions() {
        let error = error_of(&[SOCKET, "--control-socket=/run/here/varta.sock"]);
        assert!(error.contains("--control-socket"), "{error}");
    }

    #[test]
    fn agents_with_metrics_of_their_own_can_be_chosen() {
        for (text, series) in [
            ("all", AgentSeries::All),
            ("faulty", AgentSeries::Faulty),
            ("none", AgentSeries::None),
            ("100", AgentSeries::AtMost(100)),
        ] {
            assert_eq!(http(&["--metrics-agents", text]).agents, series);
        }
    }

    #[test]
    fn values_that_mean_nothing_name_their_flag() {
        for (flag, value) in [
            ("--http", "localhost:8278"),
            ("--http", "8278"),
            ("--http", "127.0.0.1"),
            ("--control-socket", ""),
            ("--metrics-agents", "some"),
            ("--metrics-agents", "-1"),
        ] {
            let error = error_of(&[SOCKET, &format!("{flag}={value}")]);
            assert!(error.contains(flag), "{error}");
        }
    }
}
