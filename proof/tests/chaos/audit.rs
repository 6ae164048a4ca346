//! What a server writes, as `MONITOR` tells it: every transition is published last in its script, in the
//! server's order. Outside the server, it outlives what the server forgets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis_locking_worker::internals::RecordSnapshot;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::fleet::{Chronicle, keys};
use crate::now;
use crate::worker::place;
use proof::history::{Step, brief};
use testkit::PATIENCE;

#[derive(Clone)]
pub struct Audit {
    kept: Arc<Mutex<Kept>>,
    /// Where each key lies.
    names: Arc<BTreeMap<String, (u32, String)>>,
    chronicle: Chronicle,
}

#[derive(Default)]
struct Kept {
    steps: BTreeMap<String, Vec<Step>>,
    /// Whether the server may lose anything at any time.
    losing: bool,
    /// The last mark that was seen of each server.
    marks: BTreeMap<u16, u64>,
    /// By which server, and when.
    grants: Vec<(u16, u64)>,
    highest: u64,
    /// When each server last carried out a script.
    writes: BTreeMap<u16, u64>,
}

/// Ended with its owner.
pub struct Watching<T = ()> {
    task: AbortOnDropHandle<T>,
    chronicle: Chronicle,
}

impl<T> Watching<T> {
    /// What it was that it came to, if it was not ended before.
    pub async fn end(&mut self) -> Option<T> {
        match (&mut self.task).await {
            Ok(last) => Some(last),
            Err(error) => {
                if error.is_panic() {
                    self.chronicle.error(format_args!("the audit: {error}"));
                }
                None
            }
        }
    }

    pub async fn abort(&mut self) {
        self.task.abort();
        self.end().await;
    }
}

impl Audit {
    /// Of all keys in so many databases.
    pub fn new(databases: u32, chronicle: &Chronicle) -> Self {
        let names = (0..databases).flat_map(|database| {
            let keys = keys().into_iter();
            keys.map(move |key| (place(database, &key), (database, key)))
        });
        let names: BTreeMap<_, _> = names.collect();
        let kept = Kept {
            steps: names
                .keys()
                .map(|name| (name.clone(), Vec::new()))
                .collect(),
            ..Kept::default()
        };
        Self {
            kept: Arc::new(Mutex::new(kept)),
            names: Arc::new(names),
            chronicle: chronicle.clone(),
        }
    }

    /// Watches a server until it ends, and then says when it was last heard; resolves when it is being watched.
    pub async fn watch(&self, port: u16) -> std::io::Result<Watching<u64>> {
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
        let mut last = now();
        Ok(self.spawn(async move {
            loop {
                line.clear();
                let read = lines.read_until(b'\n', &mut line).await;
                // Half a line is all that arrives of what was written when it was killed.
                if read.is_err() || !line.ends_with(b"\n") {
                    return last;
                }
                let heard = match said_at(&line) {
                    Some(at) => {
                        last = at;
                        audit.line(port, at, &line)
                    }
                    None => Err("no time".to_owned()),
                };
                if let Err(error) = heard {
                    let line = String::from_utf8_lossy(&line);
                    audit.chronicle.error(format_args!("{error} in {line:?}"));
                }
            }
        }))
    }

    /// Watches a server for ever, and says of which times its writes may not have been seen: sentinels
    /// disconnect all clients of the servers that they promote, and a killed server has carried out
    /// scripts that it did not report.
    pub async fn keep_watching(&self, port: u16) -> Watching {
        let (audit, mut watching) = (self.clone(), self.watch(port).await.unwrap());
        self.spawn(async move {
            while let Some(from) = watching.end().await {
                // At once, since a server that was killed may never be watched again.
                audit.all(|to| Step::Unwatched { from, to });
                watching = loop {
                    if let Ok(again) = audit.watch(port).await {
                        break again;
                    }
                    sleep(Duration::from_millis(5)).await;
                };
                audit.all(|to| Step::Unwatched { from, to });
            }
        })
    }

    fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Watching<T> {
        Watching {
            task: AbortOnDropHandle::new(tokio::spawn(task)),
            chronicle: self.chronicle.clone(),
        }
    }

    fn line(&self, port: u16, at: u64, line: &[u8]) -> Result<(), String> {
        let mut words = words(line);
        let command = words.first().map(|word| word.to_ascii_uppercase());
        // A replica repeats what its master did, but no script.
        let script_in = database_of_script(line);
        match command.as_deref() {
            Some(b"SPUBLISH") if script_in.is_some() && words.len() == 3 => {
                let text = words.pop().unwrap();
                let channel = String::from_utf8(words.pop().unwrap()).unwrap_or_default();
                let key = channel
                    .strip_prefix('{')
                    .and_then(|name| name.split_once("}:line"));
                let (key, _) = key.ok_or("no line's name")?;
                let frame = decode(text)?;
                self.keep(port, &place(script_in.unwrap_or_default(), key), frame)?;
            }
            Some(b"FLUSHALL") => self.all(|_| Step::Forgot { at }),
            Some(b"ECHO") => {
                let mark = words.get(1).and_then(|mark| std::str::from_utf8(mark).ok());
                let mark = mark.and_then(|mark| mark.parse().ok()).ok_or("no mark")?;
                self.kept.lock().unwrap().marks.insert(port, mark);
            }
            _ => {}
        }
        Ok(())
    }

