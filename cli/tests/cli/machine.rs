//! What a machine does to the command line: zombies, namespaces, limits, a silent resolver.

use super::*;
use testkit::clocks::{Clock, Clocks};

/// Fails the test, and does not pass it, where the machine permits no namespaces.
fn unshare(flags: &str) -> Vec<String> {
    for user in ["", "--user --map-root-user "] {
        let words = format!("unshare {user}{flags}");
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let mut tried = Command::new(&words[0]);
        tried.args(&words[1..]).arg("true").stderr(Stdio::null());
        let tried = tried.status().expect("unshare, of util-linux");
        if tried.success() {
            return words;
        }
    }
    panic!("`unshare {flags}` is not permitted here: run as root, or permit user namespaces");
}

/// The children of a process, by their numbers in our namespace.
fn children(pid: u32, state: &str) -> Vec<Pid> {
    let listed = Command::new("ps")
        .args(["-o", "pid=,stat=", "--ppid", &pid.to_string()])
        .output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let children = listed.lines().filter_map(|line| {
        let (pid, stat) = line.trim().split_once(' ')?;
        stat.trim()
            .starts_with(state)
            .then(|| Pid::from_raw(pid.parse().unwrap()))
    });
    children.collect()
}

/// `shim.c` as this define makes it.
fn shim(desk: &Desk, define: &str) -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/shim.c");
    let library = desk.path(&format!("{define}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", &format!("-D{define}"), source, "-o"])
        .arg(&library);
    assert!(cc.status().expect("a C compiler").success());
    format!("LD_PRELOAD={}", library.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_reaped_while_the_command_runs() {
    let server = Server::start();
    let desk = Desk::on(&server);
    // Each leaves its parent, and then ends.
    let orphans = "for i in 1 2 3; do (sh -c 'echo $$ >> orphans' &); done; echo > begun; ";
    let mut process = desk.run("a", "", &[orphans, FOR_EVER].concat());
    desk.until_left("begun").await;
    until(async || desk.left("orphans").lines().count() == 3).await;
    until(async || {
        let left = desk.left("orphans");
        let mut orphans = left.lines();
        orphans.all(|pid| kill(Pid::from_raw(pid.parse().unwrap()), None).is_err())
    })
    .await;
    process.signal(Signal::SIGTERM);
    assert_eq!(process.code().await, 143);
}

#[tokio::test(flavor = "multi_thread")]
async fn orphans_are_reaped_while_we_wait_in_the_queue() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let holder = server.builder("job").label("b").build().await.unwrap();
    // It outlives its command, until the next holder is at work.
    let orphan = "(sh -c 'echo $$ > orphan; while [ ! -e end ]; do sleep 0.02; done' &)";
    let waits = "while [ ! -s orphan ] || [ ! -e failing ]; do sleep 0.02; done; exit 7";
    let process = desk.run("a", "", &format!("{orphan}; {waits}"));
    desk.until_left("orphan").await;
    let mut events = holder.acquire();
    locked(&mut events).await;
    File::create(desk.path("failing")).unwrap();
    let _guard = acquired(&mut events).await;
    until(async || desk.left("a.err").contains("is with b")).await;
    let orphan = Pid::from_raw(desk.left("orphan").trim().parse().unwrap());
    assert!(kill(orphan, None).is_ok());
    File::create(desk.path("end")).unwrap();
    until(async || kill(orphan, None).is_err()).await;
    assert_eq!(children(process.0.id(), "Z"), []);
}

