//! The flags about UDP, and their combination.
//!
//! No file is read in this module: the start checks whether the files are valid.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::ArgAction;

use super::no_effect;
use super::problems::Problems;
use super::units::quoted;
use crate::settings::network::{KeyFiles, UdpSettings};

/// The flags about UDP.
#[derive(Debug, Args)]
pub(super) struct NetworkFlags {
    /// Also listen for remote agents on this UDP port
    ///
    /// 0 for any free one. Needs a key file, or --i-accept-plaintext-udp.
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    udp_port: Option<u16>,

    /// Address to listen on for UDP
    ///
    /// Unless given: 127.0.0.1 with keys, else 0.0.0.0.
    #[arg(
        long,
        value_name = "IP",
        value_parser = address,
        hide_short_help = true,
        help_heading = "Network"
    )]
    udp_bind_addr: Option<IpAddr>,

    /// File with the key that agents share
    ///
    /// 64 hexadecimal digits ('varta key new' makes them), readable by its owner only.
    #[arg(long, value_name = "PATH", help_heading = "Network")]
    key_file: Option<PathBuf>,

    /// File with further keys that are accepted, one per line
    ///
    /// For changing keys without a gap.
    #[arg(
        long,
        value_name = "PATH",
        hide_short_help = true,
        help_heading = "Network"
    )]
    accepted_key_file: Option<PathBuf>,

    /// File with the master key
    ///
    /// The key of each agent is derived from it.
    #[arg(
        long,
        value_name = "PATH",
        hide_short_help = true,
        help_heading = "Network"
    )]
    master_key_file: Option<PathBuf>,

    /// Listen in clear if there is no key file
    ///
    /// Any host that can reach the port can speak for any agent then.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", help_heading = "Network")]
    i_accept_plaintext_udp: bool,

    /// File that remembers which encrypted datagrams were heard
    ///
    /// So that a restart forgets none. Unless given: next to the socket, its name and .replay.
    #[arg(
        long,
        value_name = "PATH",
        hide_short_help = true,
        help_heading = "Network"
    )]
    replay_file: Option<PathBuf>,

    /// Let recovery act on agents that a key vouches for
    #[arg(long, alias = "secure-udp-i-accept-recovery-on-unauthenticated-transport", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_short_help = true, help_heading = "Network")]
    allow_recovery_over_secure_udp: bool,

    /// Let recovery act on agents heard over plain UDP
    ///
    /// Any host that can reach the port can cause their stalls.
    #[arg(long, alias = "plaintext-udp-i-accept-recovery-on-unauthenticated-transport", action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_short_help = true, help_heading = "Network")]
    allow_recovery_over_plain_udp: bool,
}

impl NetworkFlags {
    /// The combination of the flags. Reports every problem, and flags without effect.
    pub(super) fn check(
        self,
        socket: &Path,
        problems: &mut Problems,
        notices: &mut Vec<String>,
    ) -> Option<UdpSettings> {
        let keys = KeyFiles {
            shared: self.key_file,
            accepted: self.accepted_key_file,
            master: self.master_key_file,
        };
        let Some(port) = self.udp_port else {
            let needy = [
                ("i-accept-plaintext-udp", self.i_accept_plaintext_udp),
                ("udp-bind-addr", self.udp_bind_addr.is_some()),
                ("key-file", keys.shared.is_some()),
                ("accepted-key-file", keys.accepted.is_some()),
                ("master-key-file", keys.master.is_some()),
                ("replay-file", self.replay_file.is_some()),
            ];
            for (key, _) in needy.iter().filter(|(_, given)| *given) {
                let text = "it is about UDP; say which port with --udp-port";
                problems.about(key, &["udp-port"], text);
            }
            return None;
        };
        let in_clear = keys.is_empty();
        if in_clear && !self.i_accept_plaintext_udp {
            problems.about(
                "udp-port",
                &["key-file", "accepted-key-file", "master-key-file", "i-accept-plaintext-udp"],
                "it needs a key to believe: --key-file, --accepted-key-file or --master-key-file; or \
                 --i-accept-plaintext-udp, if whoever can reach the port may speak for any agent",
            );
        }
        if self.i_accept_plaintext_udp && !in_clear {
            notices.push(no_effect(
                "i-accept-plaintext-udp",
                "with keys nothing in clear is heard",
            ));
        }
        if self.replay_file.is_some() && in_clear {
            notices.push(no_effect(
                "replay-file",
                "in clear nobody can tell a replay",
            ));
        }
        let default_address = match in_clear {
            true => Ipv4Addr::UNSPECIFIED,
            false => Ipv4Addr::LOCALHOST,
        };
        let address = self.udp_bind_addr.unwrap_or(default_address.into());
        Some(UdpSettings {
            address: SocketAddr::new(address, port),
            keys,
            replay_file: self
                .replay_file
                .unwrap_or_else(|| default_replay_file(socket)),
            vouched_for: match in_clear {
                true => self.allow_recovery_over_plain_udp,
                false => self.allow_recovery_over_secure_udp,
            },
        })
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "{} is not an address; write one such as 192.0.2.1 or ::, without a port",
            quoted(text)
        )
    })
}

