//! Users with few permissions, and passwords that change.

use std::time::Duration;

use super::{chain, outage, until_acquired};
use fred::interfaces::ClientLike;
use fred::types::{CustomCommand, Value};
use fred::util::redis_keyslot;
use redis_locking_worker::{
    BuildError, Builder, Error, LockEvent, LockingWorker, RenewError, SettleError,
};
use testkit::{
    Cluster, Server, acquired, command, end, least_permissions, locked, race, state_of, text, until,
};

/// What a cluster needs besides, as the README has it.
const CLUSTER: [&str; 2] = ["+cluster|slots", "+cluster|info"];

async fn acl(server: &Server, rules: impl IntoIterator<Item = &str>) {
    let rules = ["SETUSER", "worker"].into_iter().chain(rules);
    let acl = CustomCommand::new_static("ACL", None, false);
    let client = server.client().await;
    let args: Vec<Value> = rules.map(Value::from).collect();
    let _: Value = client.custom(acl, args).await.unwrap();
}

/// Makes a user that may do this and nothing else.
async fn permit(server: &Server, rules: impl Iterator<Item = &str>) {
    acl(server, ["reset", "on", ">p"].into_iter().chain(rules)).await;
}

fn as_user(url: &str) -> Builder {
    let url = url.replace("://", "://worker:p@");
    LockingWorker::builder("job:1").url(url)
}

/// The whole of a run, with everything that the library asks of a server.
async fn whole_run(builder: impl Fn() -> Builder) {
    let build = async |label| builder().label(label).build().await.unwrap();
    let (a, b) = (build("a").await, build("b").await);
    let (mut first, guard, mut second) = race(&a, &b).await;
    let mut third = a.acquire();
    locked(&mut third).await;
    drop(third);
    guard.checkpoint("half").await.unwrap();
    guard.fail("no luck").await.unwrap();
    end(&mut first).await;
    acquired(&mut second).await.hand_off().await.unwrap();
    assert!(matches!(end(&mut second).await, LockEvent::Failed(_)));
    let mut fourth = a.acquire();
    acquired(&mut fourth).await.done().await.unwrap();
    assert!(matches!(end(&mut fourth).await, LockEvent::Completed(_)));
    a.close().await;
    b.close().await;
}

/// What the server has refused, other than what the client library does without.
async fn denied(server: &Server) -> Vec<String> {
    let client = server.client().await;
    let log = command(&client, [b"ACL", b"LOG"]).await.into_array();
    let object = |entry: Value| entry.into_array()[7].as_string().unwrap();
    let objects = log.into_iter().map(object);
    objects
        .filter(|object| !["info", "client|id"].contains(&&**object))
        .collect()
}

#[tokio::test]
async fn the_documented_permissions_are_enough() {
    let server = Server::start();
    permit(&server, least_permissions()).await;
    whole_run(|| as_user(&server.url())).await;
    assert_eq!(denied(&server).await, [""; 0]);
}

#[tokio::test]
async fn in_a_cluster_two_more_are_enough_and_needed() {
    let cluster = Cluster::start().await;
    let permit = async |missing| {
        for node in 0..3 {
            let rules = least_permissions().chain(CLUSTER);
            let rules = rules.filter(|rule| *rule != missing);
            permit(cluster.node(node), rules).await;
        }
    };
    permit("").await;
    whole_run(|| as_user(&cluster.url())).await;
    for node in 0..3 {
        assert_eq!(denied(cluster.node(node)).await, [""; 0]);
    }
    // Whether its subscriptions still hear anything it can ask the node of each awaited key, and does.
    let worker = as_user(&cluster.url()).build().await.unwrap();
    for key in ["job:2", "job:3", "job:4"] {
        let worker = worker.with_key(key).unwrap();
        let (_first, _guard, _second) = race(&worker, &worker).await;
        let node = usize::from(redis_keyslot(key.as_bytes()) / 5461).min(2);
        let client = cluster.node(node).client().await;
        let beats = async || {
            let stats = text(&client, [b"INFO", b"commandstats"]).await;
            let mut lines = stats.lines();
            let line = lines.find(|line| line.starts_with("cmdstat_ssubscribe:"));
            let calls = line.and_then(|line| line.split(['=', ',']).nth(1)?.parse::<u32>().ok());
            calls.unwrap_or(0)
        };
        let before = beats().await;
        until(async || beats().await > before + 2).await;
    }
    for missing in CLUSTER {
        permit(missing).await;
        let error = as_user(&cluster.url()).build().await.unwrap_err();
        assert!(matches!(error, BuildError::Connect { .. }), "{error:?}");
        assert!(chain(&error).contains(&missing[1..]), "{error:?}");
    }
}

