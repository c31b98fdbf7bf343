//! Hostile modules in real cells: each is stopped, alone, and the report says what it tried.
//!
//! The programs are compiled here, as somebody else's module would be: static, with the standard library
//! only. Run the whole package (`cargo test -p sandbox`), so that the launcher in `examples/` is built too.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers are test code too"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use sandbox::{Cell, CellError, CellLimits, Image, Outcome, Report, Violation};

const LIMITS: CellLimits =
    CellLimits { memory_bytes: 256 << 20, cpu_seconds: 10, wall: Duration::from_secs(20) };

/// Compiles a program once and reads it.
fn program(name: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _held = ONE_AT_A_TIME.lock().unwrap();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = match name {
        "echo" => here.join("tests/programs/echo.rs"),
        _ => here.join(format!("../testkit/hostile/{name}.rs")),
    };
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("module-{name}"));
    let changed = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    if changed(&built) <= changed(&source) {
        let fresh = built.with_extension("fresh");
        let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        let done = Command::new(compiler)
            .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
            .args(["--target", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
            .arg("-o")
            .args([&fresh, &source])
            .status();
        assert!(done.unwrap().success(), "{name} doesn't compile");
        fs::rename(fresh, &built).unwrap();
    }
    built
}

fn image(name: &str) -> Image {
    Image::from_bytes(&fs::read(program(name)).unwrap()).unwrap()
}

fn launcher() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let launcher = tests.ancestors().nth(2).unwrap().join("examples/launcher");
    assert!(launcher.exists(), "the launcher isn't built: run `cargo test -p sandbox` as a whole");
    launcher
}

fn start(name: &str, limits: CellLimits) -> Cell {
    Cell::start(&image(name), &launcher(), &limits).unwrap()
}

/// Runs a module to its end with one line of input. What it said, and how it ended.
fn run(name: &str, line: &str, limits: CellLimits) -> (String, Report) {
    let mut cell = start(name, limits);
    let _ = writeln!(cell.stdin.take().unwrap(), "{line}");
    let mut said = String::new();
    cell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    (said, cell.wait_for_report())
}

fn violation(name: &str, line: &str) -> Violation {
    let (said, report) = run(name, line, LIMITS);
    assert_eq!(said, "", "{name} got further than it may");
    match report.outcome {
        Outcome::Violation(violation) => violation,
        other => panic!("{name} {other}, and said {}", report.stderr),
    }
}

fn assert_echoes(cell: &mut Cell, line: &str) {
    writeln!(cell.stdin.as_mut().unwrap(), "{line}").unwrap();
    let mut said = String::new();
    BufReader::new(cell.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said.trim_end(), line);
}

#[test]
fn a_harmless_module_runs_and_ends_by_itself() {
    let (said, report) = run("echo", "good morning", LIMITS);
    assert_eq!(said, "good morning\n");
    assert_eq!((report.outcome, report.stderr.as_str()), (Outcome::Exited(0), ""));
    assert!(report.walls.contains(&"seccomp".to_owned()), "{:?}", report.walls);
    println!("walls: {:?}; running after {:?}", report.walls, report.started_after);
}

#[test]
fn a_socket_is_a_violation_that_names_its_family() {
    assert_eq!(violation("socket", "").to_string(), "socket AF_INET SOCK_DGRAM");
}

#[test]
fn without_the_seccomp_wall_the_same_socket_is_made() {
    let mut cell = sandbox::danger::start_without_seccomp(&image("socket"), &launcher(), &LIMITS).unwrap();
    let mut said = String::new();
    cell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("got out"), "{said}");
    assert_eq!(cell.wait(), Outcome::Exited(0));
}

