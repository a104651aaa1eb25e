//! The environment of a child: next to nothing of the observer's.

use std::ffi::{OsStr, OsString};

use varta_core::engine::Subject;

use super::command;
use crate::settings::children::{CHILD_PATH, Children};

/// Variables in which the service manager informs the observer about itself. A child that used them could report in
/// the observer's name, take over its sockets, or write to its journal stream. From systemd.exec(5) and sd_notify(3).
const SERVICE_MANAGER: [&str; 27] = [
    "CACHE_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "EXIT_CODE",
    "EXIT_STATUS",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LOGS_DIRECTORY",
    "LOG_NAMESPACE",
    "MAINPID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "REMOTE_ADDR",
    "RUNTIME_DIRECTORY",
    "SERVICE_RESULT",
    "STATE_DIRECTORY",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The whole environment of a child; later entries win. `own` is the observer's. Variables that the operator names
/// are passed on, even those that are stripped otherwise; only the facts about the agent win over them.
pub(super) fn for_child(
    children: &Children,
    subject: &Subject,
    own: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let path = (OsString::from("PATH"), OsString::from(CHILD_PATH));
    let mut environment = vec![path];
    if children.inherit_environment {
        environment.extend(own.filter(|(key, _)| !is_service_managers(key)));
    }
    let given = children.environment.iter();
    environment.extend(given.map(|(key, value)| (key.into(), value.into())));
    let facts = command::variables(subject);
    environment.extend(facts.map(|(key, value)| (key.into(), value.into())));
    environment
}

fn is_service_managers(key: &OsStr) -> bool {
    SERVICE_MANAGER.iter().any(|name| key == *name)
}
