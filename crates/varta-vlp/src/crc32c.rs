//! CRC-32C (Castagnoli), the checksum that ends every frame (wire spec 4).
//!
//! Slice-by-8: eight bytes per step through tables built at compile time, so the same code serves
//! constants, any processor and any byte order. It detects accidents, not attackers.

/// The polynomial `1EDC6F41`, bit-reversed because input and output are reflected.
const POLYNOMIAL_REFLECTED: u32 = 0x82F6_3B78;

/// Bytes consumed per step, and so the number of tables.
const STRIDE_BYTES: usize = 8;

/// `TABLES[k][b]` is the effect of byte `b` followed by `k` zero bytes. 8 KiB.
static TABLES: [[u32; 256]; STRIDE_BYTES] = tables();

/// CRC-32C of `bytes`, of any length; usable in constant expressions.
///
/// ```
/// const CHECK: u32 = varta_vlp::crc32c::compute(b"123456789");
/// assert_eq!(CHECK, 0xe306_9283);
/// ```
#[must_use]
pub const fn compute(bytes: &[u8]) -> u32 {
    let tables = &TABLES;
    let mut crc = u32::MAX;
    let mut rest = bytes;
    while let Some((chunk, tail)) = rest.split_first_chunk::<STRIDE_BYTES>() {
        let word = u64::from_le_bytes(*chunk) ^ crc as u64;
        crc = tables[7][word as u8 as usize]
            ^ tables[6][(word >> 8) as u8 as usize]
            ^ tables[5][(word >> 16) as u8 as usize]
            ^ tables[4][(word >> 24) as u8 as usize]
            ^ tables[3][(word >> 32) as u8 as usize]
            ^ tables[2][(word >> 40) as u8 as usize]
            ^ tables[1][(word >> 48) as u8 as usize]
            ^ tables[0][(word >> 56) as u8 as usize];
        rest = tail;
    }
    while let Some((byte, tail)) = rest.split_first() {
        crc = (crc >> 8) ^ tables[0][(crc as u8 ^ *byte) as usize];
        rest = tail;
    }
    !crc
}

const fn tables() -> [[u32; 256]; STRIDE_BYTES] {
    let mut tables = [[0; 256]; STRIDE_BYTES];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = if crc & 1 == 1 {
                POLYNOMIAL_REFLECTED
            } else {
                0
            };
            crc = (crc >> 1) ^ carry;
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < STRIDE_BYTES {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[zeros - 1][byte];
            tables[zeros][byte] = (crc >> 8) ^ tables[0][crc as u8 as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}
