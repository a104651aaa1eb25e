use std::os::unix::fs::PermissionsExt;

use super::*;

/// A disk with this much space, that may refuse to shorten files.
struct Disk {
    bytes: Vec<u8>,
    room: usize,
    can_cut: bool,
}

impl Sink for Disk {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fit = bytes.len().min(self.room - self.bytes.len());
        if fit == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes.extend_from_slice(&bytes[..fit]);
        Ok(fit)
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn cut(&mut self, len: u64) -> io::Result<()> {
        if !self.can_cut {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.bytes.truncate(len as usize);
        Ok(())
    }
}

fn rows_on(room: usize, can_cut: bool) -> PendingRows<Disk> {
    PendingRows::new(Disk {
        bytes: Vec::new(),
        room,
        can_cut,
    })
}

#[test]
fn a_full_disk_holds_whole_rows_only_and_loses_none() {
    let text = b"one\ntwo\nthree\n";
    for room in 0..=text.len() {
        let mut rows = rows_on(room, true);
        assert_eq!(rows.add(text), 0);
        let result = rows.flush();
        assert_eq!(result.is_ok(), room == text.len());
        let on_disk = rows.sink.bytes.clone();
        assert!(on_disk.is_empty() || on_disk.ends_with(b"\n"), "{room}");
        assert_eq!([on_disk, rows.bytes.clone()].concat(), text);
        rows.sink.room = 100;
        rows.flush().unwrap();
        assert_eq!(rows.sink.bytes, text);
    }
}

#[test]
fn a_sink_that_cannot_be_shortened_gets_the_rest_of_the_row() {
    let mut rows = rows_on(6, false);
    rows.add(b"one\ntwo\n");
    assert!(rows.flush().is_err());
    rows.sink.room = 100;
    rows.flush().unwrap();
    assert_eq!(rows.sink.bytes, b"one\ntwo\n");
}

#[test]
fn rows_beyond_the_bound_are_dropped_whole_and_counted() {
    let mut rows = rows_on(0, true);
    let row = [b"x".repeat(1023), b"\n".to_vec()].concat();
    let many = row.repeat(PENDING_BYTES / 1024 - 1);
    assert_eq!(rows.add(&many), 0);
    assert_eq!(rows.add(&row.repeat(3)), 2);
    assert_eq!(rows.bytes.len(), PENDING_BYTES);
    assert_eq!(rows.add(&row), 1);
}

#[test]
fn an_unfinished_row_of_an_earlier_crash_is_cut_off_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.tsv");
    for (before, after) in [
        (&b"7\tbeat\t4\n9\tbe"[..], &b"7\tbeat\t4\n"[..]),
        (b"712", b""),
        (b"a\n", b"a\n"),
        (b"", b""),
        (b"{\"precious\": 1}", b"{\"precious\": 1}\n"),
        (b"1\t2", b"1\t2\n"),
    ] {
        std::fs::write(&path, before).unwrap();
        drop(open_file(&path, false).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), after);
    }
    let long = vec![b'x'; 5000];
    std::fs::write(&path, &long).unwrap();
    drop(open_file(&path, false).unwrap());
    assert_eq!(std::fs::read(&path).unwrap(), [&long[..], b"\n"].concat());
}

#[test]
fn two_writers_of_one_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.tsv");
    let _first = open_file(&path, false).unwrap();
    let Err(error) = open_file(&path, false) else {
        panic!("opened twice");
    };
    let error = error.to_string();
    assert!(error.contains("another program writes"), "{error}");
}

#[test]
fn a_file_is_at_its_name_until_it_is_moved() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.tsv");
    let (file, _) = open_file(&path, false).unwrap();
    assert!(file.is_at(&path, false));
    std::fs::rename(&path, directory.path().join("events.tsv.1")).unwrap();
    assert!(!file.is_at(&path, false));
    drop(open_file(&path, false).unwrap());
    assert!(!file.is_at(&path, false), "another file has the name");
}

#[test]
fn what_cannot_be_written_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let Err(error) = open_file(directory.path(), true) else {
        panic!("opened a directory");
    };
    let error = error.to_string();
    assert!(error.starts_with("cannot open --export-file /"), "{error}");
}

#[test]
fn what_is_not_ours_is_left_alone_unless_it_is_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, victim) = (
        directory.path().join("link"),
        directory.path().join("victim"),
    );
    std::fs::write(&victim, "7\tbeat").unwrap();
    std::os::unix::fs::symlink(&victim, &path).unwrap();
    let Err(error) = open_file(&path, false) else {
        panic!("followed a link");
    };
    let error = error.to_string();
    assert!(error.contains("it is a symbolic link"), "{error}");
    assert!(error.contains("--allow-any-export-file"), "{error}");
    assert_eq!(std::fs::read(&victim).unwrap(), b"7\tbeat");
    drop(open_file(&path, true).unwrap());
    assert_eq!(std::fs::read(&victim).unwrap(), b"", "allowed, and cut");
    open_file(Path::new("/dev/null"), true).unwrap();
}

#[test]
fn the_file_has_mode_0640_at_most_and_never_more_than_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.tsv");
    for (before, told, after) in [
        (0o644, Some(0o644), 0o640),
        (0o666, Some(0o666), 0o640),
        (0o600, None, 0o600),
    ] {
        std::fs::write(&path, "").unwrap();
        let permissions = std::fs::Permissions::from_mode(before);
        std::fs::set_permissions(&path, permissions).unwrap();
        let (file, narrowed) = open_file(&path, false).unwrap();
        assert_eq!(narrowed, told);
        assert_eq!(file.file.metadata().unwrap().mode() & 0o7777, after);
    }
}
