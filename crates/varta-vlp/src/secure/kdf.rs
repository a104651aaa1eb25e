//! HKDF-SHA-256 without salt, and the info string of every purpose (wire spec 7). The `info_*` functions
//! are public so that other implementations can be compared with this one.
//!
//! A change to any of these needs a new `-vN` and new keys.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroize;

use super::{AgentKey, Fingerprint, Key, PREFIX_BYTES, SALT_BYTES};

/// The key of the agent with this pid.
pub fn derive_agent_key(master: &Key, pid: u32) -> Key {
    expand_key(master, &info_agent_key(pid))
}

/// The key of an agent for one epoch. Defined, but nothing on the wire of 0.2 uses it.
pub fn derive_epoch_key(agent: &Key, epoch: u64) -> Key {
    expand_key(agent, &info_epoch_key(epoch))
}

/// The `index`-th prefix of the session with this salt.
pub fn derive_iv_prefix(salt: &[u8; SALT_BYTES], index: u32) -> [u8; PREFIX_BYTES] {
    expand_prefix(salt, &info_iv_prefix(index))
}

/// The prefix of one last frame: process, timestamp, and the `firing`-th since the installation that drew the
/// salt. It needs no entropy during a crash.
pub fn derive_panic_prefix(
    salt: &[u8; SALT_BYTES],
    pid: u32,
    timestamp_ns: u64,
    firing: u32,
) -> [u8; PREFIX_BYTES] {
    expand_prefix(salt, &info_panic_prefix(pid, timestamp_ns, firing))
}

/// The info of an agent key.
pub fn info_agent_key(pid: u32) -> [u8; 19] {
    joined([b"varta-agent-v1\0", &pid.to_le_bytes()])
}

/// The info of an epoch key.
pub fn info_epoch_key(epoch: u64) -> [u8; 23] {
    joined([b"varta-epoch-v1\0", &epoch.to_le_bytes()])
}

/// The info of a session's prefix.
pub fn info_iv_prefix(index: u32) -> [u8; 23] {
    joined([b"varta-iv-prefix-v1\0", &index.to_le_bytes()])
}

fn info_panic_prefix(pid: u32, timestamp_ns: u64, firing: u32) -> [u8; 34] {
    joined([
        b"varta-panic-iv-v1\0",
        &pid.to_le_bytes(),
        &timestamp_ns.to_le_bytes(),
        &firing.to_le_bytes(),
    ])
}

impl Key {
    /// The public name of this key.
    pub fn fingerprint(&self) -> Fingerprint {
        let bytes = expand_prefix(self.expose(), b"varta-fingerprint-v1\0");
        Fingerprint(u64::from_be_bytes(bytes))
    }
}

impl AgentKey {
    /// The key of `pid` under a master key.
    pub fn derive(master: &Key, pid: u32) -> Self {
        Self::from_derived(derive_agent_key(master, pid), pid)
    }
}

fn expand_key(input: &Key, info: &[u8]) -> Key {
    let mut output = [0; super::KEY_BYTES];
    expand(input.expose(), info, &mut output);
    let key = Key::from_bytes(output);
    output.zeroize();
    key
}

fn expand_prefix(input: &[u8], info: &[u8]) -> [u8; PREFIX_BYTES] {
    let mut output = [0; PREFIX_BYTES];
    expand(input, info, &mut output);
    output
}

fn expand(input: &[u8], info: &[u8], output: &mut [u8]) {
    let (mut pseudorandom_key, expander) = Hkdf::<Sha256>::extract(None, input);
    // Fails only for outputs of more than 8160 bytes.
    let _ = expander.expand(info, output);
    pseudorandom_key.as_mut_slice().zeroize();
}

/// Concatenates the parts. They fit by the constants in the callers, which the tests compare with published
/// bytes.
fn joined<const PARTS: usize, const BYTES: usize>(parts: [&[u8]; PARTS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let flat = parts.into_iter().flatten();
    bytes
        .iter_mut()
        .zip(flat)
        .for_each(|(to, from)| *to = *from);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_info_strings_fill_their_bytes_exactly() {
        assert_eq!(b"varta-agent-v1\0".len() + 4, info_agent_key(0).len());
        assert_eq!(b"varta-epoch-v1\0".len() + 8, info_epoch_key(0).len());
        assert_eq!(b"varta-iv-prefix-v1\0".len() + 4, info_iv_prefix(0).len());
        let panic = info_panic_prefix(0, 0, 0);
        assert_eq!(b"varta-panic-iv-v1\0".len() + 4 + 8 + 4, panic.len());
    }

    #[test]
    fn the_prefix_of_a_last_frame_is_the_specified_one() {
        let salt = core::array::from_fn(|i| 0xa0 + i as u8);
        let prefix = derive_panic_prefix(&salt, 4242, 1_500_000_000, 0);
        assert_eq!(prefix, 0xecf5_9b10_09de_1d3a_u64.to_be_bytes());
    }
}
