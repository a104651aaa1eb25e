//! The shortest threshold of the current agents, to within an eighth.

/// Bits below the highest one that distinguish thresholds: three, so to within an eighth.
const FINE_BITS: u32 = 3;

/// Number of distinct sizes.
const SIZES: usize = 64 << FINE_BITS;

/// How many agents have a threshold of each size.
#[derive(Debug)]
pub(super) struct Thresholds {
    agents: Box<[u32; SIZES]>,
    /// Bit `i` is set while there is an agent of size `i`.
    present: [u64; SIZES / 64],
}

impl Thresholds {
    pub(super) fn new() -> Self {
        Self {
            agents: Box::new([0; SIZES]),
            present: [0; SIZES / 64],
        }
    }

    pub(super) fn add(&mut self, threshold_ns: u64) {
        let size = size_of(threshold_ns);
        self.agents[size] += 1;
        self.present[size / 64] |= 1 << (size % 64);
    }

    pub(super) fn remove(&mut self, threshold_ns: u64) {
        let size = size_of(threshold_ns);
        self.agents[size] = self.agents[size].saturating_sub(1);
        if self.agents[size] == 0 {
            self.present[size / 64] &= !(1 << (size % 64));
        }
    }

    /// No threshold is shorter, and the shortest is longer by less than an eighth. `None` while there is none.
    pub(super) fn shortest_ns(&self) -> Option<u64> {
        let word = self.present.iter().position(|word| *word != 0)?;
        let size = word * 64 + self.present[word].trailing_zeros() as usize;
        Some(smallest_of(size))
    }
}

/// The position of the highest bit, and the bits below it.
fn size_of(threshold_ns: u64) -> usize {
    // Shifted up, so that the shortest thresholds have bits below the highest one, too.
    let scaled = u128::from(threshold_ns.max(1)) << FINE_BITS;
    let magnitude = scaled.ilog2() - FINE_BITS;
    let fine = (scaled >> magnitude) as usize & ((1 << FINE_BITS) - 1);
    (magnitude as usize) << FINE_BITS | fine
}

fn smallest_of(size: usize) -> u64 {
    let (magnitude, fine) = (size >> FINE_BITS, size & ((1 << FINE_BITS) - 1));
    let scaled = ((1 << FINE_BITS | fine) as u128) << magnitude;
    (scaled >> FINE_BITS) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_threshold_follows_the_agents_that_are_there() {
        let mut thresholds = Thresholds::new();
        assert_eq!(thresholds.shortest_ns(), None);
        for threshold_ns in [3_000, 160, 165] {
            thresholds.add(threshold_ns);
        }
        assert_eq!(thresholds.shortest_ns(), Some(160));
        thresholds.remove(160);
        assert_eq!(thresholds.shortest_ns(), Some(160));
        thresholds.remove(165);
        assert_eq!(thresholds.shortest_ns(), Some(2_816));
        thresholds.remove(3_000);
        assert_eq!(thresholds.shortest_ns(), None);
    }

    #[test]
    fn thresholds_of_any_length_are_known_to_within_an_eighth() {
        for threshold_ns in (0..64)
            .flat_map(|bit| [1 << bit, (1_u64 << bit).wrapping_mul(27) / 16])
            .chain([0, u64::MAX])
        {
            let mut thresholds = Thresholds::new();
            thresholds.add(threshold_ns);
            let shortest_ns = thresholds.shortest_ns().unwrap();
            assert!(shortest_ns <= threshold_ns.max(1), "{threshold_ns}");
            assert!(
                threshold_ns - threshold_ns.min(shortest_ns) <= threshold_ns / 8,
                "{threshold_ns}"
            );
            thresholds.remove(threshold_ns);
            assert_eq!(thresholds.shortest_ns(), None);
        }
    }
}
