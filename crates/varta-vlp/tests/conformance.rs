//! The published known answers hold, and the checker also detects wrong ones.

#[path = "support/conformance.rs"]
mod conformance;

use conformance::check_file;
use serde_json::Value;

const VECTORS: &[u8] = include_bytes!("vectors/vlp.json");

fn totals(json: &str) -> String {
    let report = check_file(json.as_bytes()).expect("a vector file");
    assert!(report.failures.is_empty() || report.to_string().lines().count() > 1);
    report
        .to_string()
        .lines()
        .last()
        .expect("totals")
        .to_owned()
}

#[test]
fn every_published_vector_holds() {
    let file: Value = serde_json::from_slice(VECTORS).expect("json");
    let count = |key: &str| file[key].as_array().expect("a list").len();

    let report = check_file(VECTORS).expect("a vector file");

    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(
        report.passed,
        count("crc32c_vectors") + count("frame_vectors") + count("secure_frame_vectors")
    );
    assert_eq!(report.skipped, 0);
}

#[test]
fn entries_of_an_unknown_list_are_skipped_and_said_to_be() {
    let json = r#"{"frame_vectors":[],"page_vectors":[{"id":"a"},{"id":"b"}]}"#;
    assert_eq!(totals(json), "0 passed, 0 failed, 2 skipped");
}

/// One of the published entries, changed.
fn changed(id: &str, key: &str, value: &str) -> String {
    let file: Value = serde_json::from_slice(VECTORS).expect("json");
    let entries = file["secure_frame_vectors"].as_array().expect("a list");
    let mut entry = entries
        .iter()
        .find(|entry| entry["id"] == id)
        .expect(id)
        .clone();
    entry[key] = Value::from(value);
    totals(&serde_json::json!({ "secure_frame_vectors": [entry] }).to_string())
}

#[test]
fn a_wrong_secure_expectation_is_a_failure_of_its_kind() {
    let zeros = "00".repeat(60);
    for (id, key, value) in [
        ("secure-shared-key-seal", "expected_wire_hex", &zeros[..]),
        ("secure-shared-key-seal", "key_hex", &zeros[..64]),
        ("kdf-agent-key", "expected_okm_hex", &zeros[..64]),
        ("kdf-agent-key", "info_hex", &zeros[..38]),
        ("iv-prefix-2", "expected_iv_prefix_hex", &zeros[..16]),
        ("epoch-key-2", "expected_okm_hex", &zeros[..64]),
        ("shared-open-counter-high", "expected_error", "None"),
        ("master-open-pid-first", "kind", "from_the_future"),
    ] {
        assert_eq!(
            changed(id, key, value),
            "0 passed, 1 failed, 0 skipped",
            "{id}"
        );
    }
}

#[test]
fn an_envelope_that_opens_where_it_must_not_is_a_failure() {
    let file: Value = serde_json::from_slice(VECTORS).expect("json");
    let entries = file["secure_frame_vectors"].as_array().expect("a list");
    let good = entries
        .iter()
        .find(|entry| entry["kind"] == "shared_key_seal")
        .expect("a seal");
    let entry = serde_json::json!({
        "id": "opens", "kind": "shared_key_open_error", "expected_error": "AuthError",
        "key_hex": good["key_hex"], "wire_hex": good["expected_wire_hex"],
    });
    let json = serde_json::json!({ "secure_frame_vectors": [entry] }).to_string();
    assert_eq!(totals(&json), "0 passed, 1 failed, 0 skipped");
}

#[test]
fn a_wrong_expectation_is_reported_with_its_id() {
    let json =
        r#"{"crc32c_vectors":[{"id":"wrong","input_hex":"","expected_crc_hex":"00000001"}]}"#;
    let report = check_file(json.as_bytes()).expect("a vector file");
    assert_eq!(
        report.to_string(),
        "wrong: crc: expected 00000001, got 00000000\n0 passed, 1 failed, 0 skipped"
    );
}

#[test]
fn a_malformed_entry_fails_alone() {
    let json = r#"{"crc32c_vectors":[
        {"id":"good","input_hex":"","expected_crc_hex":"00000000"},
        {"id":"not-hex","input_hex":"+1","expected_crc_hex":"00000000"},
        {"id":"odd","input_hex":"123","expected_crc_hex":"00000000"},
        {"input_hex":"","expected_crc_hex":"00000000"},
        17
    ]}"#;
    assert_eq!(totals(json), "1 passed, 4 failed, 0 skipped");
}

#[test]
fn a_frame_of_the_wrong_length_fails_its_entry() {
    let json = r#"{"frame_vectors":[
        {"id":"short","kind":"decode_error","expected_decode_error":"BadMagic","wire_hex":"5641"}
    ]}"#;
    assert_eq!(totals(json), "0 passed, 1 failed, 0 skipped");
}

#[test]
fn a_number_beyond_its_field_fails_its_entry() {
    let json = r#"{"frame_vectors":[{"id":"big","kind":"encode_decode_roundtrip",
        "inputs":{"status":"ok","pid":4294967296,"timestamp":0,"nonce":1,"payload":0},
        "expected_wire_hex":"56410200020000000000000000000000010000000000000000000000e4116baa"}]}"#;
    assert_eq!(totals(json), "0 passed, 1 failed, 0 skipped");
}

#[test]
fn an_unknown_kind_is_a_failure() {
    assert_eq!(
        totals(r#"{"frame_vectors":[{"id":"new","kind":"from_the_future"}]}"#),
        "0 passed, 1 failed, 0 skipped"
    );
}

#[test]
fn a_constant_that_differs_is_a_failure() {
    let json =
        r#"{"magic_hex":"5642","version_byte":3,"nonce_terminal_hex":"00","frame_vectors":[]}"#;
    assert_eq!(totals(json), "0 passed, 3 failed, 0 skipped");
}

#[test]
fn what_is_no_vector_file_is_an_error_and_no_panic() {
    for json in [
        "",
        "{",
        "[]",
        "17",
        "{}",
        r#"{"frame_vectors":{}}"#,
        "\u{feff}{}",
    ] {
        assert!(check_file(json.as_bytes()).is_err(), "{json:?}");
    }
    assert!(check_file(b"\xff\xfe").is_err());
    assert!(check_file("[".repeat(100_000).as_bytes()).is_err());
}
