//! A hostile module: starts threads without end.

fn main() {
    loop {
        if std::thread::Builder::new().spawn(|| loop {}).is_err() {
            println!("refused");
        }
    }
}
