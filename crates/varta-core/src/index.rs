//! Key to slot number, in bounded work: [`PidIndex`] for pids the kernel attests, [`BoundedIndex`] for
//! every other key (DESIGN section 5; `spec/observer.md` 2.1 and 2.4).
//!
//! Neither has a notion of slots, evicts or grows: both are sized once and allocate nothing afterwards. A
//! `PidIndex` answers with one memory access for any pid, and reserves 4 bytes per pid that the kernel can
//! assign, most of them never touched. A `BoundedIndex` keeps its load at or below one half, never refuses a
//! key while fewer than `capacity` are live, and does not wear out: removal leaves no tombstone, so a table
//! after a billion keys is as fast as a new one.

use core::error::Error;
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use core::num::NonZeroU32;

/// Pids a [`PidIndex`] accepts are below this number: Linux' own ceiling (`PID_MAX_LIMIT`, 2^22) on
/// 64-bit machines, which no `kernel.pid_max` can raise. It makes the index 16 MiB of address space.
pub const PID_LIMIT: u32 = 1 << 22;

/// The longest probe sequence, in cells, that a [`BoundedIndex`] holding more than its capacity
/// accepts. It bounds what an overfull table can cost. Up to its capacity a table does not need the
/// bound: the longest sequence for a million keys is about 12, see [`BoundedIndex`].
pub const MAX_PROBE: u32 = 64;

/// Attested pid to slot number: a direct table, so no choice of pids makes it slow or full.
pub struct PidIndex {
    /// Slot + 1 of each pid; 0 means absent, so that fresh zeroed pages are a correct empty table.
    entries: Box<[u32]>,
    len: usize,
}

impl PidIndex {
    /// An empty index. It reserves 16 MiB of zeroed memory; a page of it costs something only once
    /// one of its 1024 pids has been inserted.
    pub fn new() -> Self {
        Self {
            entries: vec![0; PID_LIMIT as usize].into_boxed_slice(),
            len: 0,
        }
    }

    /// The slot of `pid`; `None` for an absent or impossible pid.
    pub fn get(&self, pid: u32) -> Option<u32> {
        self.entries.get(pid as usize)?.checked_sub(1)
    }

    /// Maps `pid` to `slot` and returns the slot it was mapped to before.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if `pid` is not below [`PID_LIMIT`] or `slot` is `u32::MAX`, which no table
    /// reaches; nothing has changed then.
    pub fn insert(&mut self, pid: u32, slot: u32) -> Result<Option<u32>, OutOfRange> {
        let stored = slot.checked_add(1).ok_or(OutOfRange)?;
        let entry = self.entries.get_mut(pid as usize).ok_or(OutOfRange)?;
        let old = core::mem::replace(entry, stored).checked_sub(1);
        self.len += usize::from(old.is_none());
        Ok(old)
    }

    /// Removes `pid` and returns the slot it was mapped to.
    pub fn remove(&mut self, pid: u32) -> Option<u32> {
        let entry = self.entries.get_mut(pid as usize)?;
        let old = core::mem::take(entry).checked_sub(1)?;
        self.len -= 1;
        Some(old)
    }

    /// Pids present.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no pid is present.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes every pid. This writes the whole table: 16 MiB, then resident.
    pub fn clear(&mut self) {
        self.entries.fill(0);
        self.len = 0;
    }
}

impl Default for PidIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for PidIndex {
    /// Prints the number of pids only: the table has four million entries.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PidIndex")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// A [`PidIndex`] cannot hold this pair of pid and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the pid is not below {PID_LIMIT}, which no Linux kernel hands out, or the slot is {}",
            u32::MAX
        )
    }
}

impl Error for OutOfRange {}

/// A key of a [`BoundedIndex`].
pub trait IndexKey: Copy + Eq {
    /// A well-mixed hash. Equal keys and seeds give equal hashes, on every machine and in every run; an
    /// attacker without the seed must not be able to choose keys whose hashes collide.
    fn hash(&self, seed: u64) -> u64;
}

