//! Real servers, clusters and sentinels for the tests, started as child processes on free ports of
//! 127.0.0.1. `proxy` cuts and stalls connections to them.

pub mod bench;
#[cfg(target_os = "linux")]
pub mod clocks;
pub mod proxy;
pub mod text;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ReconnectPolicy, ServerConfig};
use fred::types::{Builder as FredBuilder, ClusterHash, CustomCommand, Value};
use futures::StreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis_locking_worker::{Acquire, Builder, LockEvent, LockingWorker, ServerError, WorkGuard};
use tempfile::TempDir;

/// Longest wait for anything that must happen. It is far longer than the wait ever takes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A `redis-server` of one test. Dropping it kills the server.
pub struct Server {
    pub port: u16,
    child: Option<Child>,
    args: Vec<String>,
    environment: Vec<(String, String)>,
    dir: TempDir,
}

impl Server {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(args: &[&str]) -> Self {
        Self::start_in(&[], args)
    }

    /// Starts a server with additional environment variables.
    pub fn start_in(environment: &[(&str, &str)], args: &[&str]) -> Self {
        Self::start_as(environment, &[&["--save", ""], args].concat(), None)
    }

    /// Starts a server, with a configuration file if one is given.
    fn start_as(environment: &[(&str, &str)], args: &[&str], config: Option<&str>) -> Self {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let mut server = Self {
            port: 0,
            child: None,
            args: args.iter().map(ToString::to_string).collect(),
            environment: environment.iter().map(owned).collect(),
            dir: TempDir::new().expect("a temporary directory"),
        };
        if let Some(config) = config {
            std::fs::write(server.dir.path().join("server.conf"), config).expect("a file");
        }
        // Another process may take the free port before the server binds it. The server then
        // exits, and the next try uses another port.
        for _ in 0..20 {
            server.port = free_port();
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server found no free port in 20 tries");
    }

    /// Starts the server again, on its port and in its directory.
    pub fn restart(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.launch() {
            assert!(Instant::now() < until, "redis-server does not start again");
        }
    }

    fn launch(&mut self) -> bool {
        let config = self.dir.path().join("server.conf");
        let child = Command::new(program())
            .args(config.exists().then_some(&config))
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--dir",
            ])
            .arg(self.dir.path())
            .args(&self.args)
            .envs(self.environment.iter().cloned())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a server to start");
        let child = self.child.insert(child);
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if child.try_wait().expect("a child").is_some() {
                return false;
            }
            if answers(self.port) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("redis-server does not answer on port {}", self.port);
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns a builder of workers on this server, by its address.
    pub fn builder(&self, key: &str) -> Builder {
        LockingWorker::builder(key)
            .host("127.0.0.1")
            .port(self.port)
    }

    /// Builds two workers with separate connections, as in two processes.
    pub async fn pair(&self) -> (LockingWorker, LockingWorker) {
        let build = |label| self.builder("job").label(label).build();
        (build("a").await.unwrap(), build("b").await.unwrap())
    }

    /// Connects a client with the settings that the crate asks of a caller's client.
    pub async fn client(&self) -> Client {
        Self::client_at(self.port).await
    }

