//! A way to a server that can be cut or stalled.

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

pub struct Proxy {
    pub port: u16,
    way: watch::Sender<Way>,
}

impl Proxy {
    /// Begins on a free port of 127.0.0.1; its tasks end with the runtime.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, watched) = watch::channel(Way::Open);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if *watched.borrow() == Way::Cut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else {
                    continue;
                };
                let ((from_client, to_client), (from_server, to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(carry(from_client, to_server, watched.clone()));
                tokio::spawn(carry(from_server, to_client, watched.clone()));
            }
        });
        Self { port, way }
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// Dropping both halves of both directions closes the connections.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut way: watch::Receiver<Way>) {
    let mut bytes = [0; 16 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            _ = way.wait_for(|way| *way == Way::Cut) => return,
        };
        let Ok(count @ 1..) = read else { return };
        let Ok(open) = way
            .wait_for(|way| *way != Way::Stalled)
            .await
            .map(|way| *way)
        else {
            return;
        };
        if open == Way::Cut || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
