//! A hostile module: tries to leave something behind, at the path named by its first line of input.

fn main() {
    let mut path = String::new();
    std::io::stdin().read_line(&mut path).unwrap();
    match std::fs::write(path.trim(), b"left behind") {
        Ok(()) => println!("written"),
        Err(error) => println!("refused: {error}"),
    }
}
