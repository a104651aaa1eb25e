//! Frames survive the wire unchanged, and other bytes are refused with the right error.

use varta_vlp::{
    DecodeError, FRAME_BYTES, Frame, MAGIC, NONCE_TERMINAL, PAYLOAD_GOODBYE, Status, VERSION,
    crc32c,
};

type Wire = [u8; FRAME_BYTES];

/// Offsets of wire spec 2.
const STATUS: usize = 3;
const PID: usize = 4;
const TIMESTAMP: usize = 8;
const NONCE: usize = 16;
const CRC: usize = 28;

fn encoded(frame: Frame) -> Wire {
    let mut wire = [0xaa; FRAME_BYTES];
    frame.encode(&mut wire);
    wire
}

/// A legal frame with some bytes overwritten and the checksum made right again.
fn altered(changes: &[(usize, &[u8])]) -> Wire {
    let mut wire = encoded(Frame::new(Status::Ok, 4242, 1_500_000_000, 1, 7));
    for (offset, bytes) in changes {
        wire[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    let crc = crc32c::compute(&wire[..CRC]);
    wire[CRC..].copy_from_slice(&crc.to_le_bytes());
    wire
}

/// A small deterministic generator (Knuth's MMIX constants), so that a failure repeats.
struct Lcg(u64);

impl Lcg {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ (self.0 >> 33)
    }

    fn wire(&mut self) -> Wire {
        let mut wire = [0; FRAME_BYTES];
        for chunk in wire.chunks_exact_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes());
        }
        wire
    }
}

#[test]
fn the_worked_frame_of_the_spec_encodes_byte_for_byte() {
    const FRAME: Frame = Frame::new(Status::Ok, 4242, 1_500_000_000, 1, 7);
    assert_eq!(
        encoded(FRAME),
        [
            0x56, 0x41, 0x02, 0x00, 0x92, 0x10, 0x00, 0x00, 0x00, 0x2f, 0x68, 0x59, 0, 0, 0, 0, 1,
            0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0x0f, 0xa2, 0x24, 0x6c,
        ]
    );
}