#[test]
fn without_the_seccomp_wall_the_other_walls_still_keep_files_away() {
    let image = image("read_key");
    let mut cell = sandbox::danger::start_without_seccomp(&image, &launcher(), &LIMITS).unwrap();
    writeln!(cell.stdin.as_mut().unwrap(), "/etc/passwd").unwrap();
    let mut said = String::new();
    cell.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let report = cell.wait_for_report();
    println!("walls: {:?}", report.walls);
    if report.walls.iter().any(|wall| wall == "root" || wall == "landlock") {
        assert!(said.starts_with("refused"), "{said}");
    }
}

#[test]
fn a_launcher_that_leaves_the_seccomp_wall_out_is_caught_by_the_tracer() {
    // A launcher that was asked for a walled cell and builds an open one.
    let directory = tempfile::tempdir().unwrap();
    let crooked = directory.path().join("crooked");
    let script = format!("#!/bin/sh\nshift\nexec {} cell-without-seccomp \"$@\"\n", launcher().display());
    fs::write(&crooked, script).unwrap();
    fs::set_permissions(&crooked, fs::Permissions::from_mode(0o755)).unwrap();
    let refused = Cell::start(&image("echo"), &crooked, &LIMITS);
    assert!(matches!(refused, Err(CellError::Refused { .. })), "{refused:?}");
}

#[test]
fn reading_a_key_file_is_a_violation_that_names_the_path() {
    assert_eq!(violation("read_key", "/etc/passwd").to_string(), "openat /etc/passwd");
    assert_eq!(violation("read_key", "/proc/1/environ").to_string(), "openat /proc/1/environ");
}

#[test]
fn a_path_is_reported_bounded_and_without_control_characters() {
    let tried = violation("read_key", &format!("/etc/\u{1b}[31m{}", "x".repeat(2000)));
    assert!(tried.detail.starts_with("/etc/?[31mx") && tried.detail.len() <= 256, "{tried}");
}

#[test]
fn writing_a_file_is_a_violation_and_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("left");
    let tried = violation("write_file", path.to_str().unwrap());
    assert_eq!(tried.to_string(), format!("openat {} for writing", path.display()));
    assert!(!path.exists());
}

#[test]
fn becoming_another_program_is_a_violation() {
    assert_eq!(violation("exec", "").to_string(), "execve /bin/sh");
}

#[test]
fn a_fork_bomb_ends_at_its_first_fork() {
    let tried = violation("fork_bomb", "");
    println!("fork bomb: {tried}");
    assert!(
        ["clone", "clone3", "vfork", "fork", "pipe2", "socketpair"].contains(&tried.syscall.as_str()),
        "{tried}"
    );
}

#[test]
fn a_thread_bomb_ends_at_its_first_thread() {
    assert_eq!(violation("threads", "").detail, "a thread");
}

#[test]
fn endless_memory_ends_at_the_limit() {
    let (_, report) = run("memory", "", LIMITS);
    assert_eq!(report.outcome, Outcome::MemoryLimit, "{}", report.stderr);
}

#[test]
fn an_endless_loop_ends_at_the_processor_limit() {
    let (_, report) = run("spin", "", CellLimits { cpu_seconds: 1, ..LIMITS });
    assert_eq!(report.outcome, Outcome::CpuLimit);
}

