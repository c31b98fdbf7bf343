//! A hostile module: talks without end, on both of its outputs.

use std::io::Write;

fn main() {
    let line = [b'x'; 1023];
    loop {
        let _ = std::io::stderr().write_all(&line);
        if std::io::stdout().write_all(&line).is_err() {
            std::process::exit(3);
        }
    }
}
