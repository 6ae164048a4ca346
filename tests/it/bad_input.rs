//! What a user can get wrong: each a typed error that names the value and the bound, never a hang
//! and never a write.

use std::error::Error as _;
use std::time::Duration;

use fred::types::{Builder as FredBuilder, Value};
use redis_locking_worker::{
    BuildError, Builder, Error, Key, KeyError, LockEvent, LockingWorker, Memory,
};
use testkit::{PATIENCE, Server, acquired, command, end, free_port};

/// The error of a build that must not take long.
async fn refused(builder: Builder) -> BuildError {
    let built = tokio::time::timeout(PATIENCE, builder.build())
        .await
        .expect("no hang");
    built.expect_err("a build that is refused")
}

fn in_memory(key: impl AsRef<[u8]>) -> Builder {
    LockingWorker::builder(key).in_memory(&Memory::new())
}

/// The error and its causes, as a user's log shows them.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

async fn keys_of(server: &Server) -> Value {
    command(&server.client().await, [b"KEYS", b"*"]).await
}

#[tokio::test]
async fn a_key_is_checked() {
    for (key, text) in [
        (&b""[..], "the key is empty; it needs at least 1 byte"),
        (
            &[b'k'; 65_536],
            "the key has 65536 bytes; at most 65535 are allowed",
        ),
        (
            b"a}b",
            "the key \"a}b\" contains `}` without a hash tag like `{tag}` of its own, so its side keys could not share its cluster slot",
        ),
        (
            b"{}a",
            "the key \"{}a\" contains `}` without a hash tag like `{tag}` of its own, so its side keys could not share its cluster slot",
        ),
    ] {
        let error = refused(in_memory(key)).await;
        assert!(matches!(error, BuildError::Key(_)));
        assert_eq!(error.to_string(), text);
    }
    let worker = in_memory("a").build().await.unwrap();
    assert_eq!(worker.with_key("").unwrap_err(), KeyError::Empty);
    assert!(Key::new([b'k'; Key::MAX_LEN]).is_ok());
}

#[tokio::test]
async fn a_duration_is_bounded() {
    type Set = fn(Builder, Duration) -> Builder;
    let options: [(&str, Set); 2] = [
        ("lock_timeout", Builder::lock_timeout),
        ("retention", Builder::retention),
    ];
    for (option, set) in options {
        for value in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_micros(999),
            Builder::MAX_DURATION + Duration::from_nanos(1),
            Duration::MAX,
        ] {
            let error = refused(set(in_memory("k"), value)).await;
            let text = format!("{option} is {value:?}; it must be from 1ms to 3153600000s");
            assert_eq!(error.to_string(), text);
        }
    }
}

/// Both ends of what is allowed really work, on a server too.
#[tokio::test]
async fn the_bounds_themselves_are_allowed() {
    let server = Server::start();
    for duration in [
        Builder::MIN_DURATION,
        Duration::from_micros(1_500),
        Builder::MAX_DURATION,
    ] {
        let builder = server
            .builder("k")
            .lock_timeout(duration)
            .retention(Builder::MAX_DURATION);
        let worker = builder.max_attempts(u32::MAX).build().await.unwrap();
        let guard = acquired(&mut worker.acquire()).await;
        assert_eq!(guard.attempt(), 1);
        guard.done().await.unwrap();
        command(&server.client().await, [b"DEL", b"k"]).await;
    }
}

