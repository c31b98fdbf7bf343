//! A hostile module: tries to reach the network, and says whether it could.

use std::net::UdpSocket;

fn main() {
    match UdpSocket::bind("0.0.0.0:0") {
        Ok(socket) => println!("got out: {socket:?}"),
        Err(error) => println!("refused: {error}"),
    }
}
