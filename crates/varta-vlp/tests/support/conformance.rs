//! Checks this crate against a file of conformance vectors.
//!
//! Shared by the example `conformance` and by the test of the same name. Entries of an unknown list are
//! counted as skipped. Nothing in a file can make it panic: a bad entry is a failure of that entry, a bad
//! file is an error. The secure entries are in [`secure`].

#[path = "conformance_secure.rs"]
mod secure;

use std::fmt;

use serde_json::Value;
use varta_vlp::{DecodeError, FRAME_BYTES, Frame, MAGIC, NONCE_TERMINAL, Status, VERSION, crc32c};

/// The result of a vector file. `Display` is the whole report, the totals last.
pub(crate) struct Report {
    pub(crate) passed: usize,
    pub(crate) failures: Vec<Failure>,
    pub(crate) skipped: usize,
}

/// One entry, or one protocol constant, that does not hold.
pub(crate) struct Failure {
    id: String,
    why: String,
}

/// Checks everything in the JSON text of a vector file. Only entries count as passed or skipped; the
/// protocol constants at the top show up when they fail.
///
/// # Errors
///
/// Why the text is not a vector file.
pub(crate) fn check_file(json: &[u8]) -> Result<Report, String> {
    let file: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let crc = list(&file, "crc32c_vectors")?;
    let frame = list(&file, "frame_vectors")?;
    let secure = list(&file, "secure_frame_vectors")?;
    if crc.or(frame).or(secure).is_none() {
        return Err("holds none of the vector lists".to_owned());
    }

    let mut report = Report {
        passed: 0,
        failures: Vec::new(),
        skipped: entries_of_unknown_lists(&file),
    };
    for (key, expected) in [
        ("magic_hex", Value::from(to_hex(&MAGIC))),
        ("version_byte", Value::from(VERSION)),
        (
            "nonce_terminal_hex",
            Value::from(format!("{NONCE_TERMINAL:016x}")),
        ),
    ] {
        if let Some(found) = file.get(key)
            && *found != expected
        {
            report.fail(
                key,
                format!("file says {found}, this crate says {expected}"),
            );
        }
    }
    report.check_all("crc32c_vectors", crc.unwrap_or_default(), check_crc);
    report.check_all("frame_vectors", frame.unwrap_or_default(), check_frame);
    let secure = secure.unwrap_or_default();
    report.check_all("secure_frame_vectors", secure, secure::check);
    Ok(report)
}

fn entries_of_unknown_lists(file: &Value) -> usize {
    const KNOWN: [&str; 3] = ["crc32c_vectors", "frame_vectors", "secure_frame_vectors"];
    let lists = file.as_object().into_iter().flatten();
    let unknown =
        lists.filter(|(key, _)| key.ends_with("_vectors") && !KNOWN.contains(&key.as_str()));
    unknown
        .filter_map(|(_, list)| list.as_array())
        .map(Vec::len)
        .sum()
}

impl Report {
    fn check_all(
        &mut self,
        list: &str,
        entries: &[Value],
        check: fn(&Value) -> Result<(), String>,
    ) {
        for (position, entry) in entries.iter().enumerate() {
            match text(entry, "id") {
                Err(why) => self.fail(&format!("{list}[{position}]"), why),
                Ok(id) => match check(entry) {
                    Err(why) => self.fail(id, why),
                    Ok(()) => self.passed += 1,
                },
            }
        }
    }

    fn fail(&mut self, id: &str, why: String) {
        self.failures.push(Failure {
            id: id.to_owned(),
            why,
        });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Failure { id, why } in &self.failures {
            writeln!(f, "{id}: {why}")?;
        }
        let failed = self.failures.len();
        write!(
            f,
            "{} passed, {failed} failed, {} skipped",
            self.passed, self.skipped
        )
    }
}

fn check_crc(entry: &Value) -> Result<(), String> {
    let input = from_hex(text(entry, "input_hex")?)?;
    expect_eq(
        "crc",
        text(entry, "expected_crc_hex")?,
        &format!("{:08x}", crc32c::compute(&input)),
    )
}

fn check_frame(entry: &Value) -> Result<(), String> {
    match text(entry, "kind")? {
        "encode_decode_roundtrip" => check_roundtrip(entry),
        "decode_error" => check_decode_error(entry),
        unknown => Err(format!("unknown kind {unknown:?}")),
    }
}

