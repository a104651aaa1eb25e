//! Finds the programs that steps run, before they are needed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::settings::children::CHILD_PATH;

/// Directories in which a name is looked up. No real path has more, and each of them costs time for each name.
const PLACES_MAX: usize = 256;

/// The search path of children.
#[derive(Clone, Debug)]
pub(super) struct SearchPath {
    places: String,
    /// The names that were found so far.
    found: RefCell<BTreeMap<String, PathBuf>>,
}

impl SearchPath {
    /// From the variables for children, else what they inherit, else [`CHILD_PATH`].
    pub(super) fn of(variables: &[(String, String)], inherited: Option<String>) -> Self {
        // The last one wins.
        let given = variables.iter().rev().find(|(key, _)| key == "PATH");
        let given = given.map(|(_, value)| value.clone());
        Self {
            places: given.or(inherited).unwrap_or_else(|| CHILD_PATH.to_owned()),
            found: RefCell::default(),
        }
    }

    /// The file of a program; else the problem with its fix.
    pub(super) fn find(&self, program: &str) -> Result<PathBuf, String> {
        if program.is_empty() {
            return Err("the program's name is empty; give its path".to_owned());
        }
        if program.contains('\0') {
            return Err("the program's name holds a NUL character; give its path".to_owned());
        }
        if program.contains('/') {
            let path = PathBuf::from(program);
            return is_program(&path).map(|()| path);
        }
        if let Some(path) = self.found.borrow().get(program) {
            return Ok(path.clone());
        }
        let places = self.places.split(':').filter(|place| !place.is_empty());
        let mut paths = places
            .take(PLACES_MAX)
            .map(|place| Path::new(place).join(program));
        let found = paths.find(|path| is_program(path).is_ok()).ok_or_else(|| {
            format!(
                "program {program} not found in {}; give its full path",
                self.places
            )
        })?;
        let mut known = self.found.borrow_mut();
        known.insert(program.to_owned(), found.clone());
        Ok(found)
    }
}

fn is_program(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let metadata = path.metadata().map_err(|error| {
        format!("cannot use {shown}: {error}; name a program this user may run")
    })?;
    match metadata.is_file() && access(path, Access::EXEC_OK).is_ok() {
        true => Ok(()),
        false => Err(format!("{shown} is not an executable file for this user")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_where_the_child_would() {
        let plain = SearchPath::of(&[], None);
        assert!(plain.find("true").unwrap().ends_with("true"));
        let elsewhere = [("PATH".to_owned(), "/no/such".to_owned())];
        let error = SearchPath::of(&elsewhere, None).find("true").unwrap_err();
        assert!(
            error.contains("/no/such") && error.contains("full path"),
            "{error}"
        );
        let inherited = SearchPath::of(&[], Some("/no/such".to_owned()));
        assert!(inherited.find("true").is_err());
    }

    #[test]
    fn what_cannot_be_run_is_no_program() {
        let path = SearchPath::of(&[], None);
        for (program, words) in [
            ("/no/such", "cannot use"),
            ("/etc/passwd", "not an executable"),
            ("/", "not an executable"),
            ("", "empty"),
            ("a\0b", "NUL"),
        ] {
            let error = path.find(program).unwrap_err();
            assert!(error.contains(words), "{program:?}: {error}");
        }
    }
}
