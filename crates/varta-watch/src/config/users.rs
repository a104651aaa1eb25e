//! Whose processes may speak: names and numbers from the command line, and the socket permissions that
//! follow from them.

use nix::unistd::{Group, User};
use varta_core::AllowedUsers;

use super::units::quoted;

/// How the socket file is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SocketAccess {
    /// Permission bits.
    pub(crate) mode: u32,
    /// The group it is given to, if not the observer's.
    pub(crate) gid: Option<u32>,
}

/// The number of a user given by number or name.
pub(super) fn user_id(text: &str) -> Result<u32, String> {
    id(text, "user", |name| {
        let user = User::from_name(name).map_err(nix::errno::Errno::desc)?;
        Ok(user.map(|user| user.uid.as_raw()))
    })
}

/// The number of a group given by number or name.
pub(super) fn group_id(text: &str) -> Result<u32, String> {
    id(text, "group", |name| {
        let group = Group::from_name(name).map_err(nix::errno::Errno::desc)?;
        Ok(group.map(|group| group.gid.as_raw()))
    })
}

fn id(
    text: &str,
    what: &str,
    look_up: impl FnOnce(&str) -> Result<Option<u32>, &'static str>,
) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match look_up(text) {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err(format!(
            "no {what} is called {}; give an existing name or a number",
            quoted(text)
        )),
        Err(error) => Err(format!(
            "cannot look up {what} {}: {error}; give the number",
            quoted(text)
        )),
    }
}

/// Who may speak: whom the operator names, else the observer's own user, and everyone if that is root.
pub(super) fn allowed(uids: Vec<u32>, gids: Vec<u32>, own_uid: u32) -> AllowedUsers {
    if uids.is_empty() && gids.is_empty() {
        if own_uid == 0 {
            return AllowedUsers::Everyone;
        }
        return AllowedUsers::Only {
            uids: [own_uid].into(),
            gids: [].into(),
        };
    }
    AllowedUsers::Only {
        uids: uids.into(),
        gids: gids.into(),
    }
}

/// The permissions that let those in who may speak, and as few others as permission bits can keep out.
pub(super) fn socket_access(users: &AllowedUsers, own_uid: u32) -> SocketAccess {
    let (mode, gid) = match users {
        AllowedUsers::Only { uids, gids } if uids.iter().all(|uid| *uid == own_uid) => match **gids
        {
            [] => (0o600, None),
            [gid] => (0o660, Some(gid)),
            _ => (0o666, None),
        },
        AllowedUsers::Only { .. } | AllowedUsers::Everyone => (0o666, None),
    };
    SocketAccess { mode, gid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_go_by_name_or_number() {
        assert_eq!(user_id("root"), Ok(0));
        assert_eq!(group_id("root"), Ok(0));
        assert_eq!(user_id("4711"), Ok(4711));
        assert_eq!(group_id("4294967294"), Ok(u32::MAX - 1));
        for text in ["no-such-user-here", "-1", "", "1000 "] {
            let error = user_id(text).unwrap_err();
            assert!(
                error.contains(&format!("no user is called {text:?}")),
                "{error}"
            );
        }
        assert!(group_id("no-such-group-here").is_err());
    }

    #[test]
    fn unless_told_otherwise_a_user_watches_its_own_and_root_everyone() {
        let own = AllowedUsers::Only {
            uids: [1000].into(),
            gids: [].into(),
        };
        assert_eq!(allowed(vec![], vec![], 1000), own);
        assert_eq!(allowed(vec![], vec![], 0), AllowedUsers::Everyone);
        let named = AllowedUsers::Only {
            uids: [33].into(),
            gids: [44].into(),
        };
        assert_eq!(allowed(vec![33], vec![44], 0), named);
    }

    #[test]
    fn the_socket_is_open_to_whom_it_must_and_to_nobody_else() {
        let access = |uids: &[u32], gids: &[u32], own| {
            let users = allowed(uids.to_vec(), gids.to_vec(), own);
            let access = socket_access(&users, own);
            (access.mode, access.gid)
        };
        assert_eq!(access(&[], &[], 1000), (0o600, None));
        assert_eq!(access(&[], &[], 0), (0o666, None));
        assert_eq!(access(&[0], &[], 0), (0o600, None));
        assert_eq!(access(&[33], &[], 0), (0o666, None));
        assert_eq!(access(&[], &[44], 1000), (0o660, Some(44)));
        assert_eq!(access(&[1000], &[44], 1000), (0o660, Some(44)));
        assert_eq!(access(&[], &[44, 45], 1000), (0o666, None));
        assert_eq!(access(&[33], &[44], 1000), (0o666, None));
    }
}