#[test]
fn a_module_that_waits_for_ever_ends_at_the_time_limit() {
    let begun = Instant::now();
    let mut cell = start("echo", CellLimits { wall: Duration::from_millis(300), ..LIMITS });
    let open = cell.stdin.take();
    assert_eq!(cell.wait(), Outcome::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop(open);
}

#[test]
fn endless_talk_ends_when_nobody_listens_any_more() {
    let mut cell = start("chatter", LIMITS);
    let mut stdout = cell.stdout.take().unwrap();
    let mut heard = vec![0; 1 << 20];
    stdout.read_exact(&mut heard).unwrap();
    drop(stdout);
    let report = cell.wait_for_report();
    assert_eq!(report.outcome, Outcome::Exited(3));
    assert!(report.stderr.len() <= 16 << 10);
}

#[test]
fn a_cell_can_be_stopped_from_another_thread() {
    let cell = start("spin", LIMITS);
    let stopper = cell.stopper();
    let stopping = std::thread::spawn(move || stopper.stop());
    assert_eq!(cell.wait(), Outcome::Killed { signal: 9 });
    stopping.join().unwrap();
}

#[test]
fn a_dropped_cell_is_killed() {
    let mut cell = start("spin", LIMITS);
    let mut stdout = cell.stdout.take().unwrap();
    drop(cell);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn hostile_neighbours_do_not_disturb_a_harmless_module() {
    let mut harmless = start("echo", LIMITS);
    assert_echoes(&mut harmless, "before");
    for name in ["fork_bomb", "threads", "socket", "exec"] {
        violation(name, "");
        assert_echoes(&mut harmless, name);
    }
    assert_eq!(harmless.wait(), Outcome::Exited(0));
}

#[test]
fn an_image_with_one_flipped_byte_is_refused_by_its_digest() {
    let mut bytes = fs::read(program("echo")).unwrap();
    let good = Image::from_bytes(&bytes).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let flipped = Image::from_bytes(&bytes).unwrap();
    assert_ne!(good.digest(), flipped.digest());

    // A launcher that is handed the flipped image with the good one's digest.
    let directory = tempfile::tempdir().unwrap();
    let crooked = directory.path().join("crooked");
    let script = format!(
        "#!/bin/sh\nexec {} $1 $2 $3 $4 {} $6 $7 $8 $9 ${{10}} ${{11}}\n",
        launcher().display(),
        good.digest()
    );
    fs::write(&crooked, script).unwrap();
    fs::set_permissions(&crooked, fs::Permissions::from_mode(0o755)).unwrap();
    match Cell::start(&flipped, &crooked, &LIMITS) {
        Err(CellError::Refused { reason }) => assert!(reason.contains("digest"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(Cell::start(&good, &crooked, &LIMITS).is_ok());
}

#[test]
fn a_launcher_by_itself_runs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("plain");
    fs::copy(program("echo"), &path).unwrap();
    let digest = image("echo").digest().to_string();
    let done = Command::new(launcher())
        .args(["cell", "--image", path.to_str().unwrap(), "--digest", &digest])
        .args(["--memory-bytes", "1000000", "--cpu-seconds", "1", "--agent", "1"])
        .output()
        .unwrap();
    assert_eq!(done.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&done.stderr).contains("not sealed"));
}

#[test]
fn what_is_no_program_is_refused() {
    let image = Image::from_bytes(b"neither a program nor a script").unwrap();
    let refused = Cell::start(&image, &launcher(), &LIMITS);
    assert!(matches!(refused, Err(CellError::Refused { .. })), "{refused:?}");
}

#[test]
fn a_launcher_that_does_not_exist_is_a_clear_error() {
    let missing = Cell::start(&image("echo"), Path::new("/nonexistent/launcher"), &LIMITS);
    assert!(matches!(missing, Err(CellError::Launcher(_))), "{missing:?}");
}

#[test]
fn an_unprivileged_agent_has_cells_too() {
    // Only the superuser can become somebody else; anybody else has shown the same in every test above.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let put = |from: &Path, name: &str| {
        let to = directory.path().join(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    let agent = put(&launcher(), "launcher");
    for (name, line, expected) in [
        ("echo", "x", "outcome=exited with 0"),
        ("socket", "x", "outcome=tried socket AF_INET SOCK_DGRAM"),
        ("read_key", "/etc/passwd", "outcome=tried openat /etc/passwd"),
    ] {
        let module = put(&program(name), name);
        let done = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .arg(&agent)
            .arg("agent")
            .arg(&module)
            .args(["1", line])
            .output();
        let Ok(done) = done else {
            println!("skipped: there is no setpriv here");
            return;
        };
        let (said, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        if error.contains("setpriv") && error.contains("not permitted") {
            println!("skipped: this test isn't run by the superuser");
            return;
        }
        println!("{name}: {said}");
        assert!(said.contains(expected), "{name}: {said} {error}");
    }
}
