//! A fleet whose master is followed by a replica, and how long that takes.

use std::time::Duration;

use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::audit::{Audit, ask};
use crate::fleet::{Chronicle, PROCESSES, Process, Seen, orders};
use crate::now;
use proof::history::Scope;
use testkit::{Cluster, Sentinels, Server, until};

const LEASES: [u64; 3] = [300, 500, 1_000];
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica that is asked says yes, and gives up after 5 s on a busy machine; far more than anything else takes.
const SERVERS_PATIENCE: Duration = Duration::from_secs(15);

/// What happens to the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is killed, and the sentinels see it.
    SentinelsFollow,
    /// The sentinels are asked for another, while it is alive and serves.
    SentinelsAreAsked,
    /// It is killed, and the other masters see it.
    ClusterFollows,
    /// Its replica is asked to take over, in step with it.
    ReplicaIsAsked,
    /// Its replica takes over without asking anybody.
    ReplicaTakesOver,
}

pub const SENTINEL: [Kind; 2] = [Kind::SentinelsFollow, Kind::SentinelsAreAsked];
pub const CLUSTER: [Kind; 3] = [
    Kind::ReplicaIsAsked,
    Kind::ReplicaTakesOver,
    Kind::ClusterFollows,
];

/// In ms.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// From the fault until a replica was the master.
    promoted: f64,
    /// From the fault until the new master granted anything.
    granted: f64,
    /// From when a replica was the master until the old one last wrote anything; negative if it did not.
    stale: f64,
}

pub fn summary(measured: &[Measured]) -> String {
    let spread = |figure: fn(&Measured) -> f64| {
        let mut figures: Vec<f64> = measured.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        let [least, median, most] = [0, figures.len() / 2, figures.len().saturating_sub(1)]
            .map(|nth| figures.get(nth).copied().unwrap_or(f64::NAN));
        format!("{least:.0}, {median:.0}, {most:.0} ms")
    };
    format!(
        "least, median and most from the fault to the new master {}; to its first grant {}; from then on \
         the old one was written to for {}",
        spread(|measured| measured.promoted),
        spread(|measured| measured.granted),
        spread(|measured| measured.stale.max(0.0)),
    )
}

enum Servers {
    Sentinels(Sentinels),
    Cluster(Cluster),
}

impl Servers {
    async fn start(kind: Kind) -> Self {
        match SENTINEL.contains(&kind) {
            true => Self::Sentinels(Sentinels::start(2).await),
            false => Self::Cluster(Cluster::start_with(1).await),
        }
    }

    fn url(&self) -> String {
        match self {
            Self::Sentinels(servers) => servers.url(),
            Self::Cluster(servers) => servers.url(),
        }
    }

    /// The master that is to be followed is the first.
    fn nodes(&mut self) -> &mut Vec<Server> {
        match self {
            Self::Sentinels(servers) => &mut servers.nodes,
            Self::Cluster(servers) => servers.nodes(),
        }
    }

    /// The replicas that can follow it.
    fn candidates(&mut self) -> Vec<u16> {
        let first = match self {
            Self::Sentinels(_) => 1,
            Self::Cluster(_) => 3,
        };
        self.nodes()[first..].iter().map(|node| node.port).collect()
    }

    async fn strike(&mut self, kind: Kind) {
        let asked = match (kind, &*self) {
            (Kind::SentinelsAreAsked, Self::Sentinels(servers)) => {
                ask(servers.sentinels[0].port, "SENTINEL FAILOVER main").await
            }
            (Kind::ReplicaIsAsked, Self::Cluster(servers)) => {
                ask(servers.node(3).port, "CLUSTER FAILOVER").await
            }
            (Kind::ReplicaTakesOver, Self::Cluster(servers)) => {
                ask(servers.node(3).port, "CLUSTER FAILOVER TAKEOVER").await
            }
            _ => {
                self.nodes()[0].kill();
                return;
            }
        };
        assert_eq!(asked.unwrap(), "+OK\r\n");
    }
}

/// Which of these is the master, and since when.
async fn promotion(candidates: &[u16]) -> (u16, u64) {
    loop {
        for port in candidates {
            if is_master(*port).await {
                return (*port, now());
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
}

async fn is_master(port: u16) -> bool {
    ask(port, "ROLE")
        .await
        .is_ok_and(|role| role.contains("master"))
}

pub async fn run(
    chronicle: &Chronicle,
    kind: Kind,
    seed: u64,
    resource: &Server,
) -> (Seen, Measured) {
    let run = &*chronicle.run;
    let mut random = StdRng::seed_from_u64(seed);
    let mut servers = Servers::start(kind).await;
    let old = servers.nodes()[0].port;
    let audit = Audit::new(1, chronicle);
    let mut watching = Vec::new();
    for node in servers.nodes().iter() {
        watching.push(audit.keep_watching(node.port).await);
    }
    let dir = TempDir::new().unwrap();
    let mut processes = Vec::new();
    for process in 0..PROCESSES {
        let orders = orders(run, process, servers.url(), resource, &LEASES, &mut random);
        processes.push(Process::start(&orders, chronicle, dir.path(), &[]));
    }
    until(async || audit.last_write(old).is_some()).await;
    sleep(Duration::from_millis(random.gen_range(300..1_500))).await;

    let candidates = servers.candidates();
    audit.set_losing(true);
    let began = now();
    let (from, new, promoted) = loop {
        let from = now();
        servers.strike(kind).await;
        match timeout(SERVERS_PATIENCE, promotion(&candidates)).await {
            Ok((new, promoted)) => break (from, new, promoted),
            Err(_) => assert_eq!(kind, Kind::ReplicaIsAsked, "nobody follows"),
        }
    };
    until(async || audit.first_grant(new).is_some()).await;
    let killed = matches!(kind, Kind::SentinelsFollow | Kind::ClusterFollows);
    // Until then it may be written to.
    until(async || killed || !is_master(old).await).await;
    chronicle.fault("failover", Scope::Server, began, now());
    let nodes = servers.nodes().iter().map(|node| node.port);
    let alive: Vec<u16> = nodes.filter(|port| !killed || *port != old).collect();
    let catch_up = async || join_all(alive.iter().map(|port| audit.catch_up(*port))).await;
    catch_up().await;
    audit.set_losing(false);

    chronicle.finishing();
    join_all(processes.iter_mut().map(|process| process.finish(PATIENCE))).await;
    catch_up().await;
    for watching in &mut watching {
        watching.abort().await;
    }
    audit.sort();
    let figure = |at: u64| (at as f64 - from as f64) / 1e3;
    let measured = Measured {
        promoted: figure(promoted),
        granted: figure(audit.first_grant(new).unwrap()),
        stale: figure(audit.last_write(old).unwrap()) - figure(promoted),
    };
    println!("{run}: {measured:?}");
    chronicle.edit(|seen| seen.history.audit = audit.steps());
    (chronicle.close(resource).await, measured)
}
