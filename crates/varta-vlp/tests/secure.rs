//! Envelopes and keys: what opens, what does not, and what can never be sealed twice.

use std::collections::HashSet;
use std::convert::Infallible;

use varta_vlp::secure::{
    AgentKey, CrashSealer, Key, KeyError, KeyTextError, MasterEnvelope, Salt, SealError, Sealer,
    SharedEnvelope, kdf,
};
use varta_vlp::{FRAME_BYTES, Frame, NONCE_TERMINAL, Status};

const PID: u32 = 4242;

fn key(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

fn salt(byte: u8) -> Salt {
    let Ok(salt) = Salt::draw(|salt| {
        *salt = [byte; 16];
        Ok::<(), Infallible>(())
    });
    salt
}

fn frame(nonce: u64) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    Frame::new(Status::Ok, PID, nonce, nonce, 7).encode(&mut bytes);
    bytes
}

fn sealed_shared() -> Vec<u8> {
    let envelope = Sealer::shared(key(1), salt(9)).seal(&frame(1));
    envelope.unwrap().as_bytes().to_vec()
}

fn sealed_by_agent() -> Vec<u8> {
    let mut sealer = Sealer::agent(AgentKey::derive(&key(1), PID), salt(9));
    sealer.seal(&frame(1)).unwrap().as_bytes().to_vec()
}

fn open_shared(wire: &[u8]) -> Option<[u8; FRAME_BYTES]> {
    SharedEnvelope::from_datagram(wire)?.open(&key(1))
}

fn open_by_master(wire: &[u8]) -> Option<[u8; FRAME_BYTES]> {
    let envelope = MasterEnvelope::from_datagram(wire)?;
    envelope.open(&AgentKey::derive(&key(1), envelope.pid()))
}

#[test]
fn what_was_sealed_opens_to_the_same_frame() {
    assert_eq!(open_shared(&sealed_shared()), Some(frame(1)));
    assert_eq!(open_by_master(&sealed_by_agent()), Some(frame(1)));
}

#[test]
fn no_flipped_bit_opens() {
    type Open = fn(&[u8]) -> Option<[u8; FRAME_BYTES]>;
    let kinds: [(Vec<u8>, Open); 2] = [
        (sealed_shared(), open_shared),
        (sealed_by_agent(), open_by_master),
    ];
    for (wire, open) in kinds {
        for bit in 0..wire.len() * 8 {
            let mut flipped = wire.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&flipped), None, "bit {bit} of {}", wire.len());
        }
    }
}

#[test]
fn another_key_opens_nothing() {
    let wire = sealed_shared();
    let envelope = SharedEnvelope::from_datagram(&wire).unwrap();
    assert_eq!(envelope.open(&key(2)), None);
    let wire = sealed_by_agent();
    let envelope = MasterEnvelope::from_datagram(&wire).unwrap();
    assert_eq!(envelope.open(&AgentKey::derive(&key(2), PID)), None);
    assert_eq!(envelope.open(&AgentKey::derive(&key(1), PID + 1)), None);
}

#[test]
fn the_key_of_another_pid_opens_nothing_even_if_it_fits() {
    let wire = sealed_by_agent();
    let envelope = MasterEnvelope::from_datagram(&wire).unwrap();
    let derived = kdf::derive_agent_key(&key(1), PID);
    let mislabelled = AgentKey::from_derived(derived, PID + 1);
    assert_eq!(envelope.open(&mislabelled), None);
}

#[test]
fn the_kinds_of_envelopes_are_told_apart_by_length_alone() {
    for length in [0, 32, 59, 61, 63, 65, 128] {
        let bytes = vec![0; length];
        assert!(SharedEnvelope::from_datagram(&bytes).is_none());
        assert!(MasterEnvelope::from_datagram(&bytes).is_none());
    }
    assert!(SharedEnvelope::from_datagram(&sealed_by_agent()).is_none());
    assert!(MasterEnvelope::from_datagram(&sealed_shared()).is_none());
}

#[test]
fn an_agent_key_seals_for_its_own_pid_only() {
    let mut sealer = Sealer::agent(AgentKey::derive(&key(1), PID + 1), salt(9));
    let error = sealer.seal(&frame(1)).unwrap_err();
    let key = PID + 1;
    assert_eq!(error, SealError::WrongPid { key, frame: PID });
}

#[test]
fn every_envelope_of_a_sealer_has_a_nonce_of_its_own_across_a_new_salt() {
    let mut sealer = Sealer::shared(key(1), salt(1));
    let mut nonces = HashSet::new();
    for round in 2..4 {
        for nonce in 1..100 {
            let wire = sealer.seal(&frame(nonce)).unwrap().as_bytes().to_vec();
            assert!(nonces.insert(wire[..12].to_vec()));
        }
        sealer.renew(salt(round));
    }
}

