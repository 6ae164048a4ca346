//! A way to a server that can be cut or stalled, for a client's commands and its subscriber by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

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
    counts: Counts,
    _accepting: AbortOnDropHandle<()>,
}

/// How many connections there are of each line.
type Counts = Arc<[AtomicUsize; 2]>;

/// Counted for as long as it lives.
struct Connection {
    line: AtomicUsize,
    counts: Counts,
}

impl Connection {
    fn new(counts: Counts) -> Self {
        counts[Line::Commands as usize].fetch_add(1, Ordering::Relaxed);
        let line = AtomicUsize::new(Line::Commands as usize);
        Self { line, counts }
    }

    fn line(&self) -> usize {
        self.line.load(Ordering::Relaxed)
    }

    fn subscribes(&self) {
        let line = Line::Subscriber as usize;
        let before = self.line.swap(line, Ordering::Relaxed);
        self.counts[line].fetch_add(1, Ordering::Relaxed);
        self.counts[before].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.counts[self.line()].fetch_sub(1, Ordering::Relaxed);
    }
}

type Ways = [watch::Receiver<Way>; 2];

impl Proxy {
    /// Begins on a free port of 127.0.0.1; connections outlive it.
    pub async fn start(server: u16) -> Self {
        Self::start_on(0, server).await
    }

    /// The same on a port that the caller found free.
    pub async fn start_on(port: u16, server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ways = [watch::Sender::new(Way::Open), watch::Sender::new(Way::Open)];
        let watched: Ways = ways.each_ref().map(|way| way.subscribe());
        let counts = Counts::default();
        let counted = counts.clone();
        let accepting = tokio::spawn(async move {
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
                let connection = Arc::new(Connection::new(counted.clone()));
                let asks = carry(from_client, to_server, watched.clone(), connection.clone());
                let answers = carry(from_server, to_client, watched.clone(), connection);
                tokio::spawn(asks);
                tokio::spawn(answers);
            }
        });
        Self {
            port,
            ways,
            counts,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// How many connections there are of a line.
    pub fn connections(&self, line: Line) -> usize {
        self.counts[line as usize].load(Ordering::Relaxed)
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

const SUBSCRIBES: &[u8] = b"SSUBSCRIBE";

/// Dropping both halves of both directions closes the connections.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut ways: Ways,
    connection: Arc<Connection>,
) {
    // In front is the end of what was read before: a word may come in two pieces.
    const BEFORE: usize = SUBSCRIBES.len() - 1;
    let mut bytes = [0; BEFORE + (16 << 10)];
    loop {
        let way = &mut ways[connection.line()];
        let read = tokio::select! {
            read = from.read(&mut bytes[BEFORE..]) => read,
            _ = way.wait_for(|way| *way == Way::Cut) => return,
        };
        let Ok(count @ 1..) = read else { return };
        let seen = &bytes[..BEFORE + count];
        if seen
            .windows(SUBSCRIBES.len())
            .any(|word| word == SUBSCRIBES)
        {
            connection.subscribes();
        }
        let way = &mut ways[connection.line()];
        let passed = way.wait_for(|way| *way != Way::Stalled).await;
        let Ok(passed) = passed.map(|way| *way) else {
            return;
        };
        if passed == Way::Cut || to.write_all(&seen[BEFORE..]).await.is_err() {
            return;
        }
        bytes.copy_within(count..count + BEFORE, 0);
    }
}