#[tokio::test]
async fn with_replicas_one_more_is_enough_and_without_it_a_grant_is_given_back() {
    let master = Server::start_with(&["--repl-diskless-sync-delay", "0"]);
    let port = master.port.to_string();
    let _replica = Server::start_with(&["--replicaof", "127.0.0.1", &port]);
    let client = master.client().await;
    let in_step = async || {
        let info = text(&client, [b"INFO", b"replication"]).await;
        info.contains("state=online")
    };
    until(in_step).await;
    let builder = || as_user(&master.url()).replicas(1, Duration::from_secs(1));
    permit(&master, least_permissions().chain(["+wait"])).await;
    whole_run(builder).await;
    assert_eq!(denied(&master).await, [""; 0]);

    command(&client, [b"FLUSHALL"]).await;
    permit(&master, least_permissions()).await;
    let worker = builder().build().await.unwrap();
    match end(&mut worker.acquire()).await {
        LockEvent::Error(error @ Error::Refused { .. }) => {
            assert!(chain(&error).contains("'wait'"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    worker.close().await;
    let record = text(&client, [b"GET", b"job:1"]).await;
    assert_eq!(state_of(&record), "open attempt=0/5", "it was carried out");
}

/// What Redis 7.0 says when it is missing, and what newer servers do, if not its name.
fn named(rule: &str) -> [&str; 2] {
    match rule {
        "~job:*" | "~{job:*" => ["access one of the keys", "access a key"],
        "&{job:*}:line*" => ["SPUBLISH"; 2],
        // So it is within a script.
        "+time" => ["this command", "'time'"],
        command => [&command[1..]; 2],
    }
}

#[tokio::test]
async fn one_permission_less_is_a_fatal_error_that_names_it_and_nothing_is_granted() {
    let server = Server::start();
    let client = server.client().await;
    assert!(least_permissions().count() > 15);
    for missing in least_permissions() {
        // So that it is sent as a whole.
        command(&client, [b"SCRIPT", b"FLUSH"]).await;
        permit(&server, least_permissions().filter(|rule| *rule != missing)).await;
        let error = match as_user(&server.url()).build().await {
            Err(BuildError::Server(error @ Error::Refused { .. })) => error,
            other => panic!("{missing}: {other:?}"),
        };
        let said = chain(&error).to_lowercase();
        let mut words = named(missing).into_iter().map(str::to_lowercase);
        assert!(words.any(|words| said.contains(&words)), "{said}");
        let exists = command(&client, [b"EXISTS", b"job:1"]).await;
        assert_eq!(exists, Value::from(0), "{missing}");
    }
}

#[tokio::test]
async fn a_waiter_that_may_not_subscribe_any_more_ends_with_an_error_that_says_so() {
    let server = Server::start();
    let holder = LockingWorker::builder("job:1").url(server.url()).build();
    let guard = acquired(&mut holder.await.unwrap().acquire()).await;
    permit(&server, least_permissions()).await;
    let worker = as_user(&server.url()).build().await.unwrap();
    acl(&server, ["-ssubscribe"]).await;
    match end(&mut worker.acquire()).await {
        LockEvent::Error(error @ Error::Refused { .. }) => {
            assert!(chain(&error).contains("'ssubscribe'"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
    worker.close().await;
    let left = command(&server.client().await, [b"EXISTS", b"{job:1}:line"]).await;
    assert_eq!(left, Value::from(0), "it left the line");
    guard.done().await.unwrap();
}

#[tokio::test]
async fn a_server_without_ssubscribe_is_refused_by_build() {
    for command in ["SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH"] {
        let server = Server::start_with(&["--rename-command", command, ""]);
        match server.builder("job").build().await {
            Err(BuildError::Server(error @ Error::Refused { .. })) => {
                assert!(chain(&error).contains(command), "{error:?}");
            }
            other => panic!("{command}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn in_another_database_its_own_channels_are_enough() {
    let server = Server::start();
    let rules = |channels| {
        least_permissions().map(move |rule| match rule.strip_prefix('&') {
            Some(_) => channels,
            None => rule,
        })
    };
    permit(&server, rules("&{job:*}:line:3*").chain(["+select"])).await;
    whole_run(|| as_user(&format!("{}/3", server.url()))).await;
    assert_eq!(denied(&server).await, [""; 0]);
    match as_user(&server.url()).build().await {
        Err(BuildError::Server(error @ Error::Refused { .. })) => {
            assert!(chain(&error).contains("SPUBLISH"), "{error:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_password_may_have_any_character() {
    let server = Server::start();
    for (password, written) in [
        ("a b", "a%20b"),
        ("a\"b", "a%22b"),
        ("'\\ \"'", "'%5C%20%22'"),
        ("\t\u{1}é", "%09%01%C3%A9"),
    ] {
        let secret = [">", password].concat();
        permit(&server, least_permissions()).await;
        acl(&server, ["resetpass", &secret]).await;
        let url = server
            .url()
            .replace("://", &format!("://worker:{written}@"));
        whole_run(|| LockingWorker::builder("job:1").url(url.clone())).await;
        command(&server.client().await, [b"FLUSHALL"]).await;
    }
}

#[tokio::test]
async fn a_permission_that_is_revoked_ends_holder_and_waiter_and_the_record_stays() {
    for revoked in ["-evalsha", "-set", "resetkeys"] {
        let server = Server::start();
        permit(&server, least_permissions()).await;
        let build = || as_user(&server.url()).lock_timeout(Duration::from_millis(500));
        let (a, b) = (
            build().build().await.unwrap(),
            build().build().await.unwrap(),
        );
        let (mut first, guard, mut second) = race(&a, &b).await;
        acl(&server, [revoked]).await;
        let renewed = guard.checkpoint("half").await;
        assert!(
            matches!(renewed, Err(RenewError::Refused(_))),
            "{renewed:?}"
        );
        let settled = guard.done().await;
        assert!(
            matches!(settled, Err(SettleError::Refused(_))),
            "{settled:?}"
        );
        for stream in [&mut first, &mut second] {
            let event = end(stream).await;
            assert!(
                matches!(event, LockEvent::Error(Error::Refused { .. })),
                "{revoked}: {event:?}"
            );
        }
        let record = text(&server.client().await, [b"GET", b"job:1"]).await;
        assert_eq!(state_of(&record), "held attempt=1/5", "{revoked}");
    }
}

#[tokio::test]
async fn a_password_that_changes_is_one_outage_until_it_is_right_again() {
    let server = Server::start();
    permit(&server, least_permissions()).await;
    let worker = as_user(&server.url()).build().await.unwrap();
    acl(&server, ["resetpass", ">q"]).await;
    let kill: [&[u8]; 4] = [b"CLIENT", b"KILL", b"USER", b"worker"];
    command(&server.client().await, kill).await;
    let mut stream = worker.acquire();
    outage(&mut stream, "job:1").await;
    // A new one is told at once what is wrong.
    let error = as_user(&server.url()).build().await.unwrap_err();
    assert!(chain(&error).contains("WRONGPASS"), "{error:?}");
    acl(&server, [">p"]).await;
    let (guard, outages) = until_acquired(&mut stream).await;
    assert_eq!(outages, 0);
    guard.done().await.unwrap();
}