#[tokio::test]
async fn renewal_is_checked_against_the_lease() {
    let lease = || in_memory("k").lock_timeout(Duration::from_secs(4));
    let seconds = Duration::from_secs;
    for (builder, text) in [
        (
            lease().renew_every(seconds(4)),
            "renew_every is 4s; it must be from 1ms to 1.8s",
        ),
        (
            lease().renew_every(Duration::from_millis(1_801)),
            "renew_every is 1.801s; it must be from 1ms to 1.8s",
        ),
        (
            lease().renew_every(Duration::ZERO),
            "renew_every is 0ns; it must be from 1ms to 1.8s",
        ),
        (
            lease()
                .margin(seconds(1))
                .renew_every(Duration::from_millis(1_501)),
            "renew_every is 1.501s; it must be from 1ms to 1.5s",
        ),
        (
            lease().margin(Duration::from_millis(2_001)),
            "margin is 2.001s; it must be from 0ns to 2s",
        ),
        (
            lease().stall_limit(Duration::from_millis(3_999)),
            "stall_limit is 3.999s; it must be from 4s to 3153600000s",
        ),
        (
            lease().stall_limit(Duration::MAX),
            "stall_limit is 18446744073709551615.999999999s; it must be from 4s to 3153600000s",
        ),
        (
            lease().renew().max_hold(Duration::from_millis(3_999)),
            "max_hold is 3.999s; it must be from 4s to 3153600000s",
        ),
        (
            lease().max_hold(Duration::MAX),
            "max_hold is 18446744073709551615.999999999s; it must be from 4s to 3153600000s",
        ),
    ] {
        let error = refused(builder).await;
        assert!(matches!(error, BuildError::Duration { .. }), "{error:?}");
        assert_eq!(error.to_string(), text);
    }
    for builder in [
        lease()
            .renew_every(Duration::from_millis(1_800))
            .max_hold(seconds(4)),
        lease().lock_timeout(Builder::MAX_DURATION).renew(),
        lease().margin(Duration::ZERO).stall_limit(seconds(4)),
        lease().margin(seconds(2)).renew_every(seconds(1)),
    ] {
        builder.build().await.unwrap();
    }
}

#[tokio::test]
async fn replicas_are_checked() {
    let second = Duration::from_secs(1);
    for (builder, text) in [
        (
            in_memory("k").replicas(0, second),
            "replicas is 0; it must be at least 1, or not be called",
        ),
        (
            in_memory("k").replicas(1, 6 * second),
            "replicas' timeout is 6s; it must be from 1ms to 5s",
        ),
        (
            in_memory("k").replicas(1, Duration::ZERO),
            "replicas' timeout is 0ns; it must be from 1ms to 5s",
        ),
        (
            in_memory("k").replicas(1, second),
            "the memory store has no replicas; `replicas` and `in_memory` exclude each other",
        ),
    ] {
        assert_eq!(refused(builder).await.to_string(), text);
    }
}

#[tokio::test]
async fn attempts_and_label_are_checked() {
    let error = refused(in_memory("k").max_attempts(0)).await;
    assert_eq!(
        error.to_string(),
        "max_attempts is 0; it must be at least 1"
    );
    for len in [0, 256] {
        let error = refused(in_memory("k").label("x".repeat(len))).await;
        let text = format!("the label has {len} bytes; it must have from 1 to 255");
        assert_eq!(error.to_string(), text);
    }
    let worker = in_memory("k").build().await.unwrap();
    assert!(
        worker
            .label()
            .ends_with(&format!(":{}", std::process::id())),
        "{}",
        worker.label()
    );
}

#[tokio::test]
async fn a_url_is_checked_and_its_secrets_are_not_shown() {
    for (url, shown) in [
        ("", ""),
        ("localhost", "localhost"),
        ("http://u:secret@h", "http://…@h"),
        ("redis-ring://h", "redis-ring://h"),
        ("redis://h:port", "redis://h:port"),
        ("redis://:secret@h:99999", "redis://…@h:99999"),
        ("redis://h/database", "redis://h/database"),
        ("redis://svc:secret?secret@db:6379", "redis://…"),
        ("redis://:secret@secret#w/secret?d@db", "redis://…"),
        ("redis://svc:secret/secret@db", "redis://…@db"),
    ] {
        let error = refused(LockingWorker::builder("k").url(url)).await;
        assert!(matches!(error, BuildError::Url { .. }), "{url}: {error:?}");
        assert_eq!(
            error.to_string(),
            format!("{shown:?} is not the URL of a server")
        );
        assert!(error.source().is_some());
        assert!(
            !format!("{error:?} {}", chain(&error)).contains("secret"),
            "{error:?}"
        );
    }
    for url in [
        "redis://:secret@h",
        "redis://svc:secret?secret@db:6379",
        "redis://:secret@secret#w/secret?d@db",
        "redis-sentinel://h?sentinelPassword=secret@secret",
    ] {
        let builder = LockingWorker::builder("k").url(url);
        assert!(!format!("{builder:?}").contains("secret"), "{builder:?}");
    }
}

