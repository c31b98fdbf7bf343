//! A hostile module: tries to become a shell.

use std::os::unix::process::CommandExt;
use std::process::Command;

fn main() {
    let error = Command::new("/bin/sh").arg("-c").arg("id").exec();
    println!("refused: {error}");
}
