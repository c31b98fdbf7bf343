//! Builds the modules as separate, static programs, so that `trader` can carry them along.
//!
//! A module runs where there are no files, so it cannot load a shared library: it is linked statically, which needs a build
//! of its own. The digests of what comes out here are what the release keys sign.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

/// Programs of the crate `module`.
const MODULES: [&str; 4] = ["collector", "analyst", "strategist", "reporter"];
/// What they are made of.
const SOURCES: [&str; 4] = ["module", "analyst", "market", "keys"];

fn main() {
    let variable = |name: &str| env::var_os(name).unwrap_or_default();
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../..");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", root.join("crates").join(source).display());
    }
    println!("cargo::rerun-if-changed={}", root.join("Cargo.lock").display());
    println!("cargo::rerun-if-changed=build.rs");

    let target = variable("TARGET");
    let directory = PathBuf::from(variable("OUT_DIR")).join("modules");
    let programs = directory.join(&target).join("release");
    build(&root, &directory, &target);
    for module in MODULES {
        if !programs.join(module).is_file() {
            fail(&format!("the module {module} was not built"));
        }
    }
    println!("cargo::rustc-env=TRADER_MODULES={}", programs.display());
}

fn build(root: &Path, directory: &Path, target: &OsString) {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--release", "--locked", "--quiet", "--package", "module", "--bins", "--target"])
        .arg(target)
        .arg("--target-dir")
        .arg(directory)
        // One set of flags, whatever the build around this one uses: the digests should not depend on it.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_PANIC", "unwind");
    for name in
        ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"]
    {
        cargo.env_remove(name);
    }
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!(
            "building the modules ended with {status}; they are linked statically, which needs the C library's static \
             files (Debian: libc6-dev, Fedora: glibc-static)"
        )),
        Err(error) => fail(&format!("cargo could not be started: {error}")),
    }
}

fn fail(problem: &str) -> ! {
    println!("cargo::error={problem}");
    exit(1)
}
