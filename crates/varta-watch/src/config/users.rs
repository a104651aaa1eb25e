//! The users whose processes may send beats: names and numbers from the command line, and the socket permissions that
//! follow from them.

use nix::unistd::{Group, User};
use varta_core::AllowedUsers;
use varta_sys::users;

use super::units::quoted;
use crate::settings::SocketAccess;

/// The number of a user given by number or name.
pub(super) fn user_id(text: &str) -> Result<u32, String> {
    id(text, "user", |name| {
        let user = User::from_name(name).map_err(nix::errno::Errno::desc)?;
        Ok(user.map(|user| user.uid.as_raw()))
    })
}

/// A user whose processes may send beats.
pub(super) fn allowed_user(text: &str) -> Result<u32, String> {
    mapped_id(user_id(text)?, "user", users::unmapped_uid())
}

/// A group whose processes may send beats.
pub(super) fn allowed_group(text: &str) -> Result<u32, String> {
    mapped_id(group_id(text)?, "group", users::unmapped_gid())
}

/// An id, unless it may be that of any user or group.
fn mapped_id(id: u32, what: &str, unmapped_id: Option<u32>) -> Result<u32, String> {
    match unmapped_id == Some(id) {
        true => Err(format!(
            "{what} {id} is nobody and is never let in: the kernel shows every {what} that this user namespace does \
             not map under that number; run the agent as a {what} that it maps and name that"
        )),
        false => Ok(id),
    }
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

/// The permitted users: those that the operator names, else all users if the observer is root, else its own user,
/// unless that is `nobody`.
pub(super) fn allowed(
    uids: Vec<u32>,
    gids: Vec<u32>,
    own_uid: u32,
    is_root: bool,
    unmapped_uid: Option<u32>,
) -> Result<AllowedUsers, String> {
    if uids.is_empty() && gids.is_empty() {
        if is_root {
            return Ok(AllowedUsers::Everyone);
        }
        if unmapped_uid == Some(own_uid) {
            return Err(format!(
                "this observer runs as user {own_uid}, which is nobody, and may let nobody in; run it as a user of \
                 its own, or name the users of its agents"
            ));
        }
        return Ok(AllowedUsers::Only {
            uids: [own_uid].into(),
            gids: [].into(),
        });
    }
    Ok(AllowedUsers::Only {
        uids: uids.into(),
        gids: gids.into(),
    })
}

/// Whether processes of more than one user may join.
pub(super) fn may_be_several(users: &AllowedUsers) -> bool {
    match users {
        AllowedUsers::Everyone => true,
        AllowedUsers::Only { uids, gids } => {
            !gids.is_empty() || uids.iter().any(|uid| Some(uid) != uids.first())
        }
    }
}

/// The permissions that admit the permitted users, and as few others as permission bits can keep out.
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
        let own = |uid| AllowedUsers::Only {
            uids: [uid].into(),
            gids: [].into(),
        };
        assert_eq!(allowed(vec![], vec![], 1000, false, None), Ok(own(1000)));
        assert_eq!(
            allowed(vec![], vec![], 0, true, None),
            Ok(AllowedUsers::Everyone)
        );
        // Root of a user namespace is an ordinary user.
        assert_eq!(allowed(vec![], vec![], 0, false, None), Ok(own(0)));
        let named = AllowedUsers::Only {
            uids: [33].into(),
            gids: [44].into(),
        };
        assert_eq!(allowed(vec![33], vec![44], 0, true, None), Ok(named));
    }

    #[test]
    fn nobody_is_let_in_neither_by_name_nor_as_the_observers_own_user() {
        let error = mapped_id(65_534, "user", Some(65_534)).unwrap_err();
        assert!(error.contains("is nobody and is never let in"), "{error}");
        assert_eq!(mapped_id(1000, "user", Some(65_534)), Ok(1000));
        let error = allowed(vec![], vec![], 65_534, false, Some(65_534)).unwrap_err();
        assert!(error.contains("which is nobody"), "{error}");
        assert!(allowed(vec![1000], vec![], 65_534, false, Some(65_534)).is_ok());
    }

    #[test]
    fn where_every_user_is_mapped_the_overflow_id_is_a_user_like_any_other() {
        assert_eq!(mapped_id(65_534, "user", None), Ok(65_534));
        assert!(allowed(vec![], vec![], 65_534, false, None).is_ok());
    }

    #[test]
    fn the_socket_is_open_to_whom_it_must_and_to_nobody_else() {
        let access = |uids: &[u32], gids: &[u32], own| {
            let users = allowed(uids.to_vec(), gids.to_vec(), own, own == 0, None).unwrap();
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
