//! Which units of service managers a process is in, from its path in the control group hierarchy.
//!
//! A path is only as trustworthy as the users that may make directories on it. Below slices that is the system's
//! manager alone. A service or a scope may have been delegated: to a user's manager, a container, a program with
//! `Delegate=`. Its owner chooses the names below it, so these never name a unit of the system. This module reads no
//! files.

/// Longest name of a unit, in bytes, from systemd.
const UNIT_BYTES_MAX: usize = 255;

/// The units of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Units {
    /// Of the system's manager.
    pub(crate) system: Option<String>,
    /// Of the manager of the process's own user, which chooses the name.
    pub(crate) user: Option<String>,
}

impl Units {
    /// The units on a path, such as `/system.slice/web.service/worker`. `uid` is the real user of the process: in
    /// another user's manager, as a program started by `sudo` is, it has no user unit.
    pub(crate) fn on(path: &str, uid: Option<u32>) -> Self {
        let mut parts = path.split('/').skip(1);
        let system = first_unit(&mut parts);
        let managed = system.and_then(managed_user);
        let user = match managed.is_some() && managed == uid {
            true => first_unit(&mut parts),
            false => None,
        };
        Self {
            system: system.map(str::to_owned),
            user: user.map(str::to_owned),
        }
    }
}

/// The first part that is no slice, if it is a unit that can contain processes.
fn first_unit<'a>(parts: &mut impl Iterator<Item = &'a str>) -> Option<&'a str> {
    parts.find(|part| !part.ends_with(".slice")).and_then(unit)
}

/// The service or scope that a directory is named after. The manager puts `_` before a name that would collide with a
/// file of the kernel, such as `cpu.service`.
fn unit(directory: &str) -> Option<&str> {
    let name = directory.strip_prefix('_').unwrap_or(directory);
    let stem = name.strip_suffix(".service");
    let stem = stem.or_else(|| name.strip_suffix(".scope"))?;
    // Before the first @ is the template, behind it the instance.
    let has_empty_part = stem.is_empty()
        || stem
            .split_once('@')
            .is_some_and(|(template, instance)| template.is_empty() || instance.is_empty());
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":_.\\@-".contains(&byte);
    let fits = name.len() <= UNIT_BYTES_MAX
        && !has_empty_part
        && !name.starts_with('-')
        && name.bytes().all(is_allowed);
    fits.then_some(name)
}