    /// Connects such a client to any port of 127.0.0.1, such as that of a proxy.
    pub async fn client_at(port: u16) -> Client {
        let config = Config {
            server: ServerConfig::new_centralized("127.0.0.1", port),
            ..Config::default()
        };
        let policy = ReconnectPolicy::new_constant(0, 20);
        let client = FredBuilder::from_config(config)
            .set_policy(policy)
            .build()
            .unwrap();
        client.init().await.unwrap();
        client
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("a running server");
        kill(Pid::from_raw(child.id() as i32), signal).expect("a child to signal");
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // SIGKILL also ends a stopped process.
            child.kill().expect("a child to kill");
            child.wait().expect("a child to wait for");
        }
    }

    /// Monitors every command that the server receives from now on, with `MONITOR`.
    pub fn monitor(&self) -> Monitor {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"MONITOR\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut ok = String::new();
        lines.read_line(&mut ok).unwrap();
        assert_eq!(ok, "+OK\r\n");
        Monitor {
            lines,
            port: self.port,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Monitor {
    lines: BufReader<TcpStream>,
    port: u16,
}

impl Monitor {
    /// Returns the names of the commands that clients sent since the last call. Leaves out commands
    /// inside scripts, the connections' own (`PING` and beats) and this method's mark.
    pub fn commands(&mut self) -> Vec<String> {
        self.calls().into_iter().map(|(_, name)| name).collect()
    }

    /// Returns the same commands, each with the address of the client that sent it.
    pub fn calls(&mut self) -> Vec<(String, String)> {
        self.seen(false)
    }

    /// Returns the names of the commands, including `PING` and beats.
    pub fn all(&mut self) -> Vec<String> {
        self.seen(true).into_iter().map(|(_, name)| name).collect()
    }

    fn seen(&mut self, beats: bool) -> Vec<(String, String)> {
        let mark = format!("mark-{}", rand_number());
        let mut client = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(client, "ECHO {mark}\r\n").unwrap();
        let mut calls = Vec::new();
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            if line.contains(&mark) {
                return calls;
            }
            // +1339518083.107412 [0 127.0.0.1:60866] "evalsha" "…"
            let (head, command) = line.split_once("] ").expect("a line of MONITOR");
            let name = command.split('"').nth(1).unwrap().to_uppercase();
            let (_, from) = head.rsplit_once(' ').unwrap();
            let own = name == "PING" || command.contains(":beat:");
            if from != "lua" && (beats || !own) {
                calls.push((from.to_owned(), name));
            }
        }
    }
}

/// Waits until the clients send no more commands. A waiter, for example, claims again once its
/// subscription stands.
pub async fn until_quiet(monitor: &mut Monitor) {
    let mut quiet = 0;
    while quiet < 3 {
        quiet = match monitor.commands().is_empty() {
            true => quiet + 1,
            false => 0,
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn rand_number() -> u128 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_nanos()
}

/// Returns the name of the server program on `PATH`.
fn program() -> &'static str {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    ["redis-server", "valkey-server"]
        .into_iter()
        .find(|program| folders.iter().any(|folder| folder.join(program).is_file()))
        .expect("redis-server or valkey-server on PATH (scripts/test.sh installs one)")
}

pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn answers(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    stream
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    let mut answer = String::new();
    stream.write_all(b"PING\r\n").is_ok()
        && BufReader::new(stream).read_line(&mut answer).is_ok()
        // A server with a password answers -NOAUTH, which is an answer too.
        && (answer.starts_with("+PONG") || answer.starts_with("-NOAUTH"))
}

/// Sends any command. In a cluster, the first argument after its name decides the node.
pub async fn command<const N: usize>(client: &Client, command: [&[u8]; N]) -> Value {
    let name = String::from_utf8(command[0].to_vec()).unwrap();
    let args: Vec<Value> = command[1..].iter().map(|arg| (*arg).into()).collect();
    let custom = CustomCommand::new(name, ClusterHash::FirstKey, false);
    client.custom(custom, args).await.unwrap()
}

/// Returns a record's state and attempt.
pub fn state_of(record: &str) -> String {
    let words: Vec<&str> = record.split(' ').collect();
    let attempt = words.iter().find(|word| word.starts_with("attempt="));
    [words[1], attempt.expect("a record")].join(" ")
}

/// Returns the next event. Fails the test if none comes.
pub async fn next(stream: &mut Acquire) -> LockEvent {
    let event = tokio::time::timeout(PATIENCE, stream.next()).await;
    event.expect("an event in time").expect("another event")
}

/// Reads events up to one that matches, and skips the others.
#[macro_export]
macro_rules! until {
    ($stream:expr, $pattern:pat => $value:expr) => {
        loop {
            match $crate::next(&mut $stream).await {
                $pattern => break $value,
                event if event.is_terminal() => panic!("ended early: {event:?}"),
                _ => {}
            }
        }
    };
}

/// Reads events up to the guard.
pub async fn acquired(stream: &mut Acquire) -> WorkGuard {
    until!(*stream, LockEvent::Acquired(guard) => guard)
}

/// Reads events up to the one that says that another holder has the key. The stream is then in the
/// queue.
pub async fn locked(stream: &mut Acquire) -> redis_locking_worker::Locked {
    until!(*stream, LockEvent::Locked(locked) => locked)
}

/// Lets one worker hold the key and the other wait in the queue.
pub async fn race(holder: &LockingWorker, waiter: &LockingWorker) -> (Acquire, WorkGuard, Acquire) {
    let (mut first, mut second) = (holder.acquire(), waiter.acquire());
    let guard = acquired(&mut first).await;
    locked(&mut second).await;
    (first, guard, second)
}

/// Reads events up to the terminal one, and checks that nothing follows it.
pub async fn end(stream: &mut Acquire) -> LockEvent {
    loop {
        let event = next(stream).await;
        if event.is_terminal() {
            assert!(stream.next().await.is_none());
            assert!(stream.next().await.is_none(), "None for ever");
            return event;
        }
    }
}

/// A cluster of three masters that share the slots, with replicas of the first.
pub struct Cluster {
    nodes: Vec<Server>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(0).await
    }

    pub async fn start_with(replicas: usize) -> Self {
        let slots = [("0", "5460"), ("5461", "10922"), ("10923", "16383")];
        let mut nodes = Vec::new();
        let mut clients = Vec::new();
        let mut buses = Vec::new();
        for _ in 0..slots.len() + replicas {
            let bus = free_port().to_string();
            let node = Server::start_with(&[
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-node-timeout",
                "2000",
                // A replica may take over however long its link to the master was down.
                "--cluster-replica-validity-factor",
                "0",
                "--repl-diskless-sync-delay",
                "0",
            ]);
            clients.push(node.client().await);
            nodes.push(node);
            buses.push(bus);
        }
        for (client, (first, last)) in clients.iter().zip(slots) {
            let slots: [&[u8]; 4] = [
                b"CLUSTER",
                b"ADDSLOTSRANGE",
                first.as_bytes(),
                last.as_bytes(),
            ];
            command(client, slots).await;
        }
        for (node, bus) in nodes.iter().zip(&buses).skip(1) {
            let port = node.port.to_string();
            let meet: [&[u8]; 5] = [
                b"CLUSTER",
                b"MEET",
                b"127.0.0.1",
                port.as_bytes(),
                bus.as_bytes(),
            ];
            command(&clients[0], meet).await;
        }
        let known = format!("cluster_known_nodes:{}", nodes.len());
        for client in &clients {
            let joined = async || {
                let info = text(client, [b"CLUSTER", b"INFO"]).await;
                info.contains("cluster_state:ok") && info.contains(&known)
            };
            until(joined).await;
        }
        let master = text(&clients[0], [b"CLUSTER", b"MYID"]).await;
        for replica in &clients[slots.len()..] {
            command(replica, [b"CLUSTER", b"REPLICATE", master.as_bytes()]).await;
            until(async || is_in_step(replica).await).await;
        }
        Self { nodes }
    }

    pub fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port)
    }

    pub fn node(&self, nth: usize) -> &Server {
        &self.nodes[nth]
    }

    pub fn nodes(&mut self) -> &mut Vec<Server> {
        &mut self.nodes
    }
}

