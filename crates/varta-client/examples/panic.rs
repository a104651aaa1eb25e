//! Beats three times, then panics: the panic hook reports it at once, before the silence would.
//!
//! `cargo run -p varta-client --features panic-handler --example panic -- [SOCKET]`

use std::thread::sleep;
use std::time::Duration;

use varta_client::{Status, Varta, install_panic_handler_lazy};

const DEFAULT_SOCKET: &str = "/run/varta/varta.sock";

fn main() {
    let socket = std::env::args_os()
        .nth(1)
        .unwrap_or_else(|| DEFAULT_SOCKET.into());
    install_panic_handler_lazy(&socket);
    let mut agent = Varta::open(&socket);
    for _ in 0..3 {
        println!("{}", agent.beat(Status::Ok, 0));
        sleep(Duration::from_millis(500));
    }
    panic!("the terminal frame goes out before this text is printed");
}
