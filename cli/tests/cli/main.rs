//! The command line, as a shell sees it, on a real server.

#[cfg(target_os = "linux")]
mod machine;
mod unreachable;

use std::fs::{File, read_to_string};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fred::interfaces::KeysInterface;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{LockingWorker, RunState};
use serde_json::Value;
use tempfile::TempDir;
use testkit::proxy::{Proxy, Way};
use testkit::{Server, acquired, command, free_port, locked, until};

/// A place where commands leave what they have seen.
struct Desk {
    url: String,
    dir: TempDir,
}

impl Desk {
    fn at(url: String) -> Self {
        let dir = TempDir::new().unwrap();
        Self { url, dir }
    }

    fn on(server: &Server) -> Self {
        Self::at(server.url())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What has been left there; nothing, if nothing has.
    fn left(&self, name: &str) -> String {
        read_to_string(self.path(name)).unwrap_or_default()
    }

    async fn until_left(&self, name: &str) {
        until(async || self.left(name).ends_with('\n')).await;
    }

    /// `locking-worker` with these arguments, in words; what it says goes to files named after it.
    fn start_as(&self, name: &str, args: &str, command: &[&str]) -> Process {
        let file = |end| File::create(self.path(&format!("{name}.{end}"))).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_locking-worker"));
        process
            .args(args.split_whitespace())
            .args(command)
            .env("REDIS_URL", &self.url)
            .env("LOCKING_WORKER_PREVIOUS_REASON", "of somebody else")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"))
            // Not in the group that a terminal signals: then INT and QUIT are left to it.
            .process_group(0);
        Process(process.spawn().unwrap())
    }

    /// `locking-worker` with these arguments, started by way of a program that becomes it.
    fn start_through(&self, wrapper: &[String], name: &str, args: &[&str]) -> Process {
        let file = |end| File::create(self.path(&format!("{name}.{end}"))).unwrap();
        let mut process = Command::new(&wrapper[0]);
        process
            .args(&wrapper[1..])
            .arg(env!("CARGO_BIN_EXE_locking-worker"))
            .args(args)
            .env("REDIS_URL", &self.url)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(file("out"))
            .stderr(file("err"));
        Process(process.spawn().unwrap())
    }

    fn start(&self, args: &str) -> Process {
        self.start_as("said", args, &[])
    }

    /// Takes part under this name, with a script as the work.
    fn run(&self, name: &str, options: &str, script: &str) -> Process {
        let args = format!("run job --label {name} {options} --");
        self.start_as(name, &args, &["sh", "-c", script])
    }

    /// What the next one is told of its attempt and of the one before.
    async fn next(&self, options: &str) -> String {
        let told = "echo $LOCKING_WORKER_ATTEMPT $LOCKING_WORKER_PREVIOUS_REASON > told";
        assert_eq!(self.run("next", options, told).code().await, 0);
        self.left("told")
    }

    /// Waits for its end; its code and what it printed.
    async fn end(&self, args: &str) -> (i32, String) {
        let code = self.start(args).code().await;
        (code, self.left("said.out"))
    }
}

/// A `locking-worker`, killed with its test.
struct Process(Child);

impl Process {
    async fn code(&mut self) -> i32 {
        until(async || self.0.try_wait().unwrap().is_some()).await;
        let status = self.0.wait().unwrap();
        status.code().unwrap_or_else(|| panic!("{status}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the process goes on; one that is dead and not waited for does not.
fn lives(pid: &str) -> bool {
    let pid = pid.trim();
    let stat = Command::new("ps").args(["-o", "stat=", "-p", pid]).output();
    let stat = String::from_utf8(stat.unwrap().stdout).unwrap();
    !matches!(stat.trim().chars().next(), None | Some('Z' | 'X'))
}

/// Leaves its process's id, and then does this.
fn known_as(name: &str, then: &str) -> String {
    format!("echo $$ > {name}; {then}")
}

const FOR_LONG: &str = "exec sleep 600";

/// A shell that hears signals in between.
const FOR_EVER: &str = "while :; do sleep 0.02; done";

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_done_here_and_done_elsewhere() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let work = "echo ran >> log";
    let mut first = desk.run("a", "--retention 1h", work);
    assert_eq!(first.code().await, 0);
    assert_eq!(desk.run("b", "", work).code().await, 3);
    assert_eq!(desk.left("log"), "ran\n");
    assert!(desk.left("b.err").contains("done by a, at attempt 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_that_our_attempt_failed_or_the_run_was_given_up() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let fails = "echo $LOCKING_WORKER_ATTEMPT >> log; exit 7";
    let options = "--attempts 3 --retention 1h";
    let mut aside = desk.run("a", &format!("{options} --no-rejoin"), fails);
    assert_eq!(aside.code().await, 1);
    assert_eq!(desk.left("log"), "1\n");
    assert!(desk.left("a.err").contains("attempt 1 failed: exit code 7"));
    // Alone, it makes all attempts that are left.
    assert_eq!(desk.run("b", options, fails).code().await, 4);
    assert_eq!(desk.left("log"), "1\n2\n3\n");
    // And who comes later is told, without any.
    assert_eq!(desk.run("c", options, fails).code().await, 4);
    assert_eq!(desk.left("log"), "1\n2\n3\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_that_an_argument_is_wrong() {
    let server = Server::start();
    let desk = Desk::on(&server);
    for args in [
        "run job",
        "run job -- ",
        "run job --lease soon -- true",
        "run job --lease 0s -- true",
        "run job --attempts 0 -- true",
        "run job --max-hold 1s -- true",
        "run x}y -- true",
        "status",
        "status job --url http://localhost",
        "watch",
        "clear job",
        "man nothing",
    ] {
        assert_eq!(desk.end(args).await.0, 2, "{args}");
        assert!(!desk.left("said.err").is_empty(), "{args}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_that_the_lease_was_lost() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let options = "--lease 600ms --no-rejoin";
    let mut process = desk.run("a", options, &known_as("pid", FOR_LONG));
    desk.until_left("pid").await;
    assert_eq!(desk.end("clear job --yes").await.0, 0);
    assert_eq!(process.code().await, 5);
    assert!(!lives(&desk.left("pid")));
    let said = desk.left("a.err");
    assert_eq!(said.matches("record has gone").count(), 1, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_meanwhile_is_not_said_to_be_handed_off() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "trap 'echo asked >> log' TERM; ".to_owned() + &known_as("pid", FOR_EVER);
    let mut process = desk.run("a", "--lease 3s --grace 1h", &script);
    desk.until_left("pid").await;
    process.signal(Signal::SIGTERM);
    desk.until_left("log").await;
    assert_eq!(desk.end("clear job --yes").await.0, 0);
    // It hears of it by its next renewal.
    assert_eq!(process.code().await, 143);
    let said = desk.left("a.err");
    assert!(
        said.contains("attempt 1 failed: the lease was lost: its record has gone"),
        "{said}"
    );
    assert!(!said.contains("handed off"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_that_there_is_no_server_or_that_it_refuses() {
    let nobody = Desk::at(format!("redis://user:secret@127.0.0.1:{}", free_port()));
    for args in [
        "run job --wait-for-server 0s -- true",
        "status job --wait-for-server 0s",
        "watch job --wait-for-server 0s",
        "clear job --yes --wait-for-server 0s",
    ] {
        assert_eq!(nobody.end(args).await.0, 6, "{args}");
        let said = nobody.left("said.err");
        assert!(said.contains("redis://…@127.0.0.1:"), "{said}");
        assert!(said.contains("--url or REDIS_URL"), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
    let server = Server::start();
    let client = server.client().await;
    let _: () = client
        .set("job", "somebody's", None, None, false)
        .await
        .unwrap();
    let desk = Desk::on(&server);
    for args in [
        "run job -- true",
        "status job",
        "watch job",
        "clear job --yes",
    ] {
        assert_eq!(desk.end(args).await.0, 6, "{args}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_says_that_there_is_no_such_command_and_no_attempt_is_spent() {
    let server = Server::start();
    let desk = Desk::on(&server);
    assert_eq!(desk.end("run job -- no-such-command").await.0, 127);
    // No file that can be executed.
    std::fs::write(desk.path("data"), "").unwrap();
    assert_eq!(desk.end("run job -- ./data").await.0, 127);
    let worker = server.builder("job").build().await.unwrap();
    assert_eq!(worker.inspect().await.unwrap().state, RunState::Free);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_in_line_ends_our_part_and_leaves_the_line() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let holder = server.builder("job").build().await.unwrap();
    let mut events = holder.acquire();
    let _guard = acquired(&mut events).await;
    let waiting = async || holder.inspect().await.unwrap().line.unwrap().len();
    for (signal, code) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGINT, 130),
        (Signal::SIGHUP, 129),
        (Signal::SIGQUIT, 131),
    ] {
        let mut process = desk.run("a", "", "true");
        until(async || waiting().await == 1).await;
        // There is nobody to pass it on to.
        process.signal(Signal::SIGUSR1);
        process.signal(signal);
        assert_eq!(process.code().await, code);
        assert_eq!(waiting().await, 0);
    }
}

/// Under a lease of an hour: a bound that belongs to the lease would show.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_without_a_server_ends_within_grace() {
    let server = Server::start();
    let proxy = Proxy::start(server.port).await;
    let desk = Desk::at(format!("redis://127.0.0.1:{}", proxy.port));
    let options = "--lease 1h --grace 2s";
    let mut holder = desk.run("a", options, &known_as("pid", FOR_LONG));
    desk.until_left("pid").await;
    let mut waiter = desk.run("b", options, "true");
    until(async || desk.left("b.err").contains("is with a")).await;
    proxy.set(Way::Stalled);
    let told = Instant::now();
    holder.signal(Signal::SIGTERM);
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.code().await, 143);
    assert_eq!(holder.code().await, 143);
    // Twice the grace, for a slow machine.
    let took = told.elapsed();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(!lives(&desk.left("pid")));
    let said = desk.left("a.err");
    assert!(
        said.contains("attempt 1 is not known to be recorded: no answer within --grace 2s"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_comes_early_enough_to_hand_off_within_grace() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "trap '' TERM; ".to_owned() + &known_as("pid", FOR_EVER);
    let mut process = desk.run("a", "--attempts 1 --grace 3s", &script);
    desk.until_left("pid").await;
    let told = Instant::now();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.code().await, 143);
    let took = told.elapsed();
    let grace = Duration::from_secs(3);
    assert!(took > grace * 4 / 5 && took < grace, "{took:?}");
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_that_looks_like_an_option_has_a_way() {
    let server = Server::start();
    let desk = Desk::on(&server);
    for (args, key) in [
        ("run -k -- true", "-k"),
        ("run --grease -- true", "--grease"),
        ("status -k", "-k"),
        ("status -- -k", "-k"),
        ("watch a --lock", "--lock"),
        ("clear --yes -y", "-y"),
    ] {
        let (code, _) = desk.end(args).await;
        let said = desk.left("said.err");
        if args == "status -- -k" {
            assert_eq!(code, 0, "{said}");
            continue;
        }
        assert_eq!(code, 2, "{args}");
        let advice = format!("to name the key '{key}', use '--key={key}'");
        assert!(said.contains(&advice), "{said}");
        assert!(!said.contains("use '-- "), "{said}");
    }
    for key in ["-k", "--", "--lease", "--key=x", "=", "-"] {
        let named = format!("--key={key}");
        let run = format!("run {named} --retention 1h -- true");
        assert_eq!(desk.end(&run).await.0, 0, "{key}");
        let status = desk.end(&format!("status {named} --json")).await;
        let status: Value = serde_json::from_str(&status.1).unwrap();
        assert_eq!(
            (&status["key"], &status["state"]),
            (&key.into(), &"completed".into())
        );
        let clear = desk.end(&format!("clear {named} --yes")).await;
        assert_eq!(clear.0, 0);
        assert!(desk.left("said.err").contains(": cleared"));
    }
    let mut watch = desk.start_as("watch", "watch plain --key=-a --key=--b", &[]);
    until(async || desk.left("watch.out").lines().count() == 3).await;
    for line in ["plain: free", "-a: free", "--b: free"] {
        assert!(desk.left("watch.out").lines().any(|seen| seen == line));
    }
    watch.signal(Signal::SIGTERM);
    assert_eq!(watch.code().await, 0);
    // One way or the other, not both; and one of them.
    assert_eq!(desk.end("run a --key=-k -- true").await.0, 2);
    assert_eq!(desk.end("status").await.0, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn key_of_an_ancestor_is_refused_and_not_waited_for() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let us = env!("CARGO_BIN_EXE_locking-worker");
    // Directly, and with another key in between.
    for inner in [
        format!("{us} run job -- true"),
        format!("{us} run between --no-rejoin -- {us} run job -- true"),
    ] {
        let script = format!("{inner}; echo $? > code; exit 1");
        assert_eq!(desk.run("a", "--no-rejoin", &script).code().await, 1);
        let said = desk.left("a.err");
        assert!(said.contains("job: held by a for the command"), "{said}");
    }
    assert_eq!(desk.left("code"), "1\n", "the one between has failed");
    assert_eq!(desk.end("clear job --yes").await.0, 0);
    let script = format!("{us} run job -- true; echo $? > code");
    assert_eq!(desk.run("a", "", &script).code().await, 0);
    assert_eq!(desk.left("code"), "2\n");
    // The same key in another database is another key: one that is free is taken.
    let elsewhere = format!("{}/1", server.url());
    let script = format!("{us} run job --url {elsewhere} -- touch ran-elsewhere");
    assert_eq!(desk.end("clear job --yes").await.0, 0);
    assert_eq!(desk.run("a", "", &script).code().await, 0);
    assert!(
        desk.path("ran-elsewhere").exists(),
        "{}",
        desk.left("a.err")
    );
    // And one that another worker holds is waited for.
    let other = LockingWorker::builder("job").url(&elsewhere).label("b");
    let other = other.build().await.unwrap();
    other.clear().await.unwrap();
    let guard = acquired(&mut other.acquire()).await;
    let script = format!("{us} run job --url {elsewhere} -- true; [ $? = 3 ]");
    assert_eq!(desk.end("clear job --yes").await.0, 0);
    let mut process = desk.run("a", "", &script);
    until(async || desk.left("a.err").contains("is with b")).await;
    guard.done().await.unwrap();
    assert_eq!(process.code().await, 0, "{}", desk.left("a.err"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_tries_until_the_script_succeeds() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "echo $LOCKING_WORKER_ATTEMPT >> log; [ $LOCKING_WORKER_ATTEMPT -ge 3 ]";
    let mut fleet: Vec<_> = ["a", "b", "c"]
        .map(|name| desk.run(name, "--retention 1h", script))
        .into();
    let mut codes = Vec::new();
    for process in &mut fleet {
        codes.push(process.code().await);
    }
    codes.sort_unstable();
    assert_eq!(codes, [0, 3, 3]);
    let said = ["a.err", "b.err", "c.err"].map(|name| desk.left(name));
    assert_eq!(desk.left("log"), "1\n2\n3\n", "{}", said.concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_is_told_of_its_attempt_and_of_the_one_before() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "env | grep ^LOCKING_WORKER_ | sort > $LOCKING_WORKER_ATTEMPT; exit 7";
    let options = "--attempts 2 --no-rejoin --retention 1h";
    assert_eq!(desk.run("a", options, script).code().await, 1);
    let mut tokens = Vec::new();
    let mut told = |attempt: &str| -> Vec<String> {
        let (mut told, mut token) = (Vec::new(), None);
        for line in desk.left(attempt).lines() {
            match line.strip_prefix("LOCKING_WORKER_FENCING_TOKEN=") {
                Some(number) => token = Some(number.parse::<u64>().unwrap()),
                // Of the fencing token, which another test looks at.
                None if line.starts_with("LOCKING_WORKER_HELD=") => {}
                None => told.push(line.strip_prefix("LOCKING_WORKER_").unwrap().to_owned()),
            }
        }
        tokens.push(token.unwrap());
        told
    };
    assert_eq!(told("1"), ["ATTEMPT=1", "KEY=job"]);
    assert_eq!(desk.run("b", options, script).code().await, 4);
    let second = [
        "ATTEMPT=2",
        "KEY=job",
        "LAST_ATTEMPT=1",
        "PREVIOUS_HOLDER=a",
        "PREVIOUS_REASON=exit code 7",
    ];
    assert_eq!(told("2"), second);
    assert!(tokens[0] < tokens[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_hands_off_and_costs_no_attempt() {
    // One that ends of it, one that says that it failed, and one that has to be killed.
    for (trap, then) in [
        ("", FOR_LONG),
        ("trap 'exit 9' TERM; ", FOR_EVER),
        ("trap '' TERM; ", FOR_EVER),
    ] {
        let server = Server::start();
        let desk = Desk::on(&server);
        let options = "--attempts 1 --grace 300ms";
        let script = [trap, &known_as("pid", then)].concat();
        let mut first = desk.run("a", options, &script);
        desk.until_left("pid").await;
        let told = "echo $LOCKING_WORKER_ATTEMPT $LOCKING_WORKER_PREVIOUS_REASON > told";
        let mut second = desk.run("b", options, told);
        until(async || desk.left("b.err").contains("is with a")).await;
        first.signal(Signal::SIGTERM);
        assert_eq!(first.code().await, 143);
        assert!(!lives(&desk.left("pid")));
        assert_eq!(second.code().await, 0);
        assert_eq!(desk.left("told"), "1 handed off\n");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_the_grace() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "trap 'echo asked >> log' TERM; echo $$ > pid; while :; do sleep 0.02; done";
    let mut process = desk.run("a", "--grace 1h", script);
    desk.until_left("pid").await;
    process.signal(Signal::SIGTERM);
    desk.until_left("log").await;
    // Two at once are one.
    process.signal(Signal::SIGTERM);
    until(async || {
        let _ = kill(Pid::from_raw(process.0.id() as i32), Signal::SIGTERM);
        process.0.try_wait().unwrap().is_some()
    })
    .await;
    assert_eq!(process.code().await, 143);
}

/// As systemd sends it to a control group, and a shell to a job. The command may end first.
#[tokio::test(flavor = "multi_thread")]
async fn signal_to_the_whole_group_hands_off() {
    let server = Server::start();
    let desk = Desk::on(&server);
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        for _ in 0..10 {
            let mut process = desk.run("a", "--attempts 1", &known_as("pid", FOR_LONG));
            desk.until_left("pid").await;
            // Both get it before either is seen to, as if it were one signal to their group.
            let command = desk.left("pid");
            process.signal(Signal::SIGSTOP);
            kill(Pid::from_raw(command.trim().parse().unwrap()), signal).unwrap();
            process.signal(signal);
            until(async || !lives(&command)).await;
            process.signal(Signal::SIGCONT);
            assert_eq!(process.code().await, code);
            let said = desk.left("a.err");
            assert!(said.contains("attempt 1 is handed off"), "{said}");
            std::fs::remove_file(desk.path("pid")).unwrap();
        }
    }
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_sigterm_interrupts_is_not_done_whatever_it_says() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "trap 'exit 0' TERM; ".to_owned() + &known_as("pid", FOR_EVER);
    let mut process = desk.run("a", "--attempts 1", &script);
    desk.until_left("pid").await;
    process.signal(Signal::SIGTERM);
    assert_eq!(process.code().await, 143);
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

/// The program that a script runs is what does the work.
#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn all_that_the_command_has_started_ends_with_it() {
    let server = Server::start();
    let desk = Desk::on(&server);
    // A shell that waits for one that ignores it and has left its parent and its session.
    let stubborn = format!("trap '' TERM; {}", known_as("pid", FOR_EVER));
    let script = format!(
        "(setsid sh -c \"{}\" &); sleep 600; true",
        stubborn.replace('$', "\\$")
    );
    let mut process = desk.run("a", "--grace 300ms", &script);
    desk.until_left("pid").await;
    process.signal(Signal::SIGTERM);
    assert_eq!(process.code().await, 143);
    assert!(!lives(&desk.left("pid")));
    assert_eq!(desk.next("").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_command_leaves_behind_by_itself_goes_on() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = format!("(sh -c '{}' &)", known_as("pid", FOR_LONG));
    let script = script + "; while [ ! -s pid ]; do sleep 0.02; done";
    assert_eq!(desk.run("a", "", &script).code().await, 0);
    let pid = desk.left("pid");
    assert!(lives(&pid));
    kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_interrupts_a_command_that_then_fails_ends_our_part() {
    let server = Server::start();
    let desk = Desk::on(&server);
    for (name, code) in [("INT", 130), ("HUP", 129), ("QUIT", 131)] {
        let script = format!("trap 'exit 20' {name}; ") + &known_as("pid", FOR_EVER);
        let mut process = desk.run("a", "--attempts 1", &script);
        desk.until_left("pid").await;
        process.signal(format!("SIG{name}").parse().unwrap());
        assert_eq!(process.code().await, code);
        std::fs::remove_file(desk.path("pid")).unwrap();
    }
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_does_not_wait_for_a_server_that_has_gone() {
    let server = Server::start();
    let proxy = Proxy::start(server.port).await;
    let desk = Desk::at(format!("redis://127.0.0.1:{}", proxy.port));
    let mut process = desk.run("a", "--lease 10m", &known_as("pid", FOR_LONG));
    desk.until_left("pid").await;
    proxy.set(Way::Stalled);
    until(async || {
        let _ = kill(Pid::from_raw(process.0.id() as i32), Signal::SIGTERM);
        process.0.try_wait().unwrap().is_some()
    })
    .await;
    assert_eq!(process.code().await, 143);
    assert!(!lives(&desk.left("pid")));
    let said = desk.left("a.err");
    assert!(
        said.contains("the end of attempt 1 is not known to be recorded: told to end again"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_execute_the_command_leaves_the_attempt_to_others() {
    let server = Server::start();
    let desk = Desk::on(&server);
    // It is there, and can be executed, but for its interpreter.
    std::fs::write(desk.path("report"), "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(desk.path("report"), mode).unwrap();
    assert_eq!(desk.end("run job --attempts 1 -- ./report").await.0, 127);
    let script = "no-such-command";
    assert_eq!(desk.run("a", "--attempts 1", script).code().await, 127);
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_starts_us_may_ignore_the_ends_of_its_children() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = format!(
        "trap '' CHLD; exec {} run job --no-rejoin -- sh -c true",
        env!("CARGO_BIN_EXE_locking-worker")
    );
    let status = Command::new("bash")
        .args(["-c", &script])
        .env("REDIS_URL", &desk.url)
        .status();
    assert_eq!(status.unwrap().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn what_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_locking-worker"));
    let command = command.args(["completions", "bash"]);
    let output = command.stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    // Nor is it one that nobody listens to errors.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_locking-worker"));
    let command = command.args(["run", "job", "--", "no-such-command"]);
    assert_eq!(command.stderr(full).status().unwrap().code(), Some(127));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_signals_are_passed_on() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let names = ["INT", "HUP", "QUIT", "USR1", "USR2"];
    let traps = names.map(|name| format!("trap 'echo {name} >> log' {name}; "));
    let waits = "while [ ! -e enough ]; do sleep 0.02; done";
    let script = traps.concat() + &known_as("pid", waits);
    let mut process = desk.run("a", "", &script);
    desk.until_left("pid").await;
    for name in names {
        process.signal(format!("SIG{name}").parse().unwrap());
        until(async || desk.left("log").contains(name)).await;
    }
    File::create(desk.path("enough")).unwrap();
    assert_eq!(process.code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_passed_signal_ends_is_handed_off() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let mut process = desk.run("a", "--attempts 1", &known_as("pid", FOR_LONG));
    desk.until_left("pid").await;
    process.signal(Signal::SIGINT);
    assert_eq!(process.code().await, 130);
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_a_signal_kills_has_failed_and_says_which() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let mut process = desk.run("a", "--no-rejoin", "kill -SEGV $$");
    assert_eq!(process.code().await, 1);
    assert!(desk.left("a.err").contains("killed by SIGSEGV"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_is_gone_when_the_server_lets_the_next_one_in() {
    let server = Server::start();
    let proxy = Proxy::start(server.port).await;
    let desk = Desk::at(format!("redis://127.0.0.1:{}", proxy.port));
    let script = "trap 'echo asked >> log' TERM; ".to_owned() + &known_as("pid", FOR_EVER);
    let mut cut_off = desk.run("a", "--lease 20s", &script);
    desk.until_left("pid").await;
    let successor = server.builder("job").label("b").build().await.unwrap();
    let mut events = successor.acquire();
    locked(&mut events).await;
    proxy.set(Way::Stalled);
    // By the server's clock, and no sooner.
    let guard = acquired(&mut events).await;
    assert!(
        !lives(&desk.left("pid")),
        "the command has outlived its lease"
    );
    assert_eq!(guard.attempt(), 2);
    // It had been asked before, and had its time.
    assert_eq!(desk.left("log"), "asked\n");
    proxy.set(Way::Open);
    guard.done().await.unwrap();
    assert_eq!(cut_off.code().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_long_is_stopped_and_has_failed() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let options = "--lease 3s --max-hold 3s --attempts 2 --retention 1h";
    // Whatever it says.
    let script = "trap 'exit 0' TERM; ".to_owned() + FOR_EVER;
    assert_eq!(desk.run("a", options, &script).code().await, 4);
    let worker = server.builder("job").build().await.unwrap();
    let reason = worker.inspect().await.unwrap().previous.unwrap().reason;
    assert_eq!(
        reason.to_string(),
        "stopped, as --max-hold was running out: 3s"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_may_take_longer_than_the_lease() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let mut process = desk.run(
        "a",
        "--lease 2s",
        "sleep 3; echo $LOCKING_WORKER_ATTEMPT > told",
    );
    assert_eq!(process.code().await, 0);
    assert_eq!(desk.left("told"), "1\n");
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn the_command_dies_with_a_holder_that_is_killed_and_another_takes_over() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let mut first = desk.run("a", "--lease 1s", &known_as("pid", FOR_LONG));
    desk.until_left("pid").await;
    let told = "echo $LOCKING_WORKER_ATTEMPT $LOCKING_WORKER_PREVIOUS_REASON > told";
    let mut second = desk.run("b", "--lease 1s", told);
    until(async || desk.left("b.err").contains("is with a")).await;
    first.kill();
    until(async || !lives(&desk.left("pid"))).await;
    assert_eq!(second.code().await, 0);
    assert_eq!(desk.left("told"), "2 expired\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_the_run_in_words_and_in_json() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let status = async || {
        let (code, text) = desk.end("status job --json").await;
        assert_eq!(code, 0);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let free = status().await;
    assert_eq!(
        (&free["state"], &free["attempt"]),
        (&"free".into(), &0.into())
    );
    let options = "--no-rejoin --retention 1h";
    assert_eq!(desk.run("a", options, "exit 7").code().await, 1);
    let holder = desk.run("b", options, &known_as("pid", FOR_LONG));
    desk.until_left("pid").await;
    let waiter = desk.run("c", options, "true");
    until(async || desk.left("c.err").contains("is with b")).await;

    let held = status().await;
    let names: Vec<_> = held.as_object().unwrap().keys().cloned().collect();
    let mut expected = [
        "key",
        "state",
        "attempt",
        "max_attempts",
        "holder",
        "fencing_token",
        "remaining_ms",
        "previous",
        "result",
        "line",
    ];
    expected.sort_unstable();
    assert_eq!(names, expected);
    assert_eq!(held["key"], "job");
    assert_eq!(held["state"], "held");
    assert_eq!(
        (&held["attempt"], &held["max_attempts"]),
        (&2.into(), &5.into())
    );
    assert_eq!(held["holder"], "b");
    assert_eq!(held["line"], serde_json::json!(["c"]));
    assert_eq!(held["previous"]["reason"], "exit code 7");
    assert_eq!(held["previous"]["holder"], "a");
    assert!(
        (1..=10_000).contains(&held["remaining_ms"].as_u64().unwrap()),
        "{held}"
    );

    let (code, text) = desk.end("status job").await;
    assert_eq!(code, 0);
    for line in [
        "key        job",
        "state      held",
        "attempt    2 of 5",
        "holder     b",
        "previous   attempt 1 by a: exit code 7",
        "waiting    c",
    ] {
        assert!(
            text.lines().any(|shown| shown == line),
            "{line:?} in\n{text}"
        );
    }
    drop((holder, waiter));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_prints_a_line_for_each_transition() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let mut watch = desk.start_as("watch", "watch job other", &[]);
    until(async || desk.left("watch.out").lines().count() == 2).await;
    let options = "--no-rejoin --lease 2s --retention 1h";
    // Long enough to be renewed, which is no transition.
    assert_eq!(desk.run("a", options, "sleep 1; exit 7").code().await, 1);
    assert_eq!(desk.run("b", options, "true").code().await, 0);
    let of_job = || -> Vec<String> {
        let lines = desk.left("watch.out");
        let lines = lines.lines().filter(|line| line.starts_with("job: "));
        lines.map(str::to_owned).collect()
    };
    until(async || of_job().len() == 5).await;
    let expected = [
        "job: free",
        "job: held by a, attempt 1 of 5",
        "job: open, attempt 1 of 5, by a: exit code 7",
        "job: held by b, attempt 2 of 5, after attempt 1 by a: exit code 7",
        "job: completed by b, attempt 2 of 5, after attempt 1 by a: exit code 7",
    ];
    assert_eq!(of_job(), expected);
    watch.signal(Signal::SIGINT);
    assert_eq!(watch.code().await, 0);
}

/// In a terminal of 80 columns; what it shows is left in "screen".
#[cfg(target_os = "linux")]
fn in_a_terminal(desk: &Desk, command: &str) -> Process {
    let program = env!("CARGO_BIN_EXE_locking-worker");
    // Not in its place: `script` would stop with it.
    let command = format!("stty cols 80 rows 24; trap : INT; {program} {command}; exit $?");
    let mut script = Command::new("script");
    script
        .args(["--quiet", "--return", "--flush", "--command", &command])
        .arg("screen")
        .env("REDIS_URL", &desk.url)
        .env("SHELL", "/bin/sh")
        .current_dir(desk.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    Process(script.spawn().unwrap())
}

#[cfg(target_os = "linux")]
fn press_ctrl_c(terminal: &mut Process) {
    let keys = terminal.0.stdin.as_mut().unwrap();
    keys.write_all(b"\x03").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn in_a_terminal_watch_draws_over_what_it_drew_and_ctrl_c_ends_it() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let mut terminal = in_a_terminal(&desk, "watch job");
    until(async || desk.left("screen").contains("job               free")).await;
    let _holder = desk.run("a", "", FOR_LONG);
    let held = "job               held       1/5      a                 [############]";
    until(async || desk.left("screen").contains(held)).await;
    // The bar runs down, over the same two lines.
    until(async || desk.left("screen").contains("\x1b[2A\rKEY ")).await;
    until(async || desk.left("screen").contains("[###########.]")).await;
    press_ctrl_c(&mut terminal);
    assert_eq!(terminal.code().await, 0);
    let screen = desk.left("screen");
    assert!(screen.contains("\x1b[?25l"), "the cursor is hidden");
    assert!(
        screen.rfind("\x1b[?25h") > screen.rfind("\x1b[?25l"),
        "and comes back"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[cfg(target_os = "linux")]
async fn ctrl_c_reaches_the_command_once() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "
        sub leave { open my $file, '>>', shift; print $file shift, qq(\\n); close $file }
        $SIG{INT} = sub { leave('log', 'heard') };
        $SIG{USR1} = sub { exit 20 };
        leave('us', getppid());
        sleep 1 while 1;";
    std::fs::write(desk.path("work.pl"), script).unwrap();
    let mut terminal = in_a_terminal(&desk, "run job --attempts 1 -- perl work.pl");
    desk.until_left("us").await;
    let us = Pid::from_raw(desk.left("us").trim().parse().unwrap());
    // Two that come together would be one.
    kill(us, Signal::SIGSTOP).unwrap();
    press_ctrl_c(&mut terminal);
    desk.until_left("log").await;
    kill(us, Signal::SIGCONT).unwrap();
    // What is on its way to us has been heard, and passed on if it is to be.
    until(async || {
        let status = read_to_string(format!("/proc/{us}/status")).unwrap();
        let pending = |line: &str| line.contains("Pnd:") && !line.ends_with("0000000000000000");
        status.contains("State:\tS") && !status.lines().any(pending)
    })
    .await;
    kill(us, Signal::SIGUSR1).unwrap();
    assert_eq!(terminal.code().await, 130);
    assert_eq!(desk.left("log"), "heard\n");
    let screen = desk.left("screen");
    assert!(
        screen.contains("SIGINT: attempt 1 is handed off"),
        "{screen}"
    );
    assert_eq!(desk.next("--attempts 1").await, "1 handed off\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_begins_anew_and_says_whether_there_was_a_run() {
    let server = Server::start();
    let desk = Desk::on(&server);
    assert_eq!(desk.end("clear job --yes").await.0, 0);
    assert!(desk.left("said.err").contains("there was no run"));
    assert_eq!(desk.run("a", "--retention 1h", "true").code().await, 0);
    // Not without being told so.
    assert_eq!(desk.end("clear job").await.0, 2);
    assert_eq!(desk.run("b", "--retention 1h", "true").code().await, 3);
    assert_eq!(desk.end("clear job --yes").await.0, 0);
    assert!(desk.left("said.err").contains("job: cleared"));
    assert_eq!(desk.run("b", "--retention 1h", "true").code().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_and_manual_pages_are_printed() {
    let desk = Desk::at(String::new());
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, text) = desk.end(&format!("completions {shell}")).await;
        assert_eq!(code, 0);
        assert!(text.contains("no-rejoin"), "{shell}: {text}");
    }
    let (code, page) = desk.end("man").await;
    assert_eq!(code, 0);
    assert!(page.contains(".TH locking-worker 1"), "{page}");
    let (code, page) = desk.end("man run").await;
    assert_eq!(code, 0);
    assert!(page.contains("done elsewhere"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_has_the_exit_codes_of_the_help() {
    let desk = Desk::at(String::new());
    let (code, help) = desk.end("run --help").await;
    assert_eq!(code, 0);
    let (_, table) = help.split_once("Exit codes:\n").unwrap();
    let page = include_str!("../../../docs/cli.md");
    for line in table.lines() {
        let (code, meaning) = line.trim().split_once(' ').unwrap();
        let row = format!("| {code} | {} |", meaning.trim());
        assert!(page.contains(&row), "{row}");
    }
    assert_eq!(table.lines().count(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_says_only_what_went_wrong() {
    let server = Server::start();
    let desk = Desk::on(&server);
    let script = "[ $LOCKING_WORKER_ATTEMPT = 2 ]";
    assert_eq!(desk.run("a", "--quiet", script).code().await, 0);
    let said = desk.left("a.err");
    assert_eq!(said, "locking-worker: job: attempt 1 failed: exit code 1\n");
}