    fn keep(&self, port: u16, key: &str, frame: RecordSnapshot) -> Result<(), String> {
        let mut kept = self.kept.lock().unwrap();
        kept.writes.insert(port, frame.at);
        if let Some(record) = frame.record.as_deref()
            && record.fence > kept.highest
        {
            kept.highest = record.fence;
            kept.grants.push((port, frame.at));
        }
        let (losing, frame_at) = (kept.losing, frame.at);
        let steps = kept.steps.get_mut(key).ok_or("a foreign key")?;
        steps.push(Step::Wrote(frame));
        if losing {
            // Before whatever comes next, in the order of the server's time too.
            steps.push(Step::Forgot { at: frame_at });
        }
        Ok(())
    }

    /// Reads what a server has that was started again, and that was not seen while it was not watched.
    pub async fn look(&self, port: u16) {
        let mut found = Vec::new();
        for (name, (database, key)) in &*self.names {
            let Some(text) = get(port, *database, key).await else {
                continue;
            };
            match decode(text) {
                Ok(frame) => found.push((name, frame)),
                Err(error) => self.chronicle.error(format_args!("{error} in {name}")),
            }
        }
        // What was watched after all has been heard then.
        self.catch_up(port).await;
        for (key, frame) in found {
            let mut kept = self.kept.lock().unwrap();
            let steps = kept.steps.get_mut(key).unwrap();
            let at = frame.at;
            let later = |step: &Step| matches!(step, Step::Wrote(_)) && time(step) >= at;
            let place = steps.iter().position(later).unwrap_or(steps.len());
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

    /// Puts in order what was heard from several servers; what is of one µs stays as it was heard.
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
        let until = Instant::now() + PATIENCE;
        let mark = now();
        loop {
            // Again if it was not being watched.
            must(port, &format!("ECHO {mark}"), "$").await;
            for _ in 0..500 {
                let seen = self.kept.lock().unwrap().marks.get(&port).copied();
                if seen.is_some_and(|seen| seen >= mark) {
                    return;
                }
                sleep(Duration::from_millis(1)).await;
            }
            if Instant::now() > until {
                let dead = format_args!("the audit of port {port} is not alive");
                return self.chronicle.error(dead);
            }
        }
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

/// A record as histories keep it.
fn decode(text: Vec<u8>) -> Result<RecordSnapshot, String> {
    let mut frame = RecordSnapshot::decode(&text.into()).map_err(|error| format!("{error:?}"))?;
    if let Some(record) = &mut frame.record {
        let record = Arc::make_mut(record);
        record.result = brief(&record.result).into();
    }
    Ok(frame)
}

/// The database in which a script did what this line says: `+1700000000.000000 [0 lua] …`.
fn database_of_script(line: &[u8]) -> Option<u32> {
    let head = line.get(..64).unwrap_or(line);
    let head = std::str::from_utf8(head).ok()?;
    let (_, client) = head.split_once(" [")?;
    let (client, _) = client.split_once(']')?;
    client.strip_suffix(" lua")?.parse().ok()
}

/// What lies under a key: asked until it is told, since other faults may be in the way.
async fn get(port: u16, database: u32, key: &str) -> Option<Vec<u8>> {
    let until = Instant::now() + PATIENCE;
    loop {
        match timeout(PATIENCE, try_get(port, database, key)).await {
            Ok(Ok(text)) => return text,
            other => assert!(Instant::now() < until, "GET {key}: {other:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn try_get(port: u16, database: u32, key: &str) -> std::io::Result<Option<Vec<u8>>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let asked = format!("SELECT {database}\r\nGET {key}\r\n");
    stream.write_all(asked.as_bytes()).await?;
    let mut lines = BufReader::new(stream);
    let mut said = [String::new(), String::new()];
    for line in &mut said {
        lines.read_line(line).await?;
    }
    let size = said[1].trim_end().strip_prefix('$');
    let size = size.and_then(|size| size.parse::<i64>().ok());
    let Some(size) = size.filter(|_| said[0] == "+OK\r\n") else {
        return Err(std::io::Error::other(said.concat()));
    };
    let Ok(size) = usize::try_from(size) else {
        return Ok(None);
    };
    let mut text = vec![0; size];
    lines.read_exact(&mut text).await?;
    Ok(Some(text))
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

/// What a server has taken.
pub struct Took {
    pub answer: String,
    /// When that was asked which it took.
    pub from: u64,
    /// When it had.
    pub to: u64,
}

/// Asks until the answer begins like this: other faults may be in the way.
pub async fn must(port: u16, command: &str, begins: &str) -> Took {
    let until = Instant::now() + PATIENCE;
    loop {
        let from = now();
        let answer = ask(port, command).await.unwrap_or_default();
        if answer.starts_with(begins) {
            let to = now();
            return Took { answer, from, to };
        }
        assert!(Instant::now() < until, "{command}: {answer}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// When the server says that it was, in µs.
fn said_at(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line.strip_prefix(b"+")?.get(..17)?).ok()?;
    let (seconds, micros) = line.split_once('.')?;
    let micros = format!("{seconds}{micros}");
    Some(micros)
        .filter(|micros| micros.len() == 16)?
        .parse()
        .ok()
}

/// `+1700000000.000000 [0 lua] "SET" "k" "a\nb"`, less what is in front.
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