fn check_roundtrip(entry: &Value) -> Result<(), String> {
    if let Some(error) = entry.get("expected_decode_error")
        && !error.is_null()
    {
        return Err(format!("a round trip cannot expect the error {error}"));
    }
    let inputs = entry.get("inputs").ok_or("no `inputs`")?;
    let status = match text(inputs, "status")? {
        "ok" => Status::Ok,
        "degraded" => Status::Degraded,
        "critical" => Status::Critical,
        unknown => return Err(format!("unknown status {unknown:?}")),
    };
    let frame = Frame::new(
        status,
        number_u32(inputs, "pid")?,
        number(inputs, "timestamp")?,
        number(inputs, "nonce")?,
        number_u32(inputs, "payload")?,
    );
    let expected_wire = frame_bytes(text(entry, "expected_wire_hex")?)?;

    let mut wire = [0; FRAME_BYTES];
    frame.encode(&mut wire);
    expect_eq("encoding", &to_hex(&expected_wire), &to_hex(&wire))?;
    match Frame::decode(&expected_wire) {
        Err(error) => Err(format!("decoding: {error:?}")),
        Ok(decoded) => expect_eq("decoding", &format!("{frame:?}"), &format!("{decoded:?}")),
    }
}

fn check_decode_error(entry: &Value) -> Result<(), String> {
    let expected = text(entry, "expected_decode_error")?;
    let found = match Frame::decode(&frame_bytes(text(entry, "wire_hex")?)?) {
        Ok(frame) => return Err(format!("decoding: expected {expected}, got {frame:?}")),
        Err(error) => variant_name(error),
    };
    expect_eq("decoding", expected, found)
}

fn variant_name(error: DecodeError) -> &'static str {
    match error {
        DecodeError::BadMagic => "BadMagic",
        DecodeError::BadVersion => "BadVersion",
        DecodeError::BadCrc { .. } => "BadCrc",
        DecodeError::BadStatus(_) => "BadStatus",
        DecodeError::StallOnWire => "StallOnWire",
        DecodeError::BadPid(_) => "BadPid",
        DecodeError::BadTimestamp(_) => "BadTimestamp",
        DecodeError::BadNonce { .. } => "BadNonce",
    }
}

fn expect_eq(what: &str, expected: &str, found: &str) -> Result<(), String> {
    if expected == found {
        Ok(())
    } else {
        Err(format!("{what}: expected {expected}, got {found}"))
    }
}

/// A list may be missing, but the value under its key must be a list.
fn list<'a>(file: &'a Value, key: &str) -> Result<Option<&'a [Value]>, String> {
    let object = file.as_object().ok_or("the top level is not an object")?;
    match object.get(key) {
        None => Ok(None),
        Some(Value::Array(entries)) => Ok(Some(entries)),
        Some(_) => Err(format!("`{key}` is not a list")),
    }
}

fn text<'a>(object: &'a Value, key: &str) -> Result<&'a str, String> {
    object
        .get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| format!("no text `{key}`"))
}

fn number(object: &Value, key: &str) -> Result<u64, String> {
    object
        .get(key)
        .and_then(Value::as_u64)
        .ok_or_else(|| format!("no unsigned integer `{key}`"))
}

fn number_u32(object: &Value, key: &str) -> Result<u32, String> {
    u32::try_from(number(object, key)?).map_err(|_| format!("`{key}` does not fit 32 bits"))
}

fn frame_bytes(hex: &str) -> Result<[u8; FRAME_BYTES], String> {
    bytes(hex)
}

/// Exactly `N` bytes.
fn bytes<const N: usize>(hex: &str) -> Result<[u8; N], String> {
    from_hex(hex)?
        .try_into()
        .map_err(|bytes: Vec<u8>| format!("{} bytes where there must be {N}", bytes.len()))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Lower-case hex without separators, the only form in the schema.
fn from_hex(hex: &str) -> Result<Vec<u8>, String> {
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
    if !odd.is_empty() {
        return Err("hex text of odd length".to_owned());
    }
    pairs
        .iter()
        .map(|&[high, low]| Some(nibble(high)? << 4 | nibble(low)?))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| "text that is not lower-case hex".to_owned())
}
