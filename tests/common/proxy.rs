//! A way to a server that can be cut or stalled, for a client's commands and its subscriber by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// They stay where they are, and nobody is told.
    Stalled,
    /// Connections are closed, and new ones too.
    Cut,
}

/// Which connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// All that have not subscribed to anything yet.
    Commands,
    Subscriber,
}

pub struct Proxy {
    pub port: u16,
    ways: [watch::Sender<Way>; 2],
}

type Ways = [watch::Receiver<Way>; 2];

impl Proxy {
    /// Begins on a free port of 127.0.0.1; its tasks end with the runtime.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ways = [watch::Sender::new(Way::Open), watch::Sender::new(Way::Open)];
        let watched: Ways = ways.each_ref().map(|way| way.subscribe());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // It may be either of the two that comes back.
                if watched.iter().any(|way| *way.borrow() == Way::Cut) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                let line = Arc::new(AtomicUsize::new(Line::Commands as usize));
                let asks = carry(from_client, to_server, watched.clone(), line.clone());
                let answers = carry(from_server, to_client, watched.clone(), line);
                tokio::spawn(asks);
                tokio::spawn(answers);
            }
        });
        Self { port, ways }
    }

    pub fn set(&self, way: Way) {
        for sender in &self.ways {
            sender.send_replace(way);
        }
    }

    pub fn set_line(&self, line: Line, way: Way) {
        self.ways[line as usize].send_replace(way);
    }
}

/// Dropping both halves of both directions closes the connections.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut ways: Ways,
    line: Arc<AtomicUsize>,
) {
    let mut bytes = [0; 16 << 10];
    loop {
        let way = &mut ways[line.load(Ordering::Relaxed)];
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            _ = way.wait_for(|way| *way == Way::Cut) => return,
        };
        let Ok(count @ 1..) = read else { return };
        if bytes[..count].windows(10).any(|word| word == b"SSUBSCRIBE") {
            line.store(Line::Subscriber as usize, Ordering::Relaxed);
        }
        let way = &mut ways[line.load(Ordering::Relaxed)];
        let passed = way.wait_for(|way| *way != Way::Stalled).await;
        let Ok(passed) = passed.map(|way| *way) else {
            return;
        };
        if passed == Way::Cut || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
