//! A proxy in front of a server. It can cut or stall a client's command connections and its
//! subscriber separately.

use std::future::pending;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use rand::Rng;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Open,
    /// Keeps the bytes, and tells neither end.
    Stalled,
    /// Closes the connections, and new ones too.
    Cut,
}

/// The connections that an action applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// All connections that have not subscribed yet.
    Commands,
    Subscriber,
}

/// What the proxy does with the present connections. Later ones are not affected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Lives,
    /// Reads and writes nothing more, for good, and tells neither end: as a lost node does, or an
    /// address translation that forgot the connection.
    Silent,
    /// Closes the connection at both ends.
    Reset,
}

pub struct Proxy {
    pub port: u16,
    server: Arc<AtomicU16>,
    ways: [watch::Sender<Way>; 2],
    latency: watch::Sender<Latency>,
    counts: Counts,
    connections: Arc<Mutex<Vec<Weak<Connection>>>>,
    _accepting: AbortOnDropHandle<()>,
}

/// The least and the most time for which the proxy keeps the bytes that it has read.
type Latency = (Duration, Duration);

/// Number of connections of each line, without the silent ones.
type Counts = Arc<[AtomicUsize; 2]>;

/// A connection. It is counted until it is dropped or becomes silent.
struct Connection {
    line: AtomicUsize,
    fate: watch::Sender<Fate>,
    counts: Counts,
}

impl Connection {
    fn new(counts: Counts) -> Self {
        counts[Line::Commands as usize].fetch_add(1, Ordering::Relaxed);
        let line = AtomicUsize::new(Line::Commands as usize);
        Self {
            line,
            fate: watch::Sender::new(Fate::Lives),
            counts,
        }
    }

    fn is_silent(&self) -> bool {
        *self.fate.borrow() == Fate::Silent
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
        if !self.is_silent() {
            self.counts[self.line()].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

type Ways = [watch::Receiver<Way>; 2];

impl Proxy {
    /// Starts a proxy on a free port of 127.0.0.1. Its connections outlive it.
    pub async fn start(server: u16) -> Self {
        Self::start_on(0, server).await
    }

    /// Starts a proxy on a port that the caller found free.
    pub async fn start_on(port: u16, server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let ways = [watch::Sender::new(Way::Open), watch::Sender::new(Way::Open)];
        let watched: Ways = ways.each_ref().map(|way| way.subscribe());
        let counts = Counts::default();
        let latency = watch::Sender::new(Latency::default());
        let connections = Arc::new(Mutex::new(Vec::<Weak<Connection>>::new()));
        let server = Arc::new(AtomicU16::new(server));
        let (counted, target) = (counts.clone(), server.clone());
        let (delays, all) = (latency.subscribe(), connections.clone());
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                // A new connection has not subscribed yet, so it may belong to either line.
                if watched.iter().any(|way| *way.borrow() == Way::Cut) {
                    continue;
                }
                let server = target.load(Ordering::Relaxed);
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                let connection = Arc::new(Connection::new(counted.clone()));
                let mut all = all.lock().unwrap();
                all.retain(|connection| connection.strong_count() > 0);
                all.push(Arc::downgrade(&connection));
                drop(all);
                let carry = |from, to, connection| {
                    tokio::spawn(carry(from, to, watched.clone(), delays.clone(), connection));
                };
                carry(from_client, to_server, connection.clone());
                carry(from_server, to_client, connection);
            }
        });
        Self {
            port,
            server,
            ways,
            latency,
            counts,
            connections,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// Returns the number of connections of a line.
    pub fn connections(&self, line: Line) -> usize {
        self.counts[line as usize].load(Ordering::Relaxed)
    }

    /// Decides the fate of the present connections of one line or of both. Returns their number.
    pub fn decide(&self, line: Option<Line>, fate: Fate) -> usize {
        let connections = self.connections.lock().unwrap();
        let living = connections.iter().filter_map(Weak::upgrade);
        let meant = living.filter(|connection| {
            let is_meant = line.is_none_or(|line| connection.line() == line as usize);
            is_meant && !connection.is_silent()
        });
        let decide = |connection: Arc<Connection>| {
            if fate == Fate::Silent {
                connection.counts[connection.line()].fetch_sub(1, Ordering::Relaxed);
            }
            connection.fate.send_replace(fate);
        };
        meant.map(decide).count()
    }

    /// Leads connections that are made from now on to this server.
    pub fn lead_to(&self, server: u16) {
        self.server.store(server, Ordering::Relaxed);
    }

    /// Delays bytes that are read from now on, each piece by a random time in this range.
    pub fn set_latency(&self, least: Duration, most: Duration) {
        self.latency.send_replace((least, most));
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

/// The command as it is sent. The line breaks matter, since scripts contain the word, too.
const SUBSCRIBES: &[u8] = b"\nSSUBSCRIBE\r\n";

/// Carries bytes in one direction until the connection ends. Both ends are closed once this has
/// returned for both directions, which drops all halves.
async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut ways: Ways,
    latency: watch::Receiver<Latency>,
    connection: Arc<Connection>,
) {
    let mut fates = connection.fate.subscribe();
    let carried = carry_on(&mut from, &mut to, &mut ways, latency, &connection);
    let fate = tokio::select! {
        () = carried => Fate::Reset,
        fate = fates.wait_for(|fate| *fate != Fate::Lives) => *fate.unwrap(),
    };
    if fate == Fate::Silent {
        // Keeps both ends open.
        pending().await
    }
}

async fn carry_on(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    ways: &mut Ways,
    latency: watch::Receiver<Latency>,
    connection: &Connection,
) {
    // The end of the bytes before stays in front: the command may arrive in two pieces.
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
        let (least, most) = *latency.borrow();
        if !most.is_zero() {
            let kept = rand::thread_rng().gen_range(least..=most);
            tokio::time::sleep(kept).await;
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
