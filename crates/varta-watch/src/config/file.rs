//! The configuration file: read as a whole or not at all, and parsed with the position of every value.
//!
//! Only regular files of a limited size are read, so that reading never blocks or fills memory, and only files that
//! no user can have written but those that may choose the programs that the observer runs. Other modules define the
//! meaning of the keys.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::DeTable;
use varta_sys::users;

use super::positions::{Position, Positions};
use super::problems::{Origin, Place, Problems};

/// A rule takes a few hundred bytes; thousands of them fit.
const BYTES_MAX: u64 = 1024 * 1024;

const WRITABLE_BY_GROUP: u32 = 0o020;
const WRITABLE_BY_OTHERS: u32 = 0o002;

/// The content of a file.
pub(super) struct Parsed<'a> {
    pub(super) document: &'a Document,
    pub(super) root: Spanned<DeTable<'a>>,
}

/// A file's text.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) path: Arc<Path>,
    text: String,
    positions: Positions,
}

impl Document {
    /// Reads a file; if that fails, the reason is the only problem.
    pub(super) fn read(path: &Path, problems: &mut Problems) -> Option<Self> {
        let path: Arc<Path> = path.into();
        let bytes = match content(&path) {
            Ok(bytes) => bytes,
            Err(problem) => {
                problems.add(place(&path, Position::START), "", problem);
                return None;
            }
        };
        match String::from_utf8(bytes) {
            Ok(text) => Some(Self {
                positions: Positions::of(&text),
                path,
                text,
            }),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let before = error.as_bytes().get(..valid).unwrap_or_default();
                problems.add(
                    place(&path, Position::START.after(before)),
                    "",
                    "this is not UTF-8 text; write the file anew as TOML in UTF-8",
                );
                None
            }
        }
    }

    /// The parsed content, as far as it can be parsed; the rest is reported.
    pub(super) fn parse(&self, problems: &mut Problems) -> Parsed<'_> {
        let (root, errors) = DeTable::parse_recoverable(&self.text);
        for error in errors {
            let at = error.span().unwrap_or(0..0);
            let text = self.text.get(at.clone()).unwrap_or_default();
            problems.add_unreadable(self.origin(&at), || syntax(error.message(), text));
        }
        Parsed {
            document: self,
            root,
        }
    }

    /// The line, for a message about another position.
    pub(super) fn shown_place(&self, span: &Range<usize>) -> String {
        format!("line {}", self.position(span).line)
    }

    /// The position where something starts.
    pub(super) fn origin(&self, span: &Range<usize>) -> Origin {
        place(&self.path, self.position(span))
    }

    fn position(&self, span: &Range<usize>) -> Position {
        self.positions.find(&self.text, span.start)
    }
}

fn place(path: &Arc<Path>, position: Position) -> Origin {
    Origin::File(Place {
        path: Arc::clone(path),
        line: position.line,
        column: position.column,
    })
}

/// The parser reports what it could not parse; the operator needs to know how to write it.
fn syntax(message: &str, at: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    match message.as_str() {
        "duplicate key" => format!("{at} is given twice; keep one"),
        message => format!("not TOML: {message}"),
    }
}

/// The bytes of a file; else the problem with its fix.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error| format!("cannot read this file: {error}; give the path of a readable one");
    // Before it is opened: opening some devices has an effect.
    judge(&path.metadata().map_err(cannot)?)?;
    let file = OpenOptions::new()
        .read(true)
        // A FIFO that appeared meanwhile must not block the observer.
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(cannot)?;
    judge(&file.metadata().map_err(cannot)?)?;
    let bytes = read_at_most(file, BYTES_MAX + 1).map_err(cannot)?;
    match bytes.len() as u64 > BYTES_MAX {
        true => Err(too_large()),
        false => Ok(bytes),
    }
}