#[tokio::test]
async fn what_ends_an_address_is_named() {
    let error = refused(LockingWorker::builder("k").url("redis://:a?b@db")).await;
    let advice = "a \"?\" in a user name or password is written %3F";
    assert!(chain(&error).ends_with(advice), "{}", chain(&error));
}

#[tokio::test]
async fn an_answer_timeout_is_bounded() {
    for (timeout, said) in [
        (Duration::from_millis(9), "9ms"),
        (Duration::from_secs(61), "61s"),
    ] {
        let error = refused(in_memory("k").answer_timeout(timeout)).await;
        let text = format!("answer_timeout is {said}; it must be from 10ms to 60s");
        assert_eq!(error.to_string(), text);
    }
    for timeout in [Builder::MIN_ANSWER_TIMEOUT, Builder::MAX_ANSWER_TIMEOUT] {
        in_memory("k")
            .answer_timeout(timeout)
            .build()
            .await
            .unwrap();
    }
}

#[tokio::test]
#[cfg(not(any(
    feature = "enable-rustls",
    feature = "enable-rustls-ring",
    feature = "enable-native-tls"
)))]
async fn tls_without_its_feature_is_refused() {
    let server = Server::start();
    for scheme in ["rediss", "valkeys", "rediss-cluster", "rediss-sentinel"] {
        let url = format!("{scheme}://127.0.0.1:{}", server.port);
        let error = refused(LockingWorker::builder("k").url(&url)).await;
        let features = "enable-rustls, enable-rustls-ring, enable-native-tls";
        let text =
            format!("{url:?} needs one of the features {features}, none of which is enabled");
        assert_eq!(error.to_string(), text);
    }
}