#[test]
fn random_legal_frames_come_back_as_they_were() {
    let mut random = Lcg(1);
    for _ in 0..100_000 {
        let status = [Status::Ok, Status::Degraded, Status::Critical][(random.next() % 3) as usize];
        let pid = (random.next() as u32).max(2);
        let timestamp = random.next().min(u64::MAX - 1);
        let nonce = random.next().min(NONCE_TERMINAL - 1);
        let frame = Frame::new(status, pid, timestamp, nonce, random.next() as u32);
        assert_eq!(Frame::decode(&encoded(frame)), Ok(frame));
        assert_eq!(Frame::decode_attested(&encoded(frame)), Ok(frame));
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let wire = encoded(Frame::new(Status::Degraded, 4242, 1_500_000_000, 1, 7));
    for bit in 0..FRAME_BYTES * 8 {
        let mut flipped = wire;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Frame::decode(&flipped).is_err(), "bit {bit}");
        assert!(Frame::decode_attested(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn random_bytes_are_refused_without_a_panic() {
    let mut random = Lcg(2);
    for _ in 0..100_000 {
        let mut wire = random.wire();
        assert!(Frame::decode(&wire).is_err());
        // With a valid checksum as well, so that the fields are checked.
        wire[..2].copy_from_slice(&MAGIC);
        wire[2] = VERSION;
        let crc = crc32c::compute(&wire[..CRC]);
        wire[CRC..].copy_from_slice(&crc.to_le_bytes());
        let _ = Frame::decode(&wire);
        let _ = Frame::decode_attested(&wire);
    }
}

#[test]
fn each_check_names_its_fault() {
    const ALL_ONES: &[u8] = &[0xff; 8];
    for (wire, error) in [
        (altered(&[(0, b"X")]), DecodeError::BadMagic),
        (altered(&[(1, b"X")]), DecodeError::BadMagic),
        (altered(&[(2, &[1])]), DecodeError::BadVersion),
        (altered(&[(STATUS, &[4])]), DecodeError::BadStatus(4)),
        (altered(&[(STATUS, &[3])]), DecodeError::StallOnWire),
        (altered(&[(PID, &[0; 4])]), DecodeError::BadPid(0)),
        (altered(&[(PID, &[1, 0, 0, 0])]), DecodeError::BadPid(1)),
        (
            altered(&[(TIMESTAMP, ALL_ONES)]),
            DecodeError::BadTimestamp(u64::MAX),
        ),
        (
            altered(&[(NONCE, ALL_ONES)]),
            DecodeError::BadNonce {
                nonce: NONCE_TERMINAL,
                status: Status::Ok,
            },
        ),
    ] {
        assert_eq!(Frame::decode(&wire), Err(error));
    }
}

#[test]
fn a_bad_trailer_carries_both_checksums() {
    let mut wire = altered(&[]);
    let expected = crc32c::compute(&wire[..CRC]);
    wire[CRC..].copy_from_slice(&0x1234_5678_u32.to_le_bytes());
    assert_eq!(
        Frame::decode(&wire),
        Err(DecodeError::BadCrc {
            expected,
            actual: 0x1234_5678
        })
    );
}

/// Starts from a frame with every fault at once and repairs them in the order of wire spec 5.
#[test]
fn the_earliest_check_decides() {
    let ones = [0xff; 8];
    let mut changes: Vec<(usize, &[u8])> = vec![
        (0, b"XX"),
        (2, &[9]),
        (STATUS, &[4]),
        (PID, &[0; 4]),
        (TIMESTAMP, &ones),
        (NONCE, &ones),
    ];
    let broken_crc = |changes: &[(usize, &[u8])]| {
        let mut wire = altered(changes);
        wire[CRC] ^= 1;
        wire
    };
    let kind = |wire: &Wire| Frame::decode(wire).expect_err("a fault remains").kind();

    assert_eq!(kind(&broken_crc(&changes)), "bad_magic");
    changes.remove(0);
    assert_eq!(kind(&broken_crc(&changes)), "bad_version");
    changes.remove(0);
    assert_eq!(kind(&broken_crc(&changes)), "bad_crc");
    assert_eq!(kind(&altered(&changes)), "bad_status");
    changes[0] = (STATUS, &[3]);
    assert_eq!(kind(&altered(&changes)), "stall_on_wire");
    changes.remove(0);
    assert_eq!(kind(&altered(&changes)), "bad_pid");
    changes.remove(0);
    assert_eq!(kind(&altered(&changes)), "bad_timestamp");
    changes.remove(0);
    assert_eq!(kind(&altered(&changes)), "bad_nonce");
}

#[test]
fn attested_decoding_differs_for_pid_one_only() {
    let mut random = Lcg(3);
    for pid in (0..1000).chain((0..1000).map(|_| random.next() as u32)) {
        let wire = encoded(Frame::new(Status::Ok, pid, 1, 1, 0));
        match pid {
            0 => assert_eq!(Frame::decode_attested(&wire), Err(DecodeError::BadPid(0))),
            1 => {
                assert_eq!(Frame::decode(&wire), Err(DecodeError::BadPid(1)));
                assert_eq!(Frame::decode_attested(&wire).map(|frame| frame.pid), Ok(1));
            }
            _ => assert_eq!(Frame::decode_attested(&wire), Frame::decode(&wire)),
        }
    }
}

#[test]
fn only_critical_with_all_ones_is_terminal() {
    let terminal = |status, nonce| Frame::new(status, 2, 1, nonce, 0).is_terminal();
    assert!(terminal(Status::Critical, NONCE_TERMINAL));
    assert!(!terminal(Status::Critical, NONCE_TERMINAL - 1));
    assert!(!terminal(Status::Ok, NONCE_TERMINAL));
}

#[test]
fn a_goodbye_is_a_terminal_frame_with_its_payload_and_nothing_else_is() {
    let frame = |status, nonce, payload| Frame::new(status, 2, 1, nonce, payload);
    let goodbye = frame(Status::Critical, NONCE_TERMINAL, PAYLOAD_GOODBYE);
    assert!(goodbye.is_goodbye() && goodbye.is_terminal());
    assert_eq!(encoded(goodbye)[24..CRC], *b"BYE\0");
    assert_eq!(Frame::decode(&encoded(goodbye)), Ok(goodbye));

    assert!(!frame(Status::Critical, NONCE_TERMINAL, 0).is_goodbye());
    assert!(!frame(Status::Critical, 7, PAYLOAD_GOODBYE).is_goodbye());
    assert!(!frame(Status::Ok, NONCE_TERMINAL, PAYLOAD_GOODBYE).is_goodbye());
}

#[test]
fn the_wrapped_nonce_zero_is_legal() {
    let frame = Frame::new(Status::Ok, 2, 1, 0, 0);
    assert_eq!(Frame::decode(&encoded(frame)), Ok(frame));
}

#[test]
fn statuses_read_as_lower_case_words() {
    let words: Vec<String> = (0..=3)
        .map(|byte| Status::try_from_u8(byte).expect("known").to_string())
        .collect();
    assert_eq!(words, ["ok", "degraded", "critical", "stall"]);
    assert_eq!(Status::try_from_u8(4), Err(DecodeError::BadStatus(4)));
}

#[test]
fn errors_show_values_in_full_width_hex() {
    for (error, text) in [
        (
            DecodeError::BadCrc {
                expected: 0xab,
                actual: 0,
            },
            "checksum mismatch: computed 0x000000ab, frame says 0x00000000",
        ),
        (DecodeError::BadStatus(4), "unknown status byte 0x04"),
        (DecodeError::BadPid(1), "reserved pid 1"),
    ] {
        assert_eq!(error.to_string(), text);
    }
}
