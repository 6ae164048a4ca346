//! Where an example runs.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis_locking_worker::LockingWorker;

use super::Result;

/// The server that `REDIS_URL` names; or one that the example starts, on a free port, and stops
/// again; or the memory store.
pub enum Place {
    Named(String),
    Started(Server),
    Memory,
}

impl Place {
    /// Looks for a server, and at it: one that is not there is told of once, not by every worker.
    pub async fn find() -> Result<Self> {
        let named = std::env::var("REDIS_URL").ok();
        let place = match (named.filter(|url| !url.is_empty()), find_server()) {
            (Some(url), _) => Place::Named(url),
            (None, Some(program)) => Place::Started(Server::start(&program)?),
            (None, None) => Place::Memory,
        };
        if let Some(url) = place.url() {
            LockingWorker::builder("examples").url(url).build().await?;
        }
        Ok(place)
    }

    /// What to say of so many workers.
    pub fn describe(&self, workers: u32) -> String {
        match self {
            Place::Named(_) => format!("{workers} processes, on the server that REDIS_URL names"),
            Place::Started(server) => {
                format!("{workers} processes, on a {} of their own", server.name)
            }
            Place::Memory => format!(
                "No redis-server on PATH and no REDIS_URL: {workers} tasks on the memory store"
            ),
        }
    }

    /// The server, if there is one.
    pub fn url(&self) -> Option<&str> {
        match self {
            Place::Named(url) => Some(url),
            Place::Started(server) => Some(&server.url),
            Place::Memory => None,
        }
    }
}

fn find_server() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["redis-server", "valkey-server"];
    let mut found = names.iter().flat_map(|name| {
        std::env::split_paths(&path)
            .map(move |folder| folder.join(name))
            .filter(|p| p.is_file())
    });
    found.next()
}

/// A server that ends with the example.
pub struct Server {
    name: String,
    url: String,
    child: Child,
}

impl Server {
    fn start(program: &Path) -> Result<Self> {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // A port found free may be gone by the time it is used: then the server exits at once.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let child = Command::new(program)
                .args(["--port", &port.to_string()])
                .args(["--bind", "127.0.0.1"])
                .args(["--save", ""])
                .stdout(Stdio::null())
                .spawn()?;
            let url = format!("redis://127.0.0.1:{port}");
            let mut server = Self {
                name: name.clone(),
                url,
                child,
            };
            for _ in 0..500 {
                if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                    return Ok(server);
                }
                if server.child.try_wait()?.is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Err(format!("{name} does not start").into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
