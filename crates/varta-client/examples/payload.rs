//! A worker that sends its queue depth and its last error with each beat.
//!
//! `cargo run -p varta-client --example payload -- [SOCKET]`
//!
//! The protocol carries 32 bits and does not interpret them. A common layout: queue depth in the high 16
//! bits, last error in the low 16.

use std::collections::VecDeque;
use std::thread::sleep;
use std::time::Duration;

use varta_client::{Status, Varta};

const DEFAULT_SOCKET: &str = "/run/varta/varta.sock";

/// Larger depths are sent as 65 535.
fn payload(queue_depth: usize, last_error: u16) -> u32 {
    let queue_depth = u16::try_from(queue_depth).unwrap_or(u16::MAX);
    u32::from(queue_depth) << 16 | u32::from(last_error)
}

/// A job that fails for every tenth input.
fn work(job: u32) -> Result<(), u16> {
    if job.is_multiple_of(10) {
        Err(503)
    } else {
        Ok(())
    }
}

fn main() {
    let socket = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| DEFAULT_SOCKET.into());
    let mut agent = Varta::open(socket);
    let mut queue: VecDeque<u32> = (1..=100).collect();
    let mut last_error = 0;
    while let Some(job) = queue.pop_front() {
        let status = match work(job) {
            Ok(()) => Status::Ok,
            Err(error) => {
                last_error = error;
                Status::Degraded
            }
        };
        let payload = payload(queue.len(), last_error);
        let outcome = agent.beat(status, payload);
        println!("job {job}: {status}, payload {payload:#010x}, {outcome}");
        sleep(Duration::from_millis(100));
    }
}