/// Key to `u32`: open addressing with linear probing, in at least twice as many cells as `capacity`.
///
/// Among keys that compete for a cell the one farther from its home wins ("robin hood"), so entries
/// stand in the order of their homes, a search ends at the first entry closer to its home than the
/// key sought would be, and the longest probe sequence stays near the average one. Removal shifts
/// the entries behind the gap back by one cell.
///
/// *Refusals.* While fewer than `capacity` keys are live an insertion always succeeds: half of the
/// cells are vacant, and the probe sequence may be as long as it takes. Beyond the capacity it is
/// refused if it would push any entry farther than [`MAX_PROBE`] cells, or if no cell is vacant.
///
/// *Bounds.* At load one half the chance that a given key needs `n` probes falls by a factor of about 3.5 for
/// each further cell, so a full table of a million keys exceeds `MAX_PROBE` with a probability below 10^-25,
/// over seeds its keys were chosen without. An attacker with the seed can force up to one probe per live key.
#[derive(Clone, Debug)]
pub struct BoundedIndex<K> {
    cells: Box<[Option<Entry<K>>]>,
    len: usize,
    capacity: usize,
    seed: u64,
    probe_exhausted: u64,
}

/// An occupied cell.
#[derive(Clone, Copy, Debug)]
struct Entry<K> {
    key: K,
    value: u32,
    /// Cells that a search for the key examines, including this one: 1 at home. That it is never 0 lets a
    /// vacant cell cost no memory of its own, and leaves every key and every value legal.
    probes: NonZeroU32,
}

impl<K: IndexKey> BoundedIndex<K> {
    /// An empty index for `capacity` live keys. `seed` should be unpredictable where unknown senders choose
    /// keys, and fixed where a run must be repeatable.
    pub fn with_capacity(capacity: usize, seed: u64) -> Self {
        let cells = capacity.saturating_mul(2).max(2).next_power_of_two();
        Self {
            cells: vec![None; cells].into_boxed_slice(),
            len: 0,
            capacity,
            seed,
            probe_exhausted: 0,
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<u32> {
        let cell = self.find(key)?;
        self.cells[cell].map(|entry| entry.value)
    }

    /// Maps `key` to `value` and returns the value it was mapped to before.
    ///
    /// # Errors
    ///
    /// [`ProbeExhausted`] if the key is new, at least `capacity` keys are live already, and there is
    /// no place within [`MAX_PROBE`] cells. It is counted, and nothing else has changed.
    pub fn insert(&mut self, key: K, value: u32) -> Result<Option<u32>, ProbeExhausted> {
        if let Some(entry) = self.find(&key).and_then(|cell| self.cells[cell].as_mut()) {
            return Ok(Some(core::mem::replace(&mut entry.value, value)));
        }
        let mut cell = self.home(&key);
        if self.len >= self.capacity && !self.has_room_at(cell) {
            self.probe_exhausted = self.probe_exhausted.saturating_add(1);
            return Err(ProbeExhausted);
        }
        self.len += 1;
        let mut carried = Entry {
            key,
            value,
            probes: NonZeroU32::MIN,
        };
        while let Some(resident) = &mut self.cells[cell] {
            if resident.probes < carried.probes {
                core::mem::swap(resident, &mut carried);
            }
            carried.probes = carried.probes.saturating_add(1);
            cell = self.after(cell);
        }
        self.cells[cell] = Some(carried);
        Ok(None)
    }

    /// Removes `key` and returns the value it was mapped to.
    pub fn remove(&mut self, key: &K) -> Option<u32> {
        let mut gap = self.find(key)?;
        let removed = self.cells[gap].take()?;
        self.len -= 1;
        // Entries behind the gap move back until one stands at its home or the run ends.
        loop {
            let next = self.after(gap);
            let Some(entry) = self.cells[next] else { break };
            let Some(probes) = NonZeroU32::new(entry.probes.get() - 1) else {
                break;
            };
            self.cells[gap] = Some(Entry { probes, ..entry });
            self.cells[next] = None;
            gap = next;
        }
        Some(removed.value)
    }

    /// Keys live.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no key is live.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Live keys up to which an insertion is never refused.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Every live key with its value, once. The order depends on nothing but the seed and the calls
    /// made so far.
    pub fn iter(&self) -> impl Iterator<Item = (K, u32)> + '_ {
        self.cells
            .iter()
            .flatten()
            .map(|entry| (entry.key, entry.value))
    }

    /// Removes every key. The count of refusals stays.
    pub fn clear(&mut self) {
        self.cells.fill(None);
        self.len = 0;
    }

    /// Insertions refused since the last call.
    pub fn take_probe_exhausted(&mut self) -> u64 {
        core::mem::take(&mut self.probe_exhausted)
    }

    /// The cell that holds `key`.
    fn find(&self, key: &K) -> Option<usize> {
        let mut cell = self.home(key);
        for probes in 1..=self.cells.len() {
            let entry = self.cells[cell].as_ref()?;
            if (entry.probes.get() as usize) < probes {
                return None;
            }
            if entry.key == *key {
                return Some(cell);
            }
            cell = self.after(cell);
        }
        None
    }

    /// Whether one more key whose home is `cell` fits without any entry leaving [`MAX_PROBE`]: the
    /// loop of `insert`, without the writing.
    fn has_room_at(&self, mut cell: usize) -> bool {
        let mut probes = 1;
        for _ in 0..self.cells.len() {
            let Some(resident) = &self.cells[cell] else {
                return probes <= MAX_PROBE;
            };
            probes = probes.min(resident.probes.get()) + 1;
            if probes > MAX_PROBE {
                return false;
            }
            cell = self.after(cell);
        }
        false
    }

    /// The cell a search for `key` starts at.
    fn home(&self, key: &K) -> usize {
        // The number of cells is a power of two that fits `usize`, so the cut loses nothing.
        key.hash(self.seed) as usize & (self.cells.len() - 1)
    }

    fn after(&self, cell: usize) -> usize {
        (cell + 1) & (self.cells.len() - 1)
    }
}

/// A [`BoundedIndex`] that already holds its capacity has no place for one more key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeExhausted;

impl fmt::Display for ProbeExhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the index is over capacity and has no place within {MAX_PROBE} probes; remove a key first"
        )
    }
}

