//! The resources that the observer uses, under the names that every Prometheus client library uses.

use std::fs;

use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::page::Number;

/// The values of this process, now. A value that the kernel does not report is NaN.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) cpu: Number,
    pub(super) resident_bytes: Number,
    pub(super) open_descriptors: Number,
    pub(super) descriptors_max: Number,
}

impl Process {
    pub(super) fn read() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let or_nan = |number: Option<u64>| number.map_or(Number::Real(f64::NAN), Number::Whole);
        let descriptors_max = getrlimit(Resource::Nofile).current;
        Self {
            cpu: Number::Real(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9),
            resident_bytes: or_nan(resident_bytes()),
            open_descriptors: or_nan(open_descriptors()),
            descriptors_max: descriptors_max.map_or(Number::Real(f64::INFINITY), Number::Whole),
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(page_size() as u64))
}

/// Since Linux 6.2 the size of the directory is the number of descriptors; before, it is 0 and they are counted,
/// which opens one more.
fn open_descriptors() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    match fs::metadata(DIRECTORY).ok()?.len() {
        0 => Some((fs::read_dir(DIRECTORY).ok()?.count() as u64).saturating_sub(1)),
        number => Some(number),
    }
}
