//! An endpoint that never computes twice, whichever of its servers is asked, and however often.
//!
//! ```text
//! cargo run -p example-axum
//! cargo run -p example-axum -- --serve    # stays up: curl it
//! ```
//!
//! Several servers answer `GET /NAME`; the name is the key. Whoever is asked first computes, the others
//! wait for the same answer, and who asks within the retention gets it at once. A client that hangs up
//! stops nothing.
//!
//! With `REDIS_URL`, or with `redis-server` or `valkey-server` on PATH (which it starts on a free
//! port and stops again), the servers are processes. With neither they are tasks on the memory
//! store.

#[path = "../../common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt::Display;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use common::{Fleet, Result, Role, check, stop_signal};
use futures::future::try_join_all;
use redis_locking_worker::{LockingWorker, OnceError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

const COMPUTATION: Duration = Duration::from_millis(300);

/// An endpoint that never computes twice.
#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// How many servers
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    servers: u32,
    /// How many names are asked for
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    names: u32,
    /// How many requests there are for each name, all at the same time
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(2..))]
    requests: u32,
    /// Stay up, to be asked by others
    #[arg(long)]
    serve: bool,
}

#[derive(Clone)]
struct Server {
    worker: LockingWorker,
    role: Arc<Role>,
}

async fn answer(
    State(Server { worker, role }): State<Server>,
    Path(name): Path<String>,
) -> Result<String, (StatusCode, String)> {
    let worker = worker
        .with_key(format!("{}:{name}", role.key))
        .map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    // In a task of its own: when a client hangs up, this future is dropped, and with it all that it does.
    let answer = tokio::spawn(async move {
        let answer = worker.once(|_| compute(&role, &name)).await?;
        Ok::<_, OnceError>(String::from_utf8_lossy(&answer).into_owned())
    });
    answer.await.map_err(failed)?.map_err(failed)
}

fn failed(error: impl Display) -> (StatusCode, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
}

/// Another answer each time, so that two computations would be seen.
async fn compute(role: &Role, name: &str) -> Result<String, Infallible> {
    role.says(format!("computes {name}"));
    sleep(COMPUTATION).await;
    let random: u64 = rand::random();
    Ok(format!("{name} is {random:016x}, computed by {role}\n"))
}

async fn serve(role: Role) -> Result<()> {
    let shutdown = role.shutdown()?;
    let worker = role
        .builder()
        // A computation may take longer than its lease.
        .renew()
        // How long an answer is good for.
        .retention(Duration::from_secs(60))
        .build()
        .await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    role.says(format!("listens {}", listener.local_addr()?.port()));
    let app = Router::new()
        .route("/{name}", get(answer))
        .with_state(Server {
            worker: worker.clone(),
            role: Arc::new(role),
        });
    axum::serve(listener, app)
        .with_graceful_shutdown(shutdown)
        .await?;
    worker.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    common::run(|role, _| serve(role), fleet).await
}

async fn fleet(args: Args) -> Result<()> {
    let mut fleet = Fleet::of("axum").await?;
    fleet.start_all(args.servers, serve)?;
    let mut ports = Vec::new();
    while ports.len() < args.servers as usize {
        let (number, line) = fleet.hear().await.ok_or("no server listens")?;
        if let Some(port) = line.strip_prefix("listens ") {
            println!("Worker {number}: curl http://127.0.0.1:{port}/NAME");
            ports.push(port.parse()?);
        }
    }
    match args.serve {
        true => stay_up(fleet).await,
        false => ask_all(fleet, args, ports).await,
    }
}

async fn stay_up(mut fleet: Fleet) -> Result<()> {
    let mut stop = pin!(stop_signal()?);
    loop {
        tokio::select! {
            heard = fleet.hear() => match heard {
                Some((number, line)) => println!("Worker {number} {line}"),
                None => break,
            },
            () = &mut stop => break,
        }
    }
    fleet.terminate_all()?;
    fleet.end().await
}

async fn ask_all(mut fleet: Fleet, args: Args, ports: Vec<u16>) -> Result<()> {
    let names: Vec<String> = (1..=args.names).map(|nth| format!("name-{nth}")).collect();
    let mut asked = Vec::new();
    for (nth, name) in names.iter().enumerate() {
        for request in 0..args.requests as usize {
            // Another server each time.
            let answer = ask(ports[(nth + request) % ports.len()], name);
            asked.push(async move {
                match request {
                    // Hangs up.
                    0 => Ok(timeout(COMPUTATION / 3, answer).await.ok().transpose()?),
                    _ => answer.await.map(Some),
                }
            });
        }
    }
    let answers = try_join_all(asked).await?;
    let begun = Instant::now();
    let late = ask(ports[0], &names[0]).await?;
    let later = begun.elapsed().as_secs_f64() * 1e3;

    fleet.terminate_all()?;
    let mut computed = BTreeMap::<String, u32>::new();
    while let Some((number, line)) = fleet.hear().await {
        if let Some(name) = line.strip_prefix("computes ") {
            println!("Worker {number} computes {name}");
            *computed.entry(name.to_owned()).or_default() += 1;
        }
    }
    fleet.end().await?;

    let requests = answers.len();
    let hung_up = answers.iter().filter(|answer| answer.is_none()).count();
    let answers: Vec<String> = answers.into_iter().flatten().chain([late]).collect();
    let different: BTreeSet<&String> = answers.iter().collect();
    let computations: u32 = computed.values().sum();
    println!("\nRequests: {requests}, of which {hung_up} hung up");
    println!("Computations: {computations}, answers: {}", different.len());
    println!("One more request, later: {later:.2} ms");
    let once = names.iter().all(|name| computed.get(name) == Some(&1));
    check(once, "each name is computed once")?;
    check(
        different.len() == names.len(),
        "there is one answer for each name",
    )
}

/// The least of a client: what is answered, if that is a success.
async fn ask(port: u16, name: &str) -> Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET /{name} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(answer.into()),
    }
}
