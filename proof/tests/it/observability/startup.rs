//! What `build` finds out about a server.

use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};
use redis_locking_worker::{BuildError, LockingWorker, Warning};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::{Instrument, info_span};

use std::time::Duration;

use super::recorder::Recorder;
use testkit::{
    Cluster, Sentinel, Server, acquired, command, is_in_step, least_permissions, text, until,
};

/// Builds a worker there; what was warned of, which is told too.
async fn warned(url: &str) -> Vec<Warning> {
    let recorder = Recorder::install();
    let build = LockingWorker::builder("job:1").url(url).build();
    let worker = build.instrument(info_span!("startup")).await.unwrap();
    let warnings = worker.warnings();
    let lines = |warning| format!("startup: WARN startup check reason={warning}");
    let lines: Vec<_> = warnings.iter().map(lines).collect();
    assert_eq!(recorder.events(), lines);
    assert_eq!(worker.with_key("other").unwrap().warnings(), warnings);
    warnings.to_vec()
}

fn address(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port)
}

#[tokio::test]
async fn of_a_healthy_server_there_is_nothing_to_say() {
    let server = Server::start();
    assert_eq!(warned(&server.url()).await, []);
}

#[tokio::test]
async fn a_policy_that_evicts_is_warned_of() {
    for policy in ["allkeys-lru", "volatile-ttl"] {
        let server = Server::start_with(&["--maxmemory-policy", policy]);
        let eviction = Warning::Eviction {
            server: address(&server),
            policy: policy.to_owned(),
        };
        assert_eq!(warned(&server.url()).await, [eviction]);
    }
}

#[tokio::test]
async fn a_replica_is_warned_of() {
    let master = Server::start_with(&["--repl-diskless-sync-delay", "0"]);
    let port = master.port.to_string();
    let server = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
    let client = server.client().await;
    until(async || is_in_step(&client).await).await;
    let replica = Warning::Replica {
        server: address(&server),
    };
    assert_eq!(warned(&server.url()).await, [replica]);
    assert_eq!(warned(&master.url()).await, []);
}

/// From now on it may evict locks; what there is to warn of.
async fn let_evict(server: &Server) -> Warning {
    let set: [&[u8]; 4] = [b"CONFIG", b"SET", b"maxmemory-policy", b"volatile-lru"];
    command(&server.client().await, set).await;
    Warning::Eviction {
        server: address(server),
        policy: "volatile-lru".to_owned(),
    }
}

#[tokio::test]
async fn in_a_cluster_each_node_is_looked_at() {
    let cluster = Cluster::start().await;
    let eviction = let_evict(cluster.node(2)).await;
    assert_eq!(warned(&cluster.url()).await, [eviction]);
}

#[tokio::test]
async fn behind_sentinels_it_is_the_master() {
    let sentinel = Sentinel::start();
    let eviction = let_evict(&sentinel.master).await;
    assert_eq!(warned(&sentinel.url()).await, [eviction]);
}

#[tokio::test]
async fn a_user_without_info_is_told_nothing_and_served() {
    let server = Server::start();
    let eviction = let_evict(&server).await;
    let permit = async |more: &[&'static str]| {
        let args = ["SETUSER", "worker", "on", ">p"].into_iter();
        let args = args.chain(least_permissions()).chain(more.iter().copied());
        let args: Vec<Value> = args.map(Value::from).collect();
        let acl = CustomCommand::new_static("ACL", None, false);
        let _: Value = server.client().await.custom(acl, args).await.unwrap();
    };
    let url = server.url().replace("://", "://worker:p@");
    permit(&[]).await;
    assert_eq!(warned(&url).await, []);
    permit(&["+info"]).await;
    assert_eq!(warned(&url).await, [eviction]);
}

/// The real thing cannot run the scripts, and need not be there: this one says that it is old, and is not.
#[tokio::test]
async fn an_old_server_is_warned_of_and_named_when_it_refuses() {
    let server = Server::start();
    let client = server.client().await;
    let info = text(&client, [b"INFO", b"server"]).await;
    let version = info.lines().find_map(|line| line.strip_prefix(VERSION));
    let version = ["6", &version.unwrap()[1..]].concat();
    let pretender = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = pretender.local_addr().unwrap().to_string();
    let behind = server.port;
    tokio::spawn(async move {
        while let Ok((client, _)) = pretender.accept().await {
            tokio::spawn(pretend(client, behind));
        }
    });
    let url = format!("redis://{address}");
    let old = Warning::OldServer {
        server: address.clone(),
        version: version.clone(),
    };
    assert_eq!(warned(&url).await, [old]);

    let deny: [&[u8]; 4] = [b"ACL", b"SETUSER", b"default", b"-@scripting"];
    command(&client, deny).await;
    let error = LockingWorker::builder("job:1").url(url).build().await;
    let error = error.unwrap_err();
    assert!(matches!(error, BuildError::OldServer { .. }), "{error:?}");
    let said = format!("{address} is Redis {version}; 7.0 is the oldest that can be used");
    assert_eq!(error.to_string(), said);
}

const VERSION: &str = "redis_version:";

/// Passes on what both say, but for the first digit of the version.
async fn pretend(client: TcpStream, server: u16) {
    let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
    let (mut questions, mut told) = client.into_split();
    let (mut answers, mut asked) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut questions, &mut asked).await });
    let mut answer = vec![0; 1 << 16];
    while let Ok(len @ 1..) = answers.read(&mut answer).await {
        let answer = &mut answer[..len];
        let mut places = answer.windows(VERSION.len());
        if let Some(at) = places.position(|place| place == VERSION.as_bytes()) {
            answer[at + VERSION.len()] = b'6';
        }
        if told.write_all(answer).await.is_err() {
            return;
        }
    }
}

/// The thread that keeps leases tells what it does where the worker was built, also while that runtime is blocked.
#[tokio::test]
async fn a_lease_that_the_keeper_ends_is_told_where_its_worker_was_built() {
    let server = Server::start();
    let recorder = Recorder::install();
    let lease = Duration::from_millis(300);
    let builder = server.builder("job").label("a").lock_timeout(lease).renew();
    let worker = builder.stall_limit(lease).build().await.unwrap();
    let guard = acquired(&mut worker.acquire()).await;
    let token = guard.cancellation_token();
    // Two renewals are told by the other thread, too.
    until(async || recorder.events().len() > 2).await;
    while !token.is_cancelled() {
        std::thread::sleep(lease / 10);
    }
    let events = recorder.events();
    let [acquired, renewed, .., lost] = &events[..] else {
        panic!("{events:?}");
    };
    let told = "participation/work: ";
    assert_eq!(
        acquired,
        &format!("{told}INFO acquired key=job attempt=1 fencing_token=#0")
    );
    assert_eq!(
        renewed,
        &format!("{told}DEBUG renewed key=job attempt=1 fencing_token=#0")
    );
    let stalled = format!(
        "{told}WARN lost key=job attempt=1 fencing_token=#0 reason=the lease was lost: the process"
    );
    assert!(lost.starts_with(&stalled), "{lost}");
    let figures = recorder.figures();
    assert!(
        figures.contains(&"lease_losses_total reason=stalled = 1".to_owned()),
        "{figures:?}"
    );
    assert!(
        figures
            .iter()
            .any(|figure| figure.starts_with("hold_seconds = [0.")),
        "{figures:?}"
    );
}