/// Whether a replica is connected to its master and has loaded the master's data.
pub async fn is_in_step(replica: &Client) -> bool {
    let info = text(replica, [b"INFO", b"replication"]).await;
    info.contains("role:slave") && info.contains("master_link_status:up")
}

/// Sends a command that is answered with text, and returns the text.
pub async fn text<const N: usize>(client: &Client, words: [&[u8]; N]) -> String {
    command(client, words).await.into_string().expect("words")
}

/// Waits until a condition holds, at most for [`PATIENCE`].
pub async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "it does not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A master and the sentinel that watches it.
pub struct Sentinel {
    pub master: Server,
    sentinel: Server,
}

/// Returns the number of replicas whose link the sentinel knows to be up: it promotes no others.
pub async fn replicas_of(sentinel: &Client) -> usize {
    let replicas = command(sentinel, [b"SENTINEL", b"REPLICAS", b"main"]).await;
    let looked_at = |replica: Value| {
        let words = replica.into_array();
        words.chunks(2).any(|pair| {
            let [field, value] = [0, 1].map(|nth| pair[nth].as_str().unwrap_or_default());
            field == "master-link-status" && value == "ok"
        })
    };
    let replicas = replicas.into_array().into_iter();
    replicas.map(looked_at).filter(|is| *is).count()
}