/// The user of the manager, if a unit is a user's manager.
fn managed_user(unit: &str) -> Option<u32> {
    let user = unit.strip_prefix("user@")?.strip_suffix(".service")?;
    user.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, system: Option<&str>, user: Option<&str>) {
        let found = Units::on(path, Some(1000));
        let found = (found.system.as_deref(), found.user.as_deref());
        assert_eq!(found, (system, user), "{path}");
    }

    /// Directories that only the system's manager makes.
    #[test]
    fn a_unit_of_the_system_lies_below_slices_and_nothing_else() {
        for (path, unit) in [
            ("/system.slice/web.service", "web.service"),
            ("/web.service", "web.service"),
            ("/init.scope", "init.scope"),
            (
                "/system.slice/system-getty.slice/getty@tty1.service",
                "getty@tty1.service",
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                "session-3.scope",
            ),
            (
                "/machine.slice/machine-debian.scope",
                "machine-debian.scope",
            ),
            ("/system.slice/docker-4f5e.scope", "docker-4f5e.scope"),
            (
                "/kubepods.slice/kubepods-pod1.slice/cri-containerd-77.scope",
                "cri-containerd-77.scope",
            ),
            (
                r"/system.slice/run-u\x2d1:a_b.service",
                r"run-u\x2d1:a_b.service",
            ),
        ] {
            check(path, Some(unit), None);
        }
        for path in [
            "",
            "/",
            "//web.service",
            "/system.slice",
            "/docker/4f5e",
            "/docker/4f5e/system.slice/sshd.service",
            "/lxc/box/init.scope",
            "/../../system.slice/sshd.service",
            "/.slice.d/sshd.service",
            "/system.slice/sshd.socket/sshd.service",
            "/system.slice/sshd.service (deleted)",
            "web.service",
        ] {
            check(path, None, None);
        }
    }

    #[test]
    fn what_lies_below_a_unit_is_named_by_its_owner_and_is_none() {
        for (path, unit) in [
            ("/system.slice/web.service/sshd.service", "web.service"),
            (
                "/system.slice/web.service/system.slice/sshd.service",
                "web.service",
            ),
            (
                "/system.slice/web.service/a b;reboot.service",
                "web.service",
            ),
            (
                "/system.slice/docker-4f5e.scope/system.slice/sshd.service",
                "docker-4f5e.scope",
            ),
            (
                "/machine.slice/systemd-nspawn@box.service/payload/system.slice/sshd.service",
                "systemd-nspawn@box.service",
            ),
            (
                "/user.slice/user-1000.slice/session-3.scope/sshd.service",
                "session-3.scope",
            ),
        ] {
            check(path, Some(unit), None);
        }
    }

    const MANAGER: &str = "/user.slice/user-1000.slice/user@1000.service";

    #[test]
    fn what_lies_below_a_users_manager_is_a_unit_of_the_user() {
        for (below, user) in [
            ("", None),
            ("/init.scope", Some("init.scope")),
            ("/web.service", Some("web.service")),
            ("/app.slice/sshd.service", Some("sshd.service")),
            (
                "/app.slice/app-term.slice/vte-1.scope/sub/x.service",
                Some("vte-1.scope"),
            ),
            ("/app.slice/-Hevil.service", None),
            ("/app.slice/--host=root@attacker.service", None),
            ("/app.slice/a b;reboot.service", None),
            ("/app.slice/{pid}{name}.service", None),
            ("/app.slice/{pid}.service/web.service", None),
            ("/payload/web.service", None),
        ] {
            check(
                &format!("{MANAGER}{below}"),
                Some("user@1000.service"),
                user,
            );
        }
    }

    #[test]
    fn a_process_in_another_users_manager_has_no_user_unit() {
        let path = format!("{MANAGER}/app.slice/web.service");
        for uid in [Some(0), Some(1001), None] {
            let found = Units::on(&path, uid);
            assert_eq!(found.system.as_deref(), Some("user@1000.service"));
            assert_eq!(found.user, None, "{uid:?}");
        }
        check(
            "/user.slice/user@root.service/web.service",
            Some("user@root.service"),
            None,
        );
    }

    #[test]
    fn a_name_that_the_manager_would_not_take_is_none() {
        let longest = format!("{}.service", "a".repeat(UNIT_BYTES_MAX - 8));
        check(&format!("/system.slice/{longest}"), Some(&longest), None);
        for name in [
            "-H.service",
            "_-H.service",
            "--host=a.service",
            ".service",
            "_.service",
            ".scope",
            "@1.service",
            "web@.service",
            "a b.service",
            "a;b.service",
            "a=b.service",
            "a%b.service",
            "a,b.service",
            "{pid}.service",
            "$(reboot).service",
            "a\tb.service",
            "a\u{7f}b.service",
            "w\u{e4}b.service",
            "\u{fffd}.service",
            &format!("a{longest}"),
        ] {
            check(&format!("/system.slice/{name}"), None, None);
            // Nor is a directory below it, whatever its name.
            check(&format!("/system.slice/{name}/sshd.service"), None, None);
        }
    }

    #[test]
    fn the_managers_mark_before_a_name_is_taken_off_once() {
        check("/system.slice/_cpu.service", Some("cpu.service"), None);
        check("/_memory.slice/__x.service", Some("_x.service"), None);
    }

    #[test]
    fn each_character_is_one_that_the_manager_allows_or_makes_it_none() {
        for char in '\0'..='\u{ff}' {
            if char == '/' {
                continue;
            }
            let name = format!("a{char}b.service");
            let allowed = char.is_ascii_alphanumeric() || ":_.\\@-".contains(char);
            let expected = allowed.then_some(name.as_str());
            check(&format!("/system.slice/{name}"), expected, None);
        }
    }
}