/// Says in a file that it was told to end, and ends.
fn hears(name: &str) -> String {
    format!("trap 'echo heard > {name}; exit 1' TERM; echo > {name}-begun; {FOR_EVER}")
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_reaches_all_in_another_pid_namespace() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let unshare = unshare("--pid --fork --kill-child");
    std::fs::write(desk.path("far.sh"), hears("far")).unwrap();
    let script = format!("(setsid sh far.sh &); {}", hears("near"));
    let run = [
        "run", "job", "--label", "a", "--grace", "20s", "--", "sh", "-c", &script,
    ];
    let mut process = desk.start_through(&unshare, "a", &run);
    desk.until_left("near-begun").await;
    desk.until_left("far-begun").await;
    let [us] = children(process.0.id(), "S")[..] else {
        panic!("unshare has one child");
    };
    kill(us, Signal::SIGTERM).unwrap();
    assert_eq!(process.code().await, 143);
    assert_eq!(desk.left("near"), "heard\n");
    assert_eq!(desk.left("far"), "heard\n");
    assert_eq!(desk.next("").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_reaches_the_command_s_group_without_proc() {
    let server = Server::start();
    let desk = Desk::on(&server);
    // Not in a terminal, and no longer the process that `unshare` was: each becomes the next.
    let mut wrapper = vec!["setsid".to_owned()];
    wrapper.extend(unshare("--mount"));
    let hides = "mount -t tmpfs none /proc && exec \"$@\"";
    wrapper.extend(["sh", "-c", hides, "sh"].map(str::to_owned));
    let script = format!(
        "echo $$ > pid; sh -c \"{}\" & {}",
        hears("far"),
        hears("near")
    );
    let run = [
        "run", "job", "--label", "a", "--grace", "20s", "--", "sh", "-c", &script,
    ];
    let mut process = desk.start_through(&wrapper, "a", &run);
    desk.until_left("near-begun").await;
    desk.until_left("far-begun").await;
    assert!(
        desk.left("a.err")
            .contains("only the command's process group can be stopped")
    );
    process.signal(Signal::SIGTERM);
    assert_eq!(process.code().await, 143);
    assert_eq!(desk.left("near"), "heard\n");
    assert_eq!(desk.left("far"), "heard\n");
    assert!(!lives(&desk.left("pid")));
    assert_eq!(desk.next("").await, "1 handed off\n");
    // And a command that ends by itself is done.
    let run = ["run", "other", "--", "true"];
    assert_eq!(desk.start_through(&wrapper, "b", &run).code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_process_left_hands_off_with_71() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let env = ["env".to_owned(), shim(&desk, "NO_PROCESS")];
    let run = ["run", "job", "--quiet", "--attempts", "1", "--", "true"];
    let mut process = desk.start_through(&env, "a", &run);
    assert_eq!(process.code().await, 71);
    let said = desk.left("a.err");
    assert!(
        said.contains("cannot start the command: Resource temporarily unavailable"),
        "{said}"
    );
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_thread_or_file_left_ends_with_71() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let no_thread = vec!["env".to_owned(), shim(&desk, "NO_THREAD")];
    let no_file = ["prlimit", "--nofile=4"].map(str::to_owned).to_vec();
    for (wrapper, why) in [
        (no_thread, "Resource temporarily unavailable"),
        (no_file, "Too many open files"),
    ] {
        let mut process = desk.start_through(&wrapper, "a", &["run", "job", "--", "true"]);
        assert_eq!(process.code().await, 71);
        let said = desk.left("a.err");
        assert!(said.contains(why), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_looked_for_as_execvp_does() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let url = format!("REDIS_URL={}", desk.url);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::write(desk.path("of-here"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(desk.path("of-here"), mode).unwrap();
    for (path, command, code) in [
        (None, "true", 0),
        (None, "of-here", 127),
        // An empty part is the directory that we are in, and so is an empty PATH.
        (Some("PATH="), "of-here", 0),
        (Some("PATH=/bin:"), "of-here", 0),
        (Some("PATH=.:/bin"), "of-here", 0),
        (Some("PATH=/bin"), "of-here", 127),
    ] {
        let mut env = ["env", "-i", &url].map(str::to_owned).to_vec();
        env.extend(path.map(str::to_owned));
        let key = format!("job-{command}-{path:?}");
        let mut process = desk.start_through(&env, "a", &["run", &key, "--", command]);
        assert_eq!(
            process.code().await,
            code,
            "{path:?}: {}",
            desk.left("a.err")
        );
        if code == 127 {
            let said = desk.left("a.err");
            assert!(said.contains("of-here: command not found"), "{said}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_a_silent_resolver() {
    let mut desk = Desk::at("redis://localhost:1".to_owned());
    let env = ["env".to_owned(), shim(&desk, "SILENT_RESOLVER")];
    desk.url = "redis://localhost:1".to_owned();
    for args in [
        &["run", "job", "--", "true"][..],
        &["status", "job"],
        &["watch", "job"],
    ] {
        let mut process = desk.start_through(&env, "a", args);
        until(async || desk.path("asked").exists()).await;
        process.signal(Signal::SIGTERM);
        assert_eq!(process.code().await, 143);
        std::fs::remove_file(desk.path("asked")).unwrap();
    }
}

/// With each number of descriptors that a command is started under, it is stopped under it too.
#[tokio::test(flavor = "multi_thread")]
async fn few_descriptors_stop_all_or_start_nothing() {
    let server = Server::start();
    let desk = Desk::on(&server);
    std::fs::write(desk.path("far.sh"), format!("echo > far; {FOR_LONG}")).unwrap();
    let script = format!("(setsid sh far.sh &); echo > near; {FOR_LONG}");
    let mut codes = Vec::new();
    // From too few to begin with, to as many as the connections and the thread that renews need.
    for files in 9..36 {
        let limit = ["prlimit".to_owned(), format!("--nofile={files}")];
        let key = format!("job-{files}");
        let wait = "--wait-for-server=0s";
        let run = [
            "run", &key, wait, "--grace", "10s", "--", "sh", "-c", &script,
        ];
        let mut process = desk.start_through(&limit, "a", &run);
        until(async || {
            let has_begun = desk.left("near").ends_with('\n') && desk.left("far").ends_with('\n');
            has_begun || process.0.try_wait().unwrap().is_some()
        })
        .await;
        if process.0.try_wait().unwrap().is_none() {
            process.signal(Signal::SIGTERM);
        }
        let code = process.code().await;
        assert!(
            [6, 71, 143].contains(&code),
            "{files}: {code}, {}",
            desk.left("a.err")
        );
        codes.push(code);
        let _ = std::fs::remove_file(desk.path("near"));
        let _ = std::fs::remove_file(desk.path("far"));
    }
    assert!(codes.contains(&71) && codes.contains(&143), "{codes:?}");
}

/// What stops with the machine goes on when it wakes: the holder, whose timers have not counted the sleep, and the command.
#[tokio::test(flavor = "multi_thread")]
async fn command_is_gone_within_a_second_of_waking() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let clocks = Clocks::compile();
    let variables = clocks
        .environment()
        .map(|(name, value)| format!("{name}={value}"));
    let mut env = vec!["env".to_owned()];
    env.extend(variables);
    let script = ["echo $$ > begun; ", FOR_EVER].concat();
    let run = [
        "run",
        "job",
        "--lease",
        "2s",
        "--no-rejoin",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let mut process = desk.start_through(&env, "a", &run);
    desk.until_left("begun").await;
    let command = Pid::from_raw(desk.left("begun").trim().parse().unwrap());
    process.signal(Signal::SIGSTOP);
    kill(command, Signal::SIGSTOP).unwrap();
    let slept = Duration::from_secs(3);
    tokio::time::sleep(slept).await;
    clocks.set(Clock::Monotonic, -3);
    kill(command, Signal::SIGCONT).unwrap();
    process.signal(Signal::SIGCONT);
    let woke = Instant::now();
    until(async || !lives(&command.to_string())).await;
    println!("gone {:?} after waking", woke.elapsed());
    assert!(woke.elapsed() < Duration::from_millis(1_500));
    assert_eq!(process.code().await, 5, "its lease was lost");
}
