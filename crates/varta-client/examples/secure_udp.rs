//! Beats twice a second to an observer on another machine, encrypted.
//!
//! `cargo run -p varta-client --features secure-udp --example secure_udp -- ADDRESS:PORT KEY_FILE`
//!
//! The observer uses the same key file: 64 hexadecimal digits, accessible to its owner only. `varta key new`
//! makes one.

use std::error::Error;
use std::thread::sleep;
use std::time::Duration;

use varta_client::{Status, Varta, key_from_file};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(key_file)) = (arguments.next(), arguments.next()) else {
        return Err("say ADDRESS:PORT of the observer and the key file".into());
    };
    let key = key_from_file(&key_file)?;
    println!("key {} from {key_file}", key.fingerprint());
    let mut agent = Varta::connect_secure_udp(address.parse()?, key)?;
    let mut last = None;
    loop {
        let outcome = agent.beat(Status::Ok, 0);
        if last.replace(outcome) != Some(outcome) {
            println!("{outcome}");
        }
        sleep(Duration::from_millis(500));
    }
}
