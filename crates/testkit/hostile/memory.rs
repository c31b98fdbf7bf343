//! A hostile module: takes memory without end, and touches it so that it counts.

fn main() {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; 16 << 20]);
        std::hint::black_box(&taken);
    }
}
