//! The kernel's pressure-stall figures: the share of the last seconds in which all tasks were stalled on memory or
//! I/O. Kernels without them (before 4.20, or `psi=0`) report nothing, which holds no fire.
//!
//! CPU pressure is left out on purpose: on any busy host some task always waits for a processor.

use varta_core::hold::Pressure;

/// The kernel's figures now.
pub(super) fn read() -> Pressure {
    let percent = |what: &str| {
        let text = std::fs::read_to_string(format!("/proc/pressure/{what}")).ok()?;
        full_avg10(&text)
    };
    Pressure {
        memory_percent: percent("memory"),
        io_percent: percent("io"),
    }
}

/// From a line such as `full avg10=0.12 avg60=0.03 avg300=0.00 total=123`.
fn full_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("full "))?;
    let mut figures = line.split_ascii_whitespace();
    let avg10 = figures.find_map(|figure| figure.strip_prefix("avg10="));
    avg10?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_line_counts_and_what_cannot_be_read_tells_nothing() {
        let text = "some avg10=9.00 avg60=1.00 avg300=0.00 total=1\n\
                    full avg10=0.12 avg60=0.03 avg300=0.00 total=123\n";
        assert_eq!(full_avg10(text), Some(0.12));
        for text in ["", "some avg10=9.00", "full avg60=1.0", "full avg10=x"] {
            assert_eq!(full_avg10(text), None, "{text}");
        }
    }
}
