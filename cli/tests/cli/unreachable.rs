//! A server that cannot be reached, is loading, or refuses at the beginning.

use super::*;

const ALL: [&str; 4] = [
    "run job -- true",
    "status job",
    "watch job",
    "clear job --yes",
];

/// As it was before there was a bound: one try.
const AT_ONCE: &str = " --wait-for-server 0s ";

fn with(args: &str, option: &str) -> String {
    let (subcommand, rest) = args.split_once(' ').unwrap();
    [subcommand, option, rest].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_comes_later_is_waited_for() {
    let port = free_port();
    let desk = Desk::at(format!("redis://127.0.0.1:{port}"));
    let names = ["run", "status", "watch", "clear"];
    let mut processes: Vec<Process> = names
        .into_iter()
        .zip(ALL)
        .map(|(name, args)| desk.start_as(name, args, &[]))
        .collect();
    for name in names {
        let file = format!("{name}.err");
        until(async || desk.left(&file).contains("trying again for up to 30s")).await;
    }
    // What it waits for is told once.
    let said = desk.left("run.err");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("onnection refused"), "{said}");
    let server = Server::start();
    let proxy = Proxy::start_on(port, server.port).await;
    assert_eq!(processes[0].code().await, 0);
    assert_eq!(processes[1].code().await, 0);
    assert_eq!(processes[3].code().await, 0);
    until(async || desk.left("watch.out").contains("job: ")).await;
    drop(proxy);
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_server_is_waited_for() {
    let server = Server::start_with(&["--enable-debug-command", "yes"]);
    let client = server.client().await;
    command(&client, [b"DEBUG", b"POPULATE", b"4000"]).await;
    for (name, value) in [
        ("key-load-delay", "1000"),
        ("loading-process-events-interval-bytes", "1024"),
    ] {
        let set = ["CONFIG", "SET", name, value];
        command(&client, set.map(str::as_bytes)).await;
    }
    let loader = server.client().await;
    let loaded = tokio::spawn(async move { command(&loader, [b"DEBUG", b"RELOAD"]).await });
    let desk = Desk::on(&server);
    until(async || {
        let (code, _) = desk.end(&with("status job", AT_ONCE)).await;
        let said = desk.left("said.err");
        code == 6 && said.contains("LOADING") && said.contains("The server is starting")
    })
    .await;
    let mut process = desk.run("a", "", "true");
    assert_eq!(process.code().await, 0);
    assert!(desk.left("a.err").contains("LOADING"));
    loaded.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_for_server_is_bounded_and_ends_with_6() {
    let nobody = Desk::at(format!("redis://127.0.0.1:{}", free_port()));
    let began = Instant::now();
    assert_eq!(
        nobody
            .end(&with(ALL[0], " --wait-for-server 1500ms "))
            .await
            .0,
        6
    );
    let took = began.elapsed();
    assert!(took > Duration::from_millis(400), "no second try: {took:?}");
    let said = nobody.left("said.err");
    assert!(said.contains("trying again for up to 1s 500ms"), "{said}");
    assert!(
        said.ends_with("--url or REDIS_URL names another.\n"),
        "{said}"
    );
    // A try that no server answers takes 2 s: the second is cut off by the bound.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let silent_desk = Desk::at(format!("redis://127.0.0.1:{port}"));
    let began = Instant::now();
    let args = with(ALL[0], " --wait-for-server 2300ms ");
    assert_eq!(silent_desk.end(&args).await.0, 6);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(3_500), "{took:?}");
    let said = silent_desk.left("said.err");
    assert!(said.contains("The server does not answer"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_the_wait_for_a_server() {
    let nobody = Desk::at(format!("redis://127.0.0.1:{}", free_port()));
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        for args in ALL {
            let mut process = nobody.start(&with(args, " --wait-for-server 1h "));
            until(async || {
                nobody
                    .left("said.err")
                    .contains("trying again for up to 1h")
            })
            .await;
            process.signal(signal);
            assert_eq!(process.code().await, code, "{args}");
        }
    }
}

/// Each of these is final: it is not waited for, although half a minute is allowed.
#[tokio::test(flavor = "multi_thread")]
async fn advice_follows_from_the_servers_word() {
    let secured = Server::start_with(&["--requirepass", "right"]);
    let old = Server::start_with(&["--rename-command", "HELLO", ""]);
    let port = secured.port;
    for (url, says, advises) in [
        (secured.url(), "NOAUTH", "redis://USER:PASSWORD@HOST:PORT"),
        (
            format!("redis://:wrong@127.0.0.1:{port}"),
            "WRONGPASS",
            "knows no such user and password",
        ),
        (
            format!("redis://:right@127.0.0.1:{port}/99"),
            "DB index is out of range",
            "number after the last /",
        ),
        (
            old.url(),
            "unknown command 'HELLO'",
            "Redis 7.0 is the oldest",
        ),
    ] {
        let desk = Desk::at(url);
        for args in ALL {
            assert_eq!(desk.end(args).await.0, 6, "{args}");
            let said = desk.left("said.err");
            assert!(said.contains(says), "{said}");
            assert!(said.contains(advises), "{said}");
            assert!(!said.contains("Is a server running"), "{said}");
            assert!(!said.contains("trying again"), "{said}");
            assert!(
                !said.contains("wrong@") && !said.contains("right@"),
                "{said}"
            );
        }
    }
    // A bad URL is a wrong argument.
    let desk = Desk::at("http://localhost".to_owned());
    assert_eq!(desk.end("run job -- true").await.0, 2);
    assert!(!desk.left("said.err").contains("trying again"));
}

#[tokio::test(flavor = "multi_thread")]
async fn full_and_unknown_servers_get_their_own_advice() {
    let full = Server::start_with(&["--maxclients", "1"]);
    let taken = std::net::TcpStream::connect(("127.0.0.1", full.port)).unwrap();
    let desk = Desk::on(&full);
    until(async || {
        assert_eq!(desk.end(&with("status job", AT_ONCE)).await.0, 6);
        desk.left("said.err").contains("Raise its maxclients")
    })
    .await;
    assert!(!desk.left("said.err").contains("Is a server running"));
    drop(taken);
    let desk = Desk::at("redis://no-such-host.invalid:6379".to_owned());
    assert_eq!(desk.end(&with("status job", AT_ONCE)).await.0, 6);
    let said = desk.left("said.err");
    assert!(said.contains("Is the host's name right"), "{said}");
    assert!(!said.contains("Is a server running"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn password_that_is_no_text_is_not_shown() {
    let url = std::os::unix::ffi::OsStrExt::from_bytes(b"redis://svc:S3cret\xff@localhost");
    let url: &std::ffi::OsStr = url;
    let mut process = Command::new(env!("CARGO_BIN_EXE_locking-worker"));
    let output = process
        .args(["status", "job"])
        .env("REDIS_URL", url)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("S3cret"), "{said}");
}