fn read_at_most(file: File, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a file may be a configuration file.
fn judge(metadata: &Metadata) -> Result<(), String> {
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = match kind {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_fifo() => "a FIFO",
            kind if kind.is_socket() => "a socket",
            _ => "a device",
        };
        return Err(format!("this is {what}; give the path of a regular file"));
    }
    if metadata.len() > BYTES_MAX {
        return Err(too_large());
    }
    judge_writers(metadata.uid(), metadata.gid(), metadata.mode())
}

/// Whether a file is writable only by those that control the observer anyway: root, the observer's own user, and the
/// groups of both.
fn judge_writers(uid: u32, gid: u32, mode: u32) -> Result<(), String> {
    let own_uid = rustix::process::geteuid().as_raw();
    let own_gid = rustix::process::getegid().as_raw();
    let is_own_group = (gid == 0 || gid == own_gid) && users::unmapped_gid() != Some(gid);
    let problem = if users::unmapped_uid() == Some(uid) || (uid != 0 && uid != own_uid) {
        format!(
            "this file belongs to {}, neither to root nor to this user (uid {own_uid}), and it says which \
             programs to run; mend it with chown root",
            users::shown_uid(uid)
        )
    } else if mode & WRITABLE_BY_OTHERS != 0 {
        "everybody may write to this file, and it says which programs to run; mend it with chmod o-w"
            .to_owned()
    } else if mode & WRITABLE_BY_GROUP != 0 && !is_own_group {
        format!(
            "group {gid} may write to this file, and it says which programs to run; mend it with chmod g-w"
        )
    } else {
        return Ok(());
    };
    Err(problem)
}

