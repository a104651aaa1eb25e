//! Summarises many samples in few numbers.

/// Half, 99 % and all of the samples are at most this; nearest rank, so each is a real sample.
pub(crate) fn p50_p99_max(samples: &[f64]) -> Option<[f64; 3]> {
    let sorted = sorted(samples);
    let at = |percent: usize| Some(*sorted.get((sorted.len() * percent).div_ceil(100) - 1)?);
    (!sorted.is_empty()).then(|| Some([at(50)?, at(99)?, at(100)?]))?
}

/// Median, least and greatest.
pub(crate) fn median_min_max(samples: &[f64]) -> Option<[f64; 3]> {
    let sorted = sorted(samples);
    Some([
        *sorted.get(sorted.len().checked_sub(1)? / 2)?,
        *sorted.first()?,
        *sorted.last()?,
    ])
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_at_the_nearest_rank() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(p50_p99_max(&samples), Some([100.0, 198.0, 200.0]));
        assert_eq!(p50_p99_max(&[7.0]), Some([7.0, 7.0, 7.0]));
        assert_eq!(p50_p99_max(&[]), None);
    }

    #[test]
    fn the_median_comes_with_its_range() {
        assert_eq!(median_min_max(&[3.0, 1.0, 2.0]), Some([2.0, 1.0, 3.0]));
        assert_eq!(median_min_max(&[]), None);
    }
}