/// A master with replicas, and the sentinels that watch them.
pub struct Sentinels {
    /// The master, then its replicas.
    pub nodes: Vec<Server>,
    pub sentinels: Vec<Server>,
}

impl Sentinels {
    /// Starts three sentinels: two of them are still a majority when one is gone.
    pub async fn start(replicas: usize) -> Self {
        let mut nodes = vec![Server::start_with(&["--repl-diskless-sync-delay", "0"])];
        let port = nodes[0].port.to_string();
        for _ in 0..replicas {
            let replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
            let client = replica.client().await;
            until(async || is_in_step(&client).await).await;
            nodes.push(replica);
        }
        let rules = format!(
            "sentinel monitor main 127.0.0.1 {port} 2
             sentinel down-after-milliseconds main 1000
             sentinel failover-timeout main 10000\n"
        );
        let start = |_| Server::start_as(&[], &["--sentinel"], Some(&rules));
        let sentinels: Vec<Server> = (0..3).map(start).collect();
        for sentinel in &sentinels {
            let client = sentinel.client().await;
            let knows_all = async || {
                let info = text(&client, [b"INFO", b"sentinel"]).await;
                info.contains("sentinels=3") && replicas_of(&client).await == replicas
            };
            until(knows_all).await;
        }
        Self { nodes, sentinels }
    }

    pub fn url(&self) -> String {
        let [first, others @ ..] = &self.sentinels[..] else {
            panic!("no sentinels");
        };
        let mut url = format!(
            "redis-sentinel://127.0.0.1:{}?sentinelServiceName=main",
            first.port
        );
        for other in others {
            url += &format!("&node=127.0.0.1:{}", other.port);
        }
        url
    }
}

impl Sentinel {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a sentinel with further rules besides the address of its master.
    pub fn start_with(rules: &[&str]) -> Self {
        let master = Server::start();
        let mut all = format!("sentinel monitor main 127.0.0.1 {} 1\n", master.port);
        for rule in rules {
            all += rule;
            all.push('\n');
        }
        let sentinel = Server::start_as(&[], &["--sentinel"], Some(&all));
        Self { master, sentinel }
    }

    /// Returns the port of the sentinel itself.
    pub fn port(&self) -> u16 {
        self.sentinel.port
    }

    /// Connects a client to the sentinel itself.
    pub async fn client(&self) -> Client {
        self.sentinel.client().await
    }

    pub fn url(&self) -> String {
        let port = self.sentinel.port;
        format!("redis-sentinel://127.0.0.1:{port}?sentinelServiceName=main")
    }
}

/// Returns the least permissions that a worker needs, as the README lists them for keys that begin
/// with `job:`.
pub fn least_permissions() -> impl Iterator<Item = &'static str> + Clone {
    let (_, rules) = include_str!("../../README.md")
        .split_once("ACL SETUSER worker on '>password' ")
        .unwrap();
    let words = rules.split("```").next().unwrap().split_whitespace();
    words
        .filter(|word| *word != "\\")
        .map(|word| word.trim_matches('\''))
}

/// The error of the client library.
pub fn client_error(error: &ServerError) -> &fred::error::Error {
    let error = error.get_ref().downcast_ref();
    error.expect("an error of the client library")
}

/// What the server said.
pub fn details(error: &ServerError) -> &str {
    client_error(error).details()
}
