//! A hostile module: tries to read a key file, named by its first line of input, and says what it found.

fn main() {
    let mut path = String::new();
    std::io::stdin().read_line(&mut path).unwrap();
    match std::fs::read(path.trim()) {
        Ok(bytes) => println!("read {} bytes", bytes.len()),
        Err(error) => println!("refused: {error}"),
    }
}
