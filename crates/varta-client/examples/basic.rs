//! Beats twice a second and prints every change of the outcome.
//!
//! `cargo run -p varta-client --example basic -- [SOCKET]`
//!
//! It can start before the observer and survives a restart of the observer.

use std::thread::sleep;
use std::time::Duration;

use varta_client::{Status, Varta};

const DEFAULT_SOCKET: &str = "/run/varta/varta.sock";

fn main() {
    let socket = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| DEFAULT_SOCKET.into());
    let mut agent = Varta::open(socket);
    let mut last = None;
    loop {
        let outcome = agent.beat(Status::Ok, 0);
        if last.replace(outcome) != Some(outcome) {
            println!("{outcome}");
        }
        sleep(Duration::from_millis(500));
    }
}