#[test]
fn every_last_frame_has_a_nonce_of_its_own_also_in_a_child() {
    let sealer = CrashSealer::new(salt(1));
    let mut nonces = HashSet::new();
    for (pid, timestamp) in [(PID, 5), (PID, 5), (PID, 6), (PID + 1, 5)] {
        let mut last = [0; FRAME_BYTES];
        Frame::new(Status::Critical, pid, timestamp, NONCE_TERMINAL, 0).encode(&mut last);
        let shared = sealer.seal_shared(&key(1), &last).unwrap();
        assert_eq!(open_shared(shared.as_bytes()), Some(last));
        assert!(nonces.insert(shared.as_bytes()[..12].to_vec()));
        let own = AgentKey::derive(&key(1), pid);
        let sealed = sealer.seal_agent(&own, &last).unwrap();
        assert_eq!(open_by_master(sealed.as_bytes()), Some(last));
        assert!(nonces.insert(sealed.as_bytes()[4..16].to_vec()));
    }
}

#[test]
fn a_salt_that_could_not_be_drawn_is_no_salt() {
    assert_eq!(Salt::draw(|_| Err("empty")).unwrap_err(), "empty");
}

#[test]
fn no_secret_is_printed() {
    let agent = AgentKey::derive(&key(0xab), PID);
    let sealer = Sealer::shared(key(0xab), salt(0xab));
    for shown in [
        format!("{:?}", key(0xab)),
        format!("{agent:?}"),
        format!("{sealer:?}"),
        format!("{:?}", salt(0xab)),
    ] {
        assert!(!shown.contains("171") && !shown.contains("ab, "), "{shown}");
        assert!(!shown.contains("abab"), "{shown}");
    }
}

#[test]
fn a_fingerprint_names_a_key_and_is_no_part_of_it() {
    let shown = key(1).fingerprint().to_string();
    assert_eq!(shown.len(), 16);
    assert_eq!(shown, key(1).fingerprint().to_string());
    assert_ne!(shown, key(2).fingerprint().to_string());
    assert!(!String::from_utf8_lossy(&*key(1).to_hex()).contains(&shown));
}

#[test]
fn hex_is_read_in_either_case_and_written_in_lower_case() {
    let mixed = b"404142434445464748494A4b4C4d4E4f505152535455565758595A5b5C5d5E5f";
    let hex = Key::from_hex(mixed).unwrap().to_hex();
    assert_eq!(hex[..], mixed.to_ascii_lowercase());
}

#[test]
fn what_is_not_64_hex_digits_is_named_by_length_or_position() {
    assert_eq!(Key::from_hex(b"").unwrap_err(), KeyError::InvalidLength(0));
    let short = Key::from_hex(&[b'0'; 63]).unwrap_err();
    assert_eq!(short, KeyError::InvalidLength(63));
    let mut text = [b'0'; 64];
    text[63] = b'g';
    let error = Key::from_hex(&text).unwrap_err();
    assert_eq!(error, KeyError::InvalidCharacter(63));
}

fn keys_in(content: &[u8]) -> Result<Vec<u8>, KeyTextError> {
    let mut first_bytes = Vec::new();
    Key::each_in(content, |key| {
        let hex = key.to_hex();
        let text = std::str::from_utf8(&hex[..2]).unwrap();
        first_bytes.push(u8::from_str_radix(text, 16).unwrap());
    })?;
    Ok(first_bytes)
}

#[test]
fn a_key_file_is_text_with_comments_or_32_bytes_as_they_are() {
    let one = "01".repeat(32);
    let two = "0A".repeat(32);
    let text = format!("# keys\n\n  {one}\r\n\t# more\n{two}\n\n \n");
    assert_eq!(keys_in(text.as_bytes()), Ok(vec![1, 10]));
    assert_eq!(keys_in(one.as_bytes()), Ok(vec![1]), "no line end");
    assert_eq!(keys_in(&[b'#'; 32]), Ok(vec![b'#']), "raw");
    assert_eq!(keys_in(b"# nothing\n"), Ok(vec![]));
    assert_eq!(keys_in(b""), Ok(vec![]));
}

#[test]
fn the_first_bad_line_of_a_key_file_is_named() {
    let text = format!("# a\n{}\n{}x\n", "01".repeat(32), "02".repeat(32));
    let error = keys_in(text.as_bytes()).unwrap_err();
    assert_eq!(error.line, 3);
    assert_eq!(error.error, KeyError::InvalidLength(65));
    assert!(keys_in(&[0xff; 33]).is_err());
}