fn too_large() -> String {
    format!("this file is larger than {BYTES_MAX} bytes; is it the right one?")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, chown};

    use tempfile::NamedTempFile;

    use crate::config::tests::parse;

    /// Neither root nor any user that runs tests.
    const STRANGER: u32 = 54321;

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    /// The problems of a file, without its name.
    fn problems(file: &NamedTempFile) -> Vec<String> {
        let path = file.path().to_str().unwrap();
        let Err(exit) = parse(&["--socket=/s", "--check-config", "--config", path]) else {
            panic!("it was asked to check only");
        };
        let begin = format!("{path}:");
        let lines = exit.text.lines();
        // The text of that one depends on the machine.
        let lines = lines.filter(|line| !line.starts_with("note: the kernel queues "));
        lines.map(|line| line.replace(&begin, "")).collect()
    }

    fn numbered(count: usize, block: impl Fn(usize) -> String) -> NamedTempFile {
        file(&(0..count).map(block).collect::<String>())
    }

    #[test]
    fn of_any_number_of_mistakes_the_first_are_told_and_the_others_counted() {
        type Block = fn(usize) -> String;
        let blocks: [(Block, &str); 9] = [
            (|i| format!("k{i} = 1\n"), "unknown key"),
            (|i| format!("treshold-ms{i} = 1\n"), "did you mean"),
            (|_| "[[agent]]\nnam = \"x\"\n".to_owned(), "agent.nam: "),
            (
                |i| format!("[recovery.x{i}]\n"),
                "a ladder without steps does nothing",
            ),
            (
                |_| "[[agent]]\nrecovery = \"x\"\n".to_owned(),
                "there is no ladder",
            ),
            (
                |_| "[[agent]]\non-exit = [{ run = [] }]\n".to_owned(),
                "it is empty",
            ),
            (|_| "?\n".to_owned(), "not TOML"),
            (|_| "[a]\n".to_owned(), "is given twice"),
            (
                |i| match i {
                    0 => "recovery.a.steps = [{ run = [\"true\", ".to_owned(),
                    20_001 => "] }]\n".to_owned(),
                    _ => "\"{x}\", ".to_owned(),
                },
                "stands for nothing",
            ),
        ];
        for (block, words) in blocks {
            let problems = problems(&numbered(20_002, block));
            let told = problems.iter().filter(|line| line.contains(words));
            assert!(told.count() >= 99, "{words}: {problems:?}");
            assert_eq!(problems.len(), 101, "{words}: {problems:?}");
            let others: usize = problems[100]
                .trim_start_matches("and at least ")
                .trim_end_matches(" more")
                .parse()
                .unwrap();
            assert!((19_899..=19_902).contains(&others), "{words}: {others}");
        }
    }

    #[test]
    fn a_mistake_at_the_end_of_a_large_file_is_where_it_is_told_to_be() {
        let lines = "# é\n".repeat(200_000);
        let text = format!("{lines}[[agent]]\nname = \"a\"\nlat = \"1s\"\n");
        assert_eq!(
            problems(&file(&text)),
            ["200003:1: agent.lat: unknown key; did you mean late?"]
        );
        let long = "é".repeat(400_000);
        let text = format!("agent = [{{ name = \"{long}\", lat = \"1s\" }}]\n");
        assert_eq!(
            problems(&file(&text)),
            ["1:400023: agent.lat: unknown key; did you mean late?"]
        );
    }

    #[test]
    fn what_is_quoted_from_a_file_is_cut_off_where_nobody_reads_on() {
        let name = "x".repeat(500_000);
        let text = format!("[recovery.{name}]\na = 1\nb = 1\nsteps = [3]\n{name} = 1\n");
        let problems = problems(&file(&text));
        assert_eq!(problems.len(), 5, "{problems:.200?}");
        assert!(problems.iter().all(|line| line.len() < 3000));
        assert!(problems[1].starts_with("2:1: recovery.a: "));
        assert!(problems[4].contains("x...: unknown key"));
    }

    #[test]
    fn braces_that_nothing_closes_stand_for_themselves_however_many() {
        let text = "{a".repeat(400_000);
        let text = format!("[recovery.a]\nsteps = [{{ run = [\"true\", \"{text}\"] }}]\n");
        let problems = problems(&file(&text));
        assert_eq!(problems.len(), 1);
        assert!(problems[0].ends_with(" ok"), "{problems:.300?}");
    }

    #[test]
    fn a_list_of_more_values_than_anybody_writes_is_one_mistake() {
        let values = "\"0\",".repeat(100_000);
        let problems = problems(&file(&format!("allow-uid = [{values}]\n")));
        assert_eq!(
            problems,
            ["1:13: allow-uid: 100000 values, and 256 are the most; take some out"]
        );
    }

    /// The only problem of a file with this owner, group and mode; none if it is trusted.
    fn judged(uid: u32, gid: u32, mode: u32) -> Option<String> {
        let file = file("");
        chown(file.path(), Some(uid), Some(gid)).unwrap();
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(file.path(), permissions).unwrap();
        let problems = problems(&file);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let only = problems.into_iter().next().unwrap();
        (!only.ends_with(" ok")).then_some(only)
    }

    #[test]
    fn names_are_not_looked_up_for_mistakes_that_are_not_shown() {
        let unknown = |i| format!("[[agent]]\nuid = \"no-such-user-{i}\"\n");
        let problems = problems(&numbered(20_000, unknown));
        assert!(problems[99].contains("no user is called"));
        assert_eq!(problems[100..], ["and there may be more"]);
    }

    #[test]
    fn a_file_is_believed_only_if_nobody_else_can_have_written_it() {
        let own_gid = rustix::process::getegid().as_raw();
        let own_uid = rustix::process::geteuid().as_raw();
        assert_eq!(judged(own_uid, own_gid, 0o664), None);
        let everybody = judged(own_uid, own_gid, 0o602).unwrap();
        assert!(everybody.contains("chmod o-w"), "{everybody}");
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can give a file away");
            return;
        }
        assert_eq!(judged(0, STRANGER, 0o644), None);
        let group = judged(0, STRANGER, 0o664).unwrap();
        assert!(group.contains("group 54321 may write"), "{group}");
        assert!(group.ends_with("chmod g-w"), "{group}");
        let owner = judged(STRANGER, 0, 0o600).unwrap();
        assert!(owner.contains("belongs to uid 54321"), "{owner}");
        assert!(owner.ends_with("chown root"), "{owner}");
    }
}
