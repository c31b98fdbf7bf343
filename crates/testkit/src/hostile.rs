//! The hostile modules in `hostile/`, compiled as somebody else's module would be: static, with the standard library only.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles a hostile module into a directory and returns its path. `key_file` is the file that `read_key` goes for.
///
/// # Panics
/// When it does not compile.
#[must_use]
pub fn compile(name: &str, into: &Path, key_file: Option<&Path>) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("hostile").join(format!("{name}.rs"));
    let built = into.join(format!("hostile-{name}"));
    let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    compiler
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
        .args(["--target", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .arg("-o")
        .args([&built, &source]);
    if let Some(key_file) = key_file {
        compiler.env("KEY_FILE", key_file);
    }
    let status = compiler.status().unwrap_or_else(|error| panic!("no compiler: {error}"));
    assert!(status.success(), "{name} doesn't compile");
    built
}