/// Next to the socket: usually on a tmpfs, so that no beat waits for a disk, and removed by the next boot.
fn default_replay_file(socket: &Path) -> PathBuf {
    let mut name = socket.file_name().unwrap_or_default().to_owned();
    name.push(".replay");
    socket.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{error_of, parse};

    const SOCKET: &str = "--socket=/run/here/varta.sock";

    fn udp(arguments: &[&str]) -> UdpSettings {
        let all: Vec<&str> = [SOCKET, "--udp-port=9000"]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        parse(&all).unwrap().settings.udp.unwrap()
    }

    #[test]
    fn without_a_port_nobody_elsewhere_is_listened_to() {
        assert_eq!(parse(&[SOCKET]).unwrap().settings.udp, None);
    }

    #[test]
    fn a_port_needs_a_key_or_the_word_for_doing_without() {
        let error = error_of(&[SOCKET, "--udp-port=9000"]);
        assert!(
            error.contains("--udp-port") && error.contains("--key-file"),
            "{error}"
        );
        assert!(error.contains("--i-accept-plaintext-udp"), "{error}");
        for arguments in [
            "--key-file=/k",
            "--accepted-key-file=/k",
            "--master-key-file=/k",
            "--i-accept-plaintext-udp",
        ] {
            udp(&[arguments]);
        }
    }

    #[test]
    fn what_is_about_udp_needs_a_port() {
        for flag in [
            "--udp-bind-addr=127.0.0.1",
            "--key-file=/k",
            "--accepted-key-file=/k",
            "--master-key-file=/k",
            "--replay-file=/r",
            "--i-accept-plaintext-udp",
        ] {
            let error = error_of(&[SOCKET, flag]);
            let name = flag.split('=').next().unwrap();
            assert!(
                error.contains(name) && error.contains("--udp-port"),
                "{error}"
            );
        }
    }

    #[test]
    fn keys_listen_on_loopback_and_clear_text_everywhere_unless_told_otherwise() {
        let address = |arguments: &[&str]| udp(arguments).address.to_string();
        assert_eq!(address(&["--key-file=/k"]), "127.0.0.1:9000");
        assert_eq!(address(&["--i-accept-plaintext-udp"]), "0.0.0.0:9000");
        let both = ["--key-file=/k", "--i-accept-plaintext-udp"];
        assert_eq!(address(&both), "127.0.0.1:9000");
        let v6 = ["--key-file=/k", "--udp-bind-addr=::1"];
        assert_eq!(address(&v6), "[::1]:9000");
        let error = error_of(&[SOCKET, "--udp-port=9000", "--udp-bind-addr=host"]);
        assert!(error.contains("--udp-bind-addr"), "{error}");
    }

    #[test]
    fn the_memory_of_what_was_heard_lies_next_to_the_socket() {
        let file = |arguments: &[&str]| udp(arguments).replay_file;
        let expected = PathBuf::from("/run/here/varta.sock.replay");
        assert_eq!(file(&["--key-file=/k"]), expected);
        assert_eq!(
            file(&["--key-file=/k", "--replay-file=/r"]),
            PathBuf::from("/r")
        );
    }

    #[test]
    fn a_listener_is_vouched_for_by_the_flag_of_its_kind_under_either_name() {
        let secure = "--secure-udp-i-accept-recovery-on-unauthenticated-transport";
        let plain = "--plaintext-udp-i-accept-recovery-on-unauthenticated-transport";
        for (kind, flag, vouched_for) in [
            ("--key-file=/k", secure, true),
            ("--key-file=/k", "--allow-recovery-over-secure-udp", true),
            ("--key-file=/k", plain, false),
            ("--i-accept-plaintext-udp", plain, true),
            (
                "--i-accept-plaintext-udp",
                "--allow-recovery-over-plain-udp",
                true,
            ),
            ("--i-accept-plaintext-udp", secure, false),
        ] {
            assert_eq!(udp(&[kind, flag]).vouched_for, vouched_for, "{kind} {flag}");
        }
        assert!(!udp(&["--key-file=/k"]).vouched_for);
    }

    #[test]
    fn flags_that_do_nothing_are_accepted_and_told() {
        let idle = |arguments: &[&str]| {
            let all = [&[SOCKET, "--udp-port=9000"], arguments].concat();
            let notices = parse(&all).unwrap().notices;
            let flag = |notice: &String| notice.split(' ').next().unwrap().to_owned();
            notices.iter().map(flag).collect::<Vec<_>>()
        };
        let acknowledged = "--i-accept-secure-udp-non-loopback";
        assert_eq!(idle(&["--key-file=/k", acknowledged]), [acknowledged]);
        let clear = "--i-accept-plaintext-udp";
        assert_eq!(idle(&["--key-file=/k", clear]), [clear]);
        assert_eq!(idle(&[clear, "--replay-file=/r"]), ["--replay-file"]);
        assert_eq!(idle(&[clear]), [""; 0]);
    }
}
