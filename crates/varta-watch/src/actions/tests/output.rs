use super::*;
use crate::actions::output::Output;

/// What is kept of 10 bytes written in pieces, as head, tail and number of bytes in between.
fn kept(capture_bytes: usize, pieces: &[&str]) -> (String, String, u64) {
    let mut output = Output::new(capture_bytes);
    for piece in pieces {
        output.push(piece.as_bytes());
    }
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.head), text(output.tail.into()), output.dropped)
}

#[test]
fn output_within_the_bound_is_kept_whole() {
    for pieces in [
        &["0123456789"][..],
        &["0", "1234567", "89"],
        &["01234", "", "56789"],
    ] {
        assert_eq!(kept(10, pieces), ("01234".into(), "56789".into(), 0));
        assert_eq!(kept(30, pieces), ("0123456789".into(), String::new(), 0));
    }
}

#[test]
fn output_beyond_the_bound_loses_its_middle() {
    for pieces in [
        &["0123456789"][..],
        &["0123", "456789"],
        &["01234567", "89"],
        &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    ] {
        assert_eq!(kept(9, pieces), ("01234".into(), "6789".into(), 1));
        assert_eq!(kept(8, pieces), ("0123".into(), "6789".into(), 2));
        assert_eq!(kept(3, pieces), ("01".into(), "9".into(), 7));
        assert_eq!(kept(1, pieces), ("0".into(), String::new(), 9));
        assert_eq!(kept(0, pieces), (String::new(), String::new(), 10));
    }
}

#[test]
fn people_read_how_much_is_missing() {
    let mut output = Output::new(4);
    output.push(b"0123456789");
    assert_eq!(output.text(), "01[... 6 bytes ...]89");
    assert_eq!(output.written(), 10);
    let mut binary = Output::new(4);
    binary.push(b"a\xffb");
    assert_eq!(binary.text(), "a\u{fffd}b");
}

#[test]
fn a_character_on_the_border_of_head_and_tail_is_kept_whole() {
    let mut output = Output::new(4);
    output.push("aäb".as_bytes());
    assert_eq!(output.text(), "aäb");
}

#[test]
fn both_streams_are_kept_in_their_order() {
    let ended = run(&shell("echo one; echo two >&2; echo three"));
    assert_eq!(ended.output.text(), "one\ntwo\nthree\n");
}

#[test]
fn a_program_that_writes_200_megabytes_neither_blocks_nor_grows_memory() {
    let ended = run(&shell("head -c 200000000 /dev/zero; echo end"));
    assert_eq!(ended.exit.status, Ok(0));
    assert_eq!(ended.output.written(), 200_000_004);
    assert_eq!(
        (ended.output.head.len(), ended.output.tail.len()),
        (2048, 2048)
    );
    assert!(ended.output.text().ends_with("\0end\n"));
}

#[test]
fn a_program_that_closes_its_streams_is_still_waited_for() {
    let ended = run(&shell("echo x; exec >&- 2>&-; sleep 0.2; exit 4"));
    assert_eq!(ended.exit.status, Ok(4 << 8));
    assert_eq!(ended.output.text(), "x\n");
}

#[test]
fn what_a_program_leaves_running_does_not_delay_its_end_and_can_go_on_writing() {
    let directory = tempfile::tempdir().unwrap();
    let (wake, done) = (fifo(&directory, "wake"), fifo(&directory, "done"));
    let script = format!(
        "(read x < {}; head -c 1000000 /dev/zero; echo $? > {}) & echo started",
        wake.display(),
        done.display()
    );
    block_on(async {
        let runner = Runner::new(kernel());
        let ended = start(&runner, &shell(&script)).wait().await;
        assert_eq!(ended.output.text(), "started\n");
        assert_eq!(runner.left_open.count(), 1);
        let status = tokio::task::spawn_blocking(move || {
            std::fs::write(wake, "\n").unwrap();
            std::fs::read_to_string(done).unwrap()
        });
        assert_eq!(status.await.unwrap(), "0\n");
        while runner.left_open.count() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn the_oldest_of_too_many_pipes_that_were_left_open_is_closed() {
    use crate::actions::output::{LEFT_OPEN_MAX, LeftOpen};
    block_on(async {
        let left_open = LeftOpen::default();
        let mut writers = Vec::new();
        for _ in 0..=LEFT_OPEN_MAX {
            let (reader, writer) = io::pipe().unwrap();
            left_open.add(reader.into());
            writers.push(writer);
        }
        tokio::task::yield_now().await;
        assert_eq!(left_open.count(), LEFT_OPEN_MAX);
        // A fork of another test may hold the other end for a moment longer.
        let closed = |writer: &io::PipeWriter, limit: Option<&rustix::time::Timespec>| {
            let wait = || poll(&mut [PollFd::new(writer, PollFlags::empty())], limit);
            rustix::io::retry_on_intr(wait).unwrap() > 0
        };
        assert!(closed(&writers[0], None));
        assert!(!closed(
            &writers[1],
            Some(&rustix::time::Timespec::default())
        ));
    });
}
