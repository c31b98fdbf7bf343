//! A hostile module: tries to read a key file, named when it was compiled or else by its first line of input, and says
//! what it found.

fn main() {
    let mut path = String::new();
    match option_env!("KEY_FILE") {
        Some(known) => path.push_str(known),
        None => _ = std::io::stdin().read_line(&mut path).unwrap(),
    }
    match std::fs::read(path.trim()) {
        Ok(bytes) => println!("read {} bytes", bytes.len()),
        Err(error) => println!("refused: {error}"),
    }
}
