//! Where an example runs, and what all of them need.
#![allow(dead_code, reason = "each example uses its own part")]

use std::error::Error;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The server that `REDIS_URL` names; or one that the example starts, on a free port, and stops
/// again; or the memory store.
pub enum Place {
    Named(String),
    Started(Server),
    Memory,
}

impl Place {
    pub fn find() -> Result<Self, Box<dyn Error>> {
        if let Ok(url) = std::env::var("REDIS_URL") {
            return Ok(Place::Named(url));
        }
        Ok(match find_server() {
            Some(program) => Place::Started(Server::start(&program)?),
            None => Place::Memory,
        })
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

/// What `main` ends with: the error with its causes, which say what to do.
pub fn exit(result: Result<(), Box<dyn Error>>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprint!("Error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
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
    fn start(program: &PathBuf) -> Result<Self, Box<dyn Error>> {
        let name = program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // A port found free may be gone by the time it is used: then the server exits at once.
        for _ in 0..10 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let child = Command::new(program)
                .args([
                    "--port",
                    &port.to_string(),
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                ])
                .stdout(Stdio::null())
                .spawn()?;
            let url = format!("redis://127.0.0.1:{port}");
            let mut server = Self {
                name: name.clone(),
                url,
                child,
            };
            for _ in 0..500 {
                if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
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

/// The wall clock in µs, which all processes of a machine share.
pub fn now() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    now.as_micros() as u64
}
