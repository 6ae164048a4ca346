//! What a server writes, as `MONITOR` tells it: every transition is published last in its script, in the
//! server's order. Outside the server, it outlives what the server forgets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis_locking_worker::internals::Frame;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::common::PATIENCE;
use crate::common::history::Step;
use crate::now;

#[derive(Clone)]
pub struct Audit {
    kept: Arc<Mutex<Kept>>,
}

struct Kept {
    steps: BTreeMap<String, Vec<Step>>,
    /// Whether the server may lose anything at any time.
    losing: bool,
    /// The last mark that was seen.
    mark: u64,
    /// By which server, and when.
    grants: Vec<(u16, u64)>,
    highest: u64,
    /// When each server last carried out a script.
    writes: BTreeMap<u16, u64>,
}

impl Audit {
    pub fn new(keys: &[String]) -> Self {
        let steps = keys.iter().map(|key| (key.clone(), Vec::new())).collect();
        let kept = Kept {
            steps,
            losing: false,
            mark: 0,
            grants: Vec::new(),
            highest: 0,
            writes: BTreeMap::new(),
        };
        Self {
            kept: Arc::new(Mutex::new(kept)),
        }
    }

    /// Watches a server until it ends; resolves when it is being watched.
    pub async fn watch(&self, port: u16) -> std::io::Result<JoinHandle<()>> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"MONITOR\r\n").await?;
        let mut lines = BufReader::new(stream);
        let mut line = Vec::new();
        lines.read_until(b'\n', &mut line).await?;
        if line != b"+OK\r\n" {
            let said = String::from_utf8_lossy(&line).into_owned();
            return Err(std::io::Error::other(said));
        }
        let audit = self.clone();
        Ok(tokio::spawn(async move {
            loop {
                line.clear();
                match lines.read_until(b'\n', &mut line).await {
                    Ok(1..) => audit.line(port, &line),
                    _ => return,
                }
            }
        }))
    }

    /// The same, again and again: sentinels disconnect everybody from the servers that they promote.
    pub async fn keep_watching(&self, port: u16) {
        let (audit, mut watching) = (self.clone(), self.watch(port).await.unwrap());
        tokio::spawn(async move {
            loop {
                let _ = watching.await;
                watching = loop {
                    if let Ok(again) = audit.watch(port).await {
                        break again;
                    }
                    sleep(Duration::from_millis(5)).await;
                };
            }
        });
    }

    fn line(&self, port: u16, line: &[u8]) {
        let mut words = words(line);
        let command = words.first().map(|word| word.to_ascii_uppercase());
        // A replica repeats what its master did, but no script.
        let by_script = line.windows(5).any(|word| word == b" lua]");
        match command.as_deref() {
            Some(b"SPUBLISH") if by_script && words.len() == 3 => {
                let text = words.pop().unwrap();
                let channel = String::from_utf8(words.pop().unwrap()).unwrap();
                let key = channel
                    .strip_prefix('{')
                    .and_then(|name| name.strip_suffix("}:line"));
                let frame = Frame::decode(&text.into()).expect("a record");
                self.keep(port, key.expect("a line"), frame);
            }
            Some(b"FLUSHALL") => self.all(|at| Step::Forgot { at }),
            Some(b"ECHO") => {
                let mark = std::str::from_utf8(&words[1]).unwrap().parse().unwrap();
                self.kept.lock().unwrap().mark = mark;
            }
            _ => {}
        }
    }

    fn keep(&self, port: u16, key: &str, frame: Frame) {
        let mut kept = self.kept.lock().unwrap();
        kept.writes.insert(port, frame.at);
        if let Some(record) = frame.record.as_deref()
            && record.fence > kept.highest
        {
            kept.highest = record.fence;
            kept.grants.push((port, frame.at));
        }
        let (losing, frame_at) = (kept.losing, frame.at);
        let steps = kept.steps.get_mut(key).expect("a key of this fleet");
        steps.push(Step::Wrote(frame));
        if losing {
            // Before whatever comes next, in the order of the server's time too.
            steps.push(Step::Forgot { at: frame_at });
        }
    }

    /// Reads what a server has that was started again, and that was not seen while it was not watched.
    pub async fn look(&self, port: u16) {
        let keys: Vec<String> = self.kept.lock().unwrap().steps.keys().cloned().collect();
        for key in keys {
            let answer = ask(port, &format!("GET {key}")).await.unwrap_or_default();
            let Some((_, text)) = answer.split_once("\r\n") else {
                continue;
            };
            let text = text.strip_suffix("\r\n").unwrap_or(text);
            let Ok(frame) = Frame::decode(&text.to_owned().into()) else {
                continue;
            };
            let mut kept = self.kept.lock().unwrap();
            let steps = kept.steps.get_mut(&key).unwrap();
            let place = steps.partition_point(|step| time(step) < frame.at);
            let at = frame.at;
            if steps.get(place).is_none_or(|step| time(step) != at) {
                let unwatched = || Step::Unwatched { from: at, to: at };
                let seen = [unwatched(), Step::Wrote(frame), unwatched()];
                steps.splice(place..place, seen);
            }
        }
    }

    /// When this server granted anything for the first time.
    pub fn first_grant(&self, port: u16) -> Option<u64> {
        let kept = self.kept.lock().unwrap();
        let mut grants = kept.grants.iter();
        grants.find(|(by, _)| *by == port).map(|(_, at)| *at)
    }

    /// When this server last wrote anything.
    pub fn last_write(&self, port: u16) -> Option<u64> {
        self.kept.lock().unwrap().writes.get(&port).copied()
    }

    /// Puts in order what was heard from several servers.
    pub fn sort(&self) {
        for steps in self.kept.lock().unwrap().steps.values_mut() {
            steps.sort_by_key(time);
        }
    }

    /// A step of every key.
    pub fn all(&self, step: impl Fn(u64) -> Step) {
        let mut kept = self.kept.lock().unwrap();
        for steps in kept.steps.values_mut() {
            steps.push(step(now()));
        }
    }

    /// From now on, or no longer, anything may be lost at any time.
    pub fn set_losing(&self, losing: bool) {
        self.all(|at| Step::Forgot { at });
        self.kept.lock().unwrap().losing = losing;
    }

    /// All that the server has written until now is in here.
    pub async fn catch_up(&self, port: u16) {
        let mark = now();
        let caught_up = async {
            ask(port, &format!("ECHO {mark}")).await.unwrap();
            while self.kept.lock().unwrap().mark < mark {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, caught_up)
            .await
            .expect("the monitor to be alive");
    }

    pub fn steps(&self) -> BTreeMap<String, Vec<Step>> {
        self.kept.lock().unwrap().steps.clone()
    }
}

fn time(step: &Step) -> u64 {
    match step {
        Step::Wrote(frame) => frame.at,
        Step::Forgot { at } | Step::Unwatched { to: at, .. } => *at,
    }
}

/// Sends one command on a connection of its own; what the server says.
pub async fn ask(port: u16, command: &str) -> std::io::Result<String> {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await?;
        let mut answer = vec![0; 64 << 10];
        let count = stream.read(&mut answer).await?;
        answer.truncate(count);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(PATIENCE, asked).await?
}

/// `1700000000.000000 [0 lua] "SET" "k" "a\nb"`, less what is in front.
fn words(line: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        let Some(open) = &mut word else {
            if byte == b'"' {
                word = Some(Vec::new());
            }
            continue;
        };
        open.push(match byte {
            b'"' => {
                words.extend(word.take());
                continue;
            }
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(b't') => b'\t',
                Some(b'a') => 7,
                Some(b'b') => 8,
                Some(b'x') => {
                    let digits = [bytes.next(), bytes.next()].map(|digit| digit.unwrap_or(b'0'));
                    u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
                }
                Some(other) => other,
                None => break,
            },
            byte => byte,
        });
    }
    words
}