impl Error for ProbeExhausted {}

/// Fractional digits of pi: 64-bit words full of set bits, so that small seeds and small keys make large
/// factors. They are public; the protection is the seed.
const PI: [u64; 2] = [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345];

/// Mixes one word under a seed. All factors depend on the seed, because with a public factor the
/// difference between two hashes would depend on little but the difference between the words.
fn mix(word: u64, seed: u64) -> u64 {
    let once = fold(word ^ seed ^ PI[0], (seed.rotate_left(32) ^ PI[1]) | 1);
    fold(once ^ PI[0], (seed ^ PI[1]) | 1)
}

/// The two halves of the 128-bit product, folded: each bit of the result depends on all of the input.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl IndexKey for u64 {
    fn hash(&self, seed: u64) -> u64 {
        mix(*self, seed)
    }
}

impl IndexKey for u32 {
    fn hash(&self, seed: u64) -> u64 {
        u64::from(*self).hash(seed)
    }
}

/// A network agent: source and claimed pid. The hash of the one part is the seed of the other.
impl IndexKey for (u64, u32) {
    fn hash(&self, seed: u64) -> u64 {
        self.1.hash(self.0.hash(seed))
    }
}

impl IndexKey for Ipv4Addr {
    fn hash(&self, seed: u64) -> u64 {
        self.to_bits().hash(seed)
    }
}

impl IndexKey for Ipv6Addr {
    fn hash(&self, seed: u64) -> u64 {
        let bits = self.to_bits();
        (bits as u64).hash(((bits >> 64) as u64).hash(seed))
    }
}

/// Address, scope and port. The flow label is left out: the kernel reports none unless asked to.
impl IndexKey for SocketAddr {
    fn hash(&self, seed: u64) -> u64 {
        let (ip, scope) = match self {
            Self::V4(address) => (address.ip().hash(seed), 0),
            Self::V6(address) => (address.ip().hash(seed), address.scope_id()),
        };
        (u64::from(scope) << 16 | u64::from(self.port())).hash(ip)
    }
}

#[cfg(test)]
mod tests;
