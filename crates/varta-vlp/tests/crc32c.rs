//! CRC-32C gives the published answers, for every length, at run time and at compile time.

use varta_vlp::crc32c::compute;

/// The definition, a bit at a time: slow, and too plain to be wrong.
fn bit_by_bit(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[test]
fn known_answers_hold() {
    let ascending: Vec<u8> = (0..32).collect();
    for (input, expected) in [
        (&b""[..], 0),
        (b"123456789", 0xe306_9283),
        (&[0; 32], 0x8a91_36aa),
        (&ascending, 0x46dd_794e),
    ] {
        assert_eq!(compute(input), expected, "{input:02x?}");
    }
}

#[test]
fn constants_can_be_computed() {
    const CHECK: u32 = compute(b"123456789");
    assert_eq!(CHECK, 0xe306_9283);
}

#[test]
fn every_length_agrees_with_the_definition() {
    let bytes: Vec<u8> = (0..300_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for length in 0..=bytes.len() {
        assert_eq!(
            compute(&bytes[..length]),
            bit_by_bit(&bytes[..length]),
            "{length} bytes"
        );
    }
}
