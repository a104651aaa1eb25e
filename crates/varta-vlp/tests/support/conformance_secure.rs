//! The secure entries of a vector file: sealing, opening, refusing to open, and key derivation.

use serde_json::Value;
use varta_vlp::secure::{AgentKey, Key, MasterEnvelope, SharedEnvelope, kdf, known_answers};

use super::{bytes, expect_eq, from_hex, number, number_u32, text, to_hex};

pub(super) fn check(entry: &Value) -> Result<(), String> {
    match text(entry, "kind")? {
        "shared_key_seal" => check_shared_seal(entry),
        "master_key_seal" => check_master_seal(entry),
        "kdf_agent_key" => check_agent_key(entry),
        "kdf_iv_prefix" => check_iv_prefix(entry),
        "kdf_epoch_key" => check_epoch_key(entry),
        "shared_key_open_error" => check_shared_refusal(entry),
        "master_key_open_error" => check_master_refusal(entry),
        unknown => Err(format!("unknown kind {unknown:?}")),
    }
}

fn check_shared_seal(entry: &Value) -> Result<(), String> {
    let key = key(entry, "key_hex")?;
    let plaintext = bytes(text(entry, "plaintext_hex")?)?;
    let prefix = bytes(text(entry, "iv_random_hex")?)?;
    let counter = number_u32(entry, "iv_counter")?;
    let expected = text(entry, "expected_wire_hex")?;

    let sealed = known_answers::seal_shared(&key, prefix, counter, &plaintext)
        .map_err(|error| format!("sealing: {error}"))?;
    expect_eq("sealing", expected, &to_hex(sealed.as_bytes()))?;

    let wire = from_hex(expected)?;
    let envelope = SharedEnvelope::from_datagram(&wire).ok_or("not an envelope")?;
    expect_eq("prefix", &to_hex(&prefix), &to_hex(&envelope.prefix()))?;
    let found = envelope.counter().to_string();
    expect_eq("counter", &counter.to_string(), &found)?;
    let opened = envelope.open(&key).ok_or("opening: refused")?;
    expect_eq("opening", &to_hex(&plaintext), &to_hex(&opened))
}

fn check_master_seal(entry: &Value) -> Result<(), String> {
    let master = key(entry, "master_key_hex")?;
    let pid = number_u32(entry, "agent_pid")?;
    let plaintext = bytes(text(entry, "plaintext_hex")?)?;
    let prefix = bytes(text(entry, "iv_random_hex")?)?;
    let counter = number_u32(entry, "iv_counter")?;
    let expected = text(entry, "expected_wire_hex")?;

    let agent = AgentKey::derive(&master, pid);
    let derived = text(entry, "derived_agent_key_hex")?;
    expect_eq("agent key", derived, &hex_of(agent.key()))?;
    let sealed = known_answers::seal_agent(&agent, prefix, counter, &plaintext)
        .map_err(|error| format!("sealing: {error}"))?;
    expect_eq("sealing", expected, &to_hex(sealed.as_bytes()))?;

    let wire = from_hex(expected)?;
    let envelope = MasterEnvelope::from_datagram(&wire).ok_or("not an envelope")?;
    expect_eq("pid", &pid.to_string(), &envelope.pid().to_string())?;
    expect_eq("prefix", &to_hex(&prefix), &to_hex(&envelope.prefix()))?;
    let found = envelope.counter().to_string();
    expect_eq("counter", &counter.to_string(), &found)?;
    let opened = envelope.open(&agent).ok_or("opening: refused")?;
    expect_eq("opening", &to_hex(&plaintext), &to_hex(&opened))
}

fn check_agent_key(entry: &Value) -> Result<(), String> {
    let master = key(entry, "master_key_hex")?;
    let id = number_u32(entry, "agent_id")?;
    let info = to_hex(&kdf::info_agent_key(id));
    expect_eq("info", text(entry, "info_hex")?, &info)?;
    let derived = hex_of(&kdf::derive_agent_key(&master, id));
    expect_eq("agent key", text(entry, "expected_okm_hex")?, &derived)
}

fn check_iv_prefix(entry: &Value) -> Result<(), String> {
    let salt = bytes(text(entry, "session_salt_hex")?)?;
    let index = number_u32(entry, "prefix_index")?;
    let info = to_hex(&kdf::info_iv_prefix(index));
    expect_eq("info", text(entry, "info_hex")?, &info)?;
    let prefix = to_hex(&kdf::derive_iv_prefix(&salt, index));
    expect_eq("prefix", text(entry, "expected_iv_prefix_hex")?, &prefix)
}

fn check_epoch_key(entry: &Value) -> Result<(), String> {
    let agent = key(entry, "agent_key_hex")?;
    let epoch = number(entry, "epoch")?;
    let info = to_hex(&kdf::info_epoch_key(epoch));
    expect_eq("info", text(entry, "info_hex")?, &info)?;
    let derived = hex_of(&kdf::derive_epoch_key(&agent, epoch));
    expect_eq("epoch key", text(entry, "expected_okm_hex")?, &derived)
}

fn check_shared_refusal(entry: &Value) -> Result<(), String> {
    let key = key(entry, "key_hex")?;
    let wire = from_hex(text(entry, "wire_hex")?)?;
    let envelope = SharedEnvelope::from_datagram(&wire).ok_or("not an envelope")?;
    match text(entry, "expected_error")? {
        "AuthError" => refused(envelope.open(&key)),
        unknown => Err(format!("unknown error {unknown:?}")),
    }
}

fn check_master_refusal(entry: &Value) -> Result<(), String> {
    let master = key(entry, "master_key_hex")?;
    let wire = from_hex(text(entry, "wire_hex")?)?;
    let envelope = MasterEnvelope::from_datagram(&wire).ok_or("not an envelope")?;
    match text(entry, "expected_error")? {
        // A receiver treats both cases the same.
        "AuthError" | "PidMismatch" => {
            refused(envelope.open(&AgentKey::derive(&master, envelope.pid())))
        }
        unknown => Err(format!("unknown error {unknown:?}")),
    }
}

fn refused(opened: Option<[u8; 32]>) -> Result<(), String> {
    match opened {
        None => Ok(()),
        Some(frame) => Err(format!("opened to {}", to_hex(&frame))),
    }
}

fn key(entry: &Value, name: &str) -> Result<Key, String> {
    Key::from_hex(text(entry, name)?.as_bytes()).map_err(|error| format!("`{name}`: {error}"))
}

fn hex_of(key: &Key) -> String {
    String::from_utf8_lossy(&*key.to_hex()).into_owned()
}
