//! The kernel's figures about a process and about this machine.

use std::fs::{read_dir, read_to_string};
use std::path::PathBuf;
use std::thread;

use rustix::time::{ClockId, clock_gettime};

use crate::Result;

/// `CLOCK_MONOTONIC`, which is one clock for all processes.
pub(crate) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// CPU time of all threads of a process, nanoseconds: time on a core as the scheduler counts it, user and kernel
/// together. It also counts short wake-ups, which the usual ticks miss.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    sum_over_threads(pid, "schedstat", |text| {
        text.split_ascii_whitespace().next()?.parse().ok()
    })
}

/// The same of the first thread alone: the observer's control thread.
pub(crate) fn control_thread_cpu_ns(pid: u32) -> Result<u64> {
    let text = read_to_string(format!("/proc/{pid}/task/{pid}/schedstat"))?;
    let ns = text.split_ascii_whitespace().next();
    Ok(ns.ok_or("no time in schedstat")?.parse()?)
}

/// How often the threads of a process went to sleep voluntarily, and so were woken.
pub(crate) fn sleeps(pid: u32) -> Result<u64> {
    sum_over_threads(pid, "status", |text| {
        field(text, "voluntary_ctxt_switches")?.parse().ok()
    })
}

/// Resident memory of a process, KiB.
pub(crate) fn resident_kib(pid: u32) -> Result<u64> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    let resident = field(&status, "VmRSS").and_then(|size| size.strip_suffix(" kB")?.parse().ok());
    Ok(resident.ok_or("no VmRSS in /proc")?)
}

/// Processor, cores, kernel, what else limits a beat, and how busy the machine is.
pub(crate) fn machine() -> String {
    let read = |path| read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpus = read("/proc/cpuinfo");
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{}, {cores} cores, Linux {}, max_dgram_qlen {}, load {}",
        field(&cpus, "model name").unwrap_or("unknown processor"),
        read("/proc/sys/kernel/osrelease"),
        read("/proc/sys/net/unix/max_dgram_qlen"),
        read("/proc/loadavg").split(' ').next().unwrap_or("unknown"),
    )
}

fn sum_over_threads(pid: u32, file: &str, read: impl Fn(&str) -> Option<u64>) -> Result<u64> {
    let mut sum = 0;
    for thread in read_dir(PathBuf::from(format!("/proc/{pid}/task")))? {
        let path = thread?.path().join(file);
        let text = read_to_string(&path)?;
        sum += read(&text).ok_or_else(|| format!("{} makes no sense", path.display()))?;
    }
    Ok(sum)
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}