#[tokio::test]
#[cfg(not(feature = "unix-sockets"))]
async fn a_unix_socket_without_its_feature_is_refused() {
    let error = refused(LockingWorker::builder("k").url("redis+unix:///tmp/redis.sock")).await;
    assert!(
        matches!(
            error,
            BuildError::Feature {
                features: "unix-sockets",
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn no_server_is_an_error_at_build() {
    let port = free_port();
    let error = refused(LockingWorker::builder("k").host("127.0.0.1").port(port)).await;
    assert!(matches!(error, BuildError::Connect { .. }), "{error:?}");
    assert!(
        error.to_string().ends_with(&format!("127.0.0.1:{port}")),
        "{error}"
    );
    assert!(
        chain(&error).to_lowercase().contains("refused"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_server_that_says_nothing_is_an_error_at_build() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let error = refused(LockingWorker::builder("k").host("127.0.0.1").port(port)).await;
    assert!(matches!(error, BuildError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_wrong_password_is_an_error_at_build() {
    let server = Server::start_with(&["--requirepass", "right"]);
    for url in [
        format!("redis://127.0.0.1:{}", server.port),
        format!("redis://:wrong@127.0.0.1:{}", server.port),
    ] {
        let error = refused(LockingWorker::builder("k").url(url)).await;
        let said = chain(&error);
        assert!(
            said.contains("WRONGPASS") || said.contains("NOAUTH"),
            "{said}"
        );
        assert!(!said.contains("wrong@"), "{said}");
    }
    let url = format!("redis://:right@127.0.0.1:{}", server.port);
    LockingWorker::builder("k").url(url).build().await.unwrap();
}

#[tokio::test]
async fn a_client_without_a_reconnect_policy_is_refused() {
    let server = Server::start();
    let config = server.client().await;
    let config = fred::interfaces::ClientLike::client_config(&config);
    let client = FredBuilder::from_config(config).build().unwrap();
    fred::interfaces::ClientLike::init(&client).await.unwrap();
    let error = refused(LockingWorker::builder("k").client(client)).await;
    assert!(matches!(error, BuildError::NoReconnectPolicy), "{error:?}");
}

#[tokio::test]
async fn a_client_that_is_not_connected_is_an_error_at_build() {
    let server = Server::start();
    let client = fred::interfaces::ClientLike::client_config(&server.client().await);
    let policy = fred::types::config::ReconnectPolicy::new_constant(0, 20);
    let client = FredBuilder::from_config(client)
        .set_policy(policy)
        .build()
        .unwrap();
    let error = refused(LockingWorker::builder("k").client(client)).await;
    assert!(matches!(error, BuildError::Server(_)), "{error:?}");
}

#[tokio::test]
async fn a_callers_client_stays_the_callers() {
    let server = Server::start();
    let client = server.client().await;
    let worker = LockingWorker::builder("k")
        .client(client.clone())
        .build()
        .await
        .unwrap();
    acquired(&mut worker.acquire()).await.done().await.unwrap();
    worker.close().await;
    assert_eq!(command(&client, [b"EXISTS", b"k"]).await, Value::from(1));
}

type Foreign = (&'static [u8], &'static [u8], &'static [u8], &'static str);

/// Values that no run may touch, and what is said of them.
const FOREIGN: [Foreign; 4] = [
    (b"LPUSH", b"k", b"x", "k holds a value of another type"),
    (
        b"SET",
        b"k",
        b"x",
        "k holds a value that this version cannot read (not a lock record); it is left as it is",
    ),
    (
        b"SET",
        b"k",
        b"lw9 held",
        "k holds a value that this version cannot read (lw9); it is left as it is",
    ),
    (
        b"SET",
        b"k",
        b"lw1 held",
        "k holds a value that this version cannot read (lw1); it is left as it is",
    ),
];

#[tokio::test]
async fn a_key_in_other_use_is_an_error_at_build_and_left_alone() {
    for (set, key, value, text) in FOREIGN {
        let server = Server::start();
        let client = server.client().await;
        command(&client, [set, key, value]).await;
        let error = refused(server.builder("k")).await;
        let BuildError::Server(error) = error else {
            panic!("{error:?}");
        };
        assert_eq!(error.to_string(), text);
        assert!(error.is_fatal());
        assert_eq!(keys_of(&server).await, Value::Array(vec!["k".into()]));
    }
}

#[tokio::test]
async fn a_key_that_comes_into_other_use_ends_its_streams() {
    for (set, key, value, text) in FOREIGN {
        let server = Server::start();
        let client = server.client().await;
        let worker = server.builder("k").build().await.unwrap();
        command(&client, [set, key, value]).await;
        let dump = command(&client, [b"DUMP", b"k"]).await;
        match end(&mut worker.acquire()).await {
            LockEvent::Error(error) => assert_eq!(error.to_string(), text),
            other => panic!("{other:?}"),
        }
        assert_eq!(command(&client, [b"DUMP", b"k"]).await, dump);
        assert_eq!(keys_of(&server).await, Value::Array(vec!["k".into()]));
    }
}

#[tokio::test]
async fn a_line_in_other_use_ends_the_stream_before_anything_is_written() {
    let server = Server::start();
    let client = server.client().await;
    let worker = server.builder("k").build().await.unwrap();
    let mut first = worker.acquire();
    let guard = acquired(&mut first).await;
    command(&client, [b"SET", b"{k}:line", b"x"]).await;
    match end(&mut worker.acquire()).await {
        LockEvent::Error(Error::WrongType { key }) => assert_eq!(key.to_string(), "k"),
        other => panic!("{other:?}"),
    }
    command(&client, [b"DEL", b"{k}:line"]).await;
    guard.done().await.unwrap();
}
